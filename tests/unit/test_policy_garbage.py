"""The policy in force whatever its store contains. Real SQLite, real Redis."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from redis.asyncio import Redis
from support.policies import GATE_KEY, INDEX_KEY, a_policy
from support.redis_server import RedisServer
from support.replicas import CountingStore, replica
from support.waiting import until

from service.errors import NotFound
from service.policy.document import MAX_VERSION, PolicyPatch, PolicyReplacement
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore


class TestGarbage:
    """Whatever a store contains, the policy goes on, can be changed and is followed."""

    @pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
    async def test_an_index_entry_of_the_highest_version_starts_no_loop(
        self, lost: bool, shared_redis: RedisServer, redis: Redis
    ) -> None:
        """What was written back under a number that nobody reads was written back again at once, and for ever."""
        store = CountingStore(shared_redis.url, 1.0)
        async with replica(store, poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zadd(INDEX_KEY, {"garbage": MAX_VERSION})
                if lost:
                    transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                await transaction.execute()
            asked, appended = store.asked, store.appended
            await until(lambda: store.asked > asked + 20)
            assert store.appended - appended <= lost
            assert (await live.history(1))[0] == live.snapshot
            after = await live.set(threshold=0.7)
            assert policy.version < after.version <= policy.version + 2

    async def test_a_start_among_garbage_of_the_highest_version(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        await redis.zadd(INDEX_KEY, {"garbage": MAX_VERSION})
        await redis.zadd(GATE_KEY, {"garbage": MAX_VERSION, a_policy(MAX_VERSION).model_dump_json(): MAX_VERSION})
        async with replica(redis_store()) as live:
            assert (live.snapshot.version, live.health) == (1, [True])
            assert (await live.set(threshold=0.8)).version == 2

    async def test_thousands_of_unreadable_policies_start_no_loop_and_cost_no_history(
        self, shared_redis: RedisServer, redis: Redis
    ) -> None:
        """Trimming counted them, and so removed what had just been written."""
        store = CountingStore(shared_redis.url, 5.0)
        async with replica(store, poll_s=0.02) as live:
            for number in range(10):
                await live.set(threshold=number / 10)
            await redis.zadd(GATE_KEY, {f"garbage {number}": 1_000 + number for number in range(3_000)})
            policy = await live.set(threshold=0.95)
            asked, appended = store.asked, store.appended
            await until(lambda: store.asked > asked + 20)
            assert store.appended == appended
            assert live.snapshot == policy
            assert len(await live.history(100)) == 12
            assert (await live.rollback(3, updated_by="operator")).threshold == 0.1

    @pytest.mark.parametrize(
        "document", ["garbage", a_policy(MAX_VERSION).model_dump_json()], ids=["garbage", "policy"]
    )
    async def test_every_call_goes_past_a_version_that_cannot_be(
        self, open_store: Callable[[], PolicyStore], document: str
    ) -> None:
        async with replica(open_store(), poll_s=0.02) as live:
            store = live._store
            if isinstance(store, RedisPolicyStore):
                await store._redis.zadd(GATE_KEY, {document: MAX_VERSION})
                await store._redis.zadd(INDEX_KEY, {"gate-a": MAX_VERSION})
            else:
                assert isinstance(store, SqlitePolicyStore)
                with closing(sqlite3.connect(store._path)) as database, database:
                    values = ("bundle", "gate-a", MAX_VERSION, document)
                    database.execute("INSERT INTO policy_versions VALUES (?, ?, ?, ?)", values)
            assert (await live.set(threshold=0.8)).version == 2
            replacement = PolicyReplacement(threshold=0.7)
            assert (await live.replace(replacement, updated_by="operator", if_match=2)).version == 3
            assert (await live.rollback(2, updated_by="operator")).threshold == 0.8
            assert live.proposed(PolicyPatch(threshold=0.6)).threshold == 0.6
            assert [policy.version for policy in await live.history(10)] == [4, 3, 2, 1]
            with pytest.raises(NotFound):
                await live.rollback(MAX_VERSION, updated_by="operator")
