"""The policy in force while its store is down: at the start and later. Real SQLite, real Redis."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.policies import DEADLINE_S, GATE_KEY, INDEX_KEY, a_policy
from support.redis_server import RedisServer
from support.replicas import CountingStore, eventually_stored, replica
from support.waiting import until

from service.errors import PolicyStoreDown
from service.policy.document import MAX_VERSION, PolicyReplacement
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore


class TestStartWhileTheStoreIsDown:
    """The process is ready all the same."""

    async def test_without_a_last_good_copy_the_default_is_in_force_and_is_stored_later(self) -> None:
        with RedisServer() as server:
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0)) as live:
                assert (live.snapshot.threshold, live.snapshot.version) == (0.5, 1)
                assert live.changes == [live.snapshot]
                assert live.health == [False]
                server.start()
                await until(lambda: live.store_up)
                assert await live.history(10) == [live.snapshot]
                assert live.health == [False, True]

    async def test_the_last_good_copy_is_in_force_and_is_given_to_an_empty_store(self, tmp_path: Path) -> None:
        path = tmp_path / "made" / "last_good.json"
        with RedisServer() as server:
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                left = await live.set(threshold=0.8)
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                assert live.snapshot == left
                server.start()
                await until(lambda: live.store_up)
                assert await live.history(10) == [left]
                assert live.changes == [left]

    async def test_a_made_up_default_gives_way_to_any_policy_in_the_store(self) -> None:
        """Even to one of the same version: the server was there all the time, but would not talk to us."""
        with RedisServer(None, "--requirepass", "secret") as server:
            async with (
                replica(RedisPolicyStore(server.url, 1.0)) as live,
                Redis.from_url(server.url, password="secret") as redis,
            ):
                assert live.snapshot.threshold == 0.5
                stored = a_policy(1)
                await redis.zadd(GATE_KEY, {stored.model_dump_json(): 1})
                await redis.config_set("requirepass", "")
                await until(lambda: live.snapshot == stored)
                assert await live.history(10) == [stored]

    async def test_a_wrong_password_is_a_store_that_is_down_and_stays_out_of_the_logs(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with RedisServer(None, "--requirepass", "right") as server:
            store = RedisPolicyStore(server.url.replace("//", "//:wr0ng-secret@"), 1.0)
            async with replica(store) as live:
                assert live.health == [False]
                with pytest.raises(PolicyStoreDown) as caught:
                    await live.set(threshold=0.8)
        assert "wr0ng-secret" not in caplog.text + caught.value.detail
        assert "refuses our user name or password" in caplog.text

    async def test_a_database_that_is_none_is_a_store_that_is_down_until_it_is_moved_away(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.db"
        path.write_bytes(b"no database" * 1000)
        async with replica(SqlitePolicyStore(path)) as live:
            assert (live.snapshot.threshold, live.store_up) == (0.5, False)
            path.unlink()
            await until(lambda: live.store_up)
            assert await live.history(10) == [live.snapshot]

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b"\xff",
            b"null",
            b"[" * 60_000,
            b'{"a": 1' + b', "a": 1' * 1_000_000 + b"}",
            a_policy(MAX_VERSION).model_dump_json().encode(),
            a_policy(9).model_dump_json().replace("2026-01-02T00:00:00Z", "0001-01-01T00:00:00+14:00").encode(),
            a_policy(9, "gate-b").model_dump_json().encode(),
        ],
        ids=["json", "utf-8", "null", "deep", "long", "version", "moment", "another gate's"],
    )
    async def test_a_last_good_copy_that_is_unreadable_or_anothers_is_left_alone(
        self, content: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "last_good.json"
        path.write_bytes(content)
        with RedisServer() as server:
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                assert live.snapshot.threshold == 0.5
        assert path.read_bytes() == content, "a made-up default is not worth keeping"

    async def test_a_last_good_copy_that_cannot_be_written_is_logged_and_no_more(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        path = tmp_path / "file" / "last_good.json"
        async with replica(SqlitePolicyStore(tmp_path / "policy.db"), last_good_path=path) as live:
            assert (await live.set(threshold=0.8)).threshold == 0.8
        assert "cannot keep the last good policy" in caplog.text


class TestStoreFailsLater:
    """The last known policy goes on, and nothing is lost."""

    async def test_a_killed_redis_stops_only_writes_and_an_empty_one_gets_the_policy_back(self) -> None:
        with RedisServer() as server:
            async with (
                replica(RedisPolicyStore(server.url, 1.0)) as one,
                replica(RedisPolicyStore(server.url, 1.0)) as two,
            ):
                await one.set(threshold=0.7)
                policy = await two.set(deferral="off")
                await until(lambda: one.snapshot == policy)
                server.stop()
                await until(lambda: not one.store_up and not two.store_up)
                with pytest.raises(PolicyStoreDown) as caught:
                    await one.set(threshold=0.9)
                assert caught.value.retry_after_s
                assert one.snapshot == two.snapshot == policy

                server.start()
                await until(lambda: one.store_up and two.store_up)
                assert await one.history(10) == [policy]
                assert one.snapshot == two.snapshot == policy
                after = await two.set(threshold=0.9)
                assert after.version > policy.version
                await until(lambda: one.snapshot == after)

    async def test_a_hung_redis_costs_writers_its_timeout_and_readers_nothing(self) -> None:
        with RedisServer() as server:
            async with replica(RedisPolicyStore(server.url, 0.2)) as live:
                before = live.snapshot
                server.pause()
                async with asyncio.timeout(DEADLINE_S):
                    with pytest.raises(PolicyStoreDown):
                        await live.set(threshold=0.9)
                await until(lambda: not live.store_up)
                assert live.snapshot == before
                server.resume()
                await until(lambda: live.store_up)
                # The write that was given up may or may not have been made; either way both sides agree.
                assert (await live.history(1))[0] == live.snapshot

    async def test_writers_who_wait_behind_a_hung_redis_fail_with_the_first(self) -> None:
        with RedisServer() as server:
            store = CountingStore(server.url, 0.2)
            async with replica(store, poll_s=60) as live:
                server.pause()
                asked = store.asked
                results = await asyncio.gather(
                    *(live.set(threshold=n / 100) for n in range(20)), return_exceptions=True
                )
                assert all(isinstance(result, PolicyStoreDown) and result.retry_after_s for result in results)
                assert store.asked - asked <= 2, "the first writer, and the follower where its round came in between"
                server.resume()

    async def test_writers_do_not_wait_for_a_redis_that_is_known_to_be_down(self) -> None:
        with RedisServer() as server:
            store = CountingStore(server.url, 0.2)
            async with replica(store) as live:
                server.pause()
                await until(lambda: not live.store_up)
                asked = store.asked
                writes = [live.set(threshold=0.8), live.rollback(1, updated_by="operator")]
                writes.append(live.replace(PolicyReplacement(threshold=0.8), updated_by="operator", if_match=1))
                for write in writes:
                    with pytest.raises(PolicyStoreDown, match="in time") as caught:
                        await write
                    assert caught.value.retry_after_s
                assert store.asked == asked, "no writer asked, and none let the follower have a turn"
                server.resume()
                await until(lambda: live.store_up)
                assert (await live.set(threshold=0.8)).threshold == 0.8

    async def test_a_store_that_fell_back_is_given_the_newer_policy(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        """As after a failover to a replica that had not seen the last write."""
        async with replica(redis_store()) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                transaction.zadd(INDEX_KEY, {"gate-a": policy.version - 1})
                await transaction.execute()
            await eventually_stored(redis, policy)
            assert live.snapshot == policy

    async def test_an_unreadable_policy_is_logged_once_and_replaced_by_the_one_in_force(
        self, redis_store: Callable[[], PolicyStore], redis: Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replica(redis_store(), poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                transaction.zadd(GATE_KEY, {"garbage": policy.version})
                await transaction.execute()
            await until(lambda: live.snapshot.version > policy.version)
            assert live.snapshot.model_copy(update={"version": policy.version}) == policy
            assert (await live.history(1))[0] == live.snapshot
            assert [change.threshold for change in live.changes[live.changes.index(policy) :]] == [0.8, 0.8]
            await live.set(threshold=0.7)
        assert caplog.text.count("unreadable policy") == 1

    @pytest.mark.parametrize("key", [INDEX_KEY, GATE_KEY])
    async def test_a_key_of_the_wrong_type_is_survived_and_written_past(
        self, redis_store: Callable[[], PolicyStore], redis: Redis, key: str
    ) -> None:
        async with replica(redis_store(), poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.delete(key)
                transaction.lpush(key, "not", "ours")
                await transaction.execute()
            after = await live.set(deferral="off")
            assert (after.threshold, after.deferral) == (0.8, "off")
            assert after.version > policy.version
            assert (await live.history(1))[0] == after

    async def test_on_a_read_only_replica_policies_are_read_but_not_written(
        self, redis_store: Callable[[], PolicyStore], shared_redis: RedisServer
    ) -> None:
        async with replica(redis_store()) as writer:
            await writer.set(threshold=0.8)
            with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as copy:
                async with replica(RedisPolicyStore(copy.url, 1.0)) as reader:
                    await until(lambda: reader.snapshot == writer.snapshot)
                    with pytest.raises(PolicyStoreDown, match="read-only"):
                        await reader.set(threshold=0.9)
                    policy = await writer.set(threshold=0.7)
                    await until(lambda: reader.snapshot == policy)

    async def test_two_gates_of_one_name_never_share_a_number_after_a_wipe(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        async with replica(redis_store()) as one, replica(redis_store(), gate_digest="gate-b") as two:
            await two.set(threshold=0.7)
            await redis.flushall()
            await eventually_stored(redis, one.snapshot, two.snapshot)
            first = await one.set(threshold=0.6)
            second = await two.set(threshold=0.8)
            assert second.version > first.version
            assert first.version > 3

    async def test_a_listener_that_raises_does_not_end_the_following(
        self, open_store: Callable[[], PolicyStore], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            two._on_change = lambda point: [][point.policy_version]
            await one.set(threshold=0.7)
            await until(lambda: "Following the policy store failed" in caplog.text)
            two._on_change = lambda point: two.changes.append(point.policy)
            policy = await one.set(threshold=0.8)
            await until(lambda: two.changes[-1] == policy)
