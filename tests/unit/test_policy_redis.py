"""The policy store in Redis: what only a server can suffer."""

import asyncio

import pytest
from redis.asyncio import Redis
from support.policies import (
    DEADLINE_S,
    a_policy,
    answers,
    documents,
    garbage,
    gate_key,
    redis_medium,
    warnings,
)
from support.redis_server import RedisServer, find_redis_server, free_port
from support.waiting import until

from service.errors import PolicyStoreDown, VersionMismatch
from service.policy.document import MAX_VERSION
from service.policy.redis import CHANNEL, MESSAGES_AT_ONCE, RedisPolicyStore

PASSWORD = "hunter2-secret"


class TestRedis:
    """What only a server can suffer."""

    async def test_a_server_that_is_not_there_is_down_without_telling_the_password(self) -> None:
        port = free_port()
        store = RedisPolicyStore(f"redis://user:{PASSWORD}@127.0.0.1:{port}/0", 1.0)
        with pytest.raises(PolicyStoreDown, match=f"Redis at 127.0.0.1:{port}.*cannot be reached") as caught:
            await store.latest("bundle", "gate-a")
        assert PASSWORD not in str(caught.value)
        assert caught.value.retry_after_s
        await store.close()

    async def test_a_wrong_password_is_down_and_stays_secret(self) -> None:
        with RedisServer(None, "--requirepass", "another") as server:
            for credentials, reason in ((f":{PASSWORD}@", "refuses our user name or password"), ("", "refuses")):
                store = RedisPolicyStore(f"redis://{credentials}127.0.0.1:{server.port}/0", 1.0)
                with pytest.raises(PolicyStoreDown, match=reason) as caught:
                    await store.latest("bundle", "gate-a")
                assert PASSWORD not in str(caught.value)
                await store.close()

    async def test_a_server_that_hangs_is_down_in_time_and_heals(self) -> None:
        with RedisServer() as server:
            store = RedisPolicyStore(server.url, 0.2)
            await store.append("bundle", a_policy(1), expected_version=None)
            server.pause()
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(3):
                    with pytest.raises(PolicyStoreDown, match="in time"):
                        await store.latest("bundle", "gate-a")
                with pytest.raises(PolicyStoreDown, match="in time"):
                    await store.append("bundle", a_policy(2), expected_version=1)
            server.resume()
            assert await until(lambda: answers(store)) == a_policy(1)
            await store.close()

    async def test_a_killed_server_is_down_and_heals_when_it_is_back(self) -> None:
        with RedisServer() as server:
            store = RedisPolicyStore(server.url, 1.0)
            await store.append("bundle", a_policy(1), expected_version=None)
            await store.wait_for_change(DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await asyncio.sleep(0)  # it has begun
            server.stop()
            await asyncio.wait_for(waiting, DEADLINE_S)  # the loss of the server is a reason to look
            with pytest.raises(PolicyStoreDown):
                await store.append("bundle", a_policy(2), expected_version=1)
            server.start()
            assert await store.latest("bundle", "gate-a") is None
            await store.append("bundle", a_policy(2), expected_version=None)
            await store.close()

    async def test_a_read_only_replica_can_be_read_but_not_written(
        self, shared_redis: RedisServer, redis_url: str
    ) -> None:
        primary = RedisPolicyStore(redis_url, 1.0)
        await primary.append("bundle", a_policy(1), expected_version=None)
        await primary.close()
        with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as replica:
            store = RedisPolicyStore(replica.url, 1.0)
            assert await until(lambda: answers(store)) == a_policy(1)
            with pytest.raises(PolicyStoreDown, match="read-only replica"):
                await store.append("bundle", a_policy(2), expected_version=1)
            await store.close()

    async def test_a_server_out_of_memory_refuses_the_write(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.config_set("maxmemory", 1)
            with pytest.raises(PolicyStoreDown, match="out of memory"):
                await store.append("bundle", a_policy(1), expected_version=None)
            await redis.config_set("maxmemory", 0)
        assert await store.latest("bundle", "gate-a") is None
        await store.close()

    async def test_a_user_without_the_channel_is_told_so_and_still_reads(self, redis_url: str) -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.acl_setuser(
                "reader", True, passwords=["+pw"], keys="*", categories=["+@all"], reset_channels=True
            )
        store = RedisPolicyStore(redis_url.replace("//", "//reader:pw@"), 1.0)
        with pytest.raises(PolicyStoreDown, match="may not use these commands, keys or channels"):
            await store.append("bundle", a_policy(1), expected_version=None)
        await asyncio.wait_for(store.wait_for_change(0.05), DEADLINE_S)  # does not raise, does not spin
        assert await store.latest("bundle", "gate-a") is None
        await store.close()

    @pytest.mark.parametrize("key", ["gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"])
    async def test_a_key_of_another_type_is_logged_once_and_put_aside_by_the_next_write(
        self, redis_url: str, key: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.set(key, "not ours")
            for _ in range(3):
                assert await store.latest("bundle", "gate-a") is None
                assert await store.newest("bundle") is None
                assert await store.next_version("bundle") == 1
                assert await store.get("bundle", "gate-a", 1) is None
            assert len([record for record in caplog.records if "unreadable policy" in record.message]) == 1
            await store.append("bundle", a_policy(1), expected_version=None)
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await redis.get(f"{key}:unreadable") == b"not ours"
        await store.close()

    async def test_absurd_scores_do_not_use_up_the_versions(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            for key in ("gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"):
                await redis.zadd(key, {b"\xff": float("inf"), b"1": 1e300, b"2": -3, b"3": 0.5})
            assert await store.next_version("bundle") == 1
            await store.append("bundle", a_policy(1), expected_version=None)
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await store.newest("bundle") == a_policy(1)
        await store.close()

    async def test_an_index_entry_that_cannot_be_is_ignored_and_told_once(
        self, redis_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd("gatekeeper:policy:{bundle}", {"garbage": MAX_VERSION})
        for version in (1, 2, 3):
            assert await store.next_version("bundle") == version
            await store.append("bundle", a_policy(version), expected_version=version - 1 or None)
            assert await store.newest("bundle") == a_policy(version)
        assert len(warnings(caplog)) == 1
        assert "versions that cannot be" in caplog.text
        await store.close()

    async def test_an_index_full_of_gates_that_are_not_there_hides_none_that_is(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 5.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd(
                "gatekeeper:policy:{bundle}", {f"garbage {number}": 1_000 + number for number in range(3_000)}
            )
            await redis.zadd("gatekeeper:policy:{bundle}", {b"x" * 2**20: 5_000, b"\xff": 5_001})
        assert await store.newest("bundle") == a_policy(1)
        assert await store.next_version("bundle") == 5_002
        await store.close()

    async def test_two_documents_of_one_version_are_one(self, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            twins = {a_policy(7, note=note).model_dump_json(): 7 for note in ("a", "b")}
            await redis.zadd(gate_key("bundle", "gate-a"), {a_policy(6).model_dump_json(): 6} | twins)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(7, note="b"), a_policy(6)]
        assert await store.get("bundle", "gate-a", 7) == a_policy(7, note="b")
        assert "there is another one of that number" in caplog.text
        await store.close()

    async def test_a_version_is_found_among_thousands_of_unreadable_ones_of_its_number(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 5.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd(gate_key("bundle", "gate-a"), {f"~{number}": 1 for number in range(3_000)})
        assert await store.get("bundle", "gate-a", 1) == a_policy(1)
        await store.close()

    async def test_policies_among_garbage_are_read_where_nothing_can_be_removed(
        self, shared_redis: RedisServer, redis_url: str
    ) -> None:
        medium = redis_medium(redis_url)
        await medium.plant_many("bundle", "gate-a", documents(range(1, 4)) + garbage(range(4, 3_004)))
        with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as replica:
            store = RedisPolicyStore(replica.url, 5.0)
            assert await until(lambda: answers(store)) == a_policy(3)
            assert len(await store.history("bundle", "gate-a", 10)) == 3
            await store.close()

    async def test_messages_that_come_together_wake_once(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        await store.wait_for_change(DEADLINE_S)  # subscribes
        async with Redis.from_url(redis_url) as redis:
            await publish(redis, MESSAGES_AT_ONCE - 1)
            await asyncio.wait_for(store.wait_for_change(60), DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
            await publish(redis, 1)
            await asyncio.wait_for(waiting, DEADLINE_S)
        await store.close()

    async def test_a_flood_of_messages_ends_the_subscription_until_the_next_round(
        self, redis_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            for _ in range(3):
                await store.wait_for_change(DEADLINE_S)
                assert await redis.pubsub_numsub(CHANNEL) == [(CHANNEL.encode(), 1)]
                await publish(redis, 10 * MESSAGES_AT_ONCE)
                await store.wait_for_change(0.2)
                assert store._subscription is None
            await store.wait_for_change(DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await publish(redis, 1)
            await asyncio.wait_for(waiting, DEADLINE_S)
        assert caplog.text.count("flood of messages") == 1
        await store.close()

    async def test_a_lost_index_is_made_again(self, redis_url: str) -> None:
        """As when the server evicts one key of two."""
        store = RedisPolicyStore(redis_url, 1.0)
        await store.append("bundle", a_policy(3), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.delete("gatekeeper:policy:{bundle}")
        with pytest.raises(VersionMismatch):
            await store.append("bundle", a_policy(3), expected_version=3)
        await store.append("bundle", a_policy(4), expected_version=3)
        assert await store.next_version("bundle") == 5
        await store.close()

    def test_the_server_is_found(self) -> None:
        assert find_redis_server().is_file()


async def publish(redis: Redis, messages: int) -> None:
    """All of them at the same moment."""
    async with redis.pipeline() as transaction:
        for _ in range(messages):
            transaction.publish(CHANNEL, "bundle")
        await transaction.execute()
