"""Replicas that follow one store, and gates that come and go."""

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from support.policies import DEADLINE_S, GATE_KEY, a_policy
from support.replicas import Replica, replica
from support.waiting import until

from service.errors import PolicyStoreDown
from service.policy.store import PolicyStore


class TestFollowing:
    """Replicas on one store, and gates that come and go."""

    async def test_replicas_see_each_others_changes(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            assert one.snapshot == two.snapshot
            for writer, reader, threshold in ((one, two, 0.7), (two, one, 0.8)):
                policy = await writer.set(threshold=threshold)
                await until(lambda reader=reader, policy=policy: reader.snapshot == policy)  # type: ignore[misc]
                assert reader.changes[-1] == policy
            assert one.health == two.health == [True]

    async def test_a_message_wakes_a_replica_long_before_its_poll(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        async with replica(redis_store(), poll_s=60) as one, replica(redis_store(), poll_s=60) as two:
            policy = await one.set(threshold=0.7)
            await until(lambda: two.snapshot == policy)

    async def test_a_lost_message_costs_one_poll(self, redis_store: Callable[[], PolicyStore], redis: Redis) -> None:
        async with replica(redis_store(), poll_s=0.1) as live:
            policy = a_policy(2)
            await redis.zadd(GATE_KEY, {policy.model_dump_json(): 2})
            await until(lambda: live.snapshot == policy)

    async def test_replicas_that_start_at_once_agree_on_one_first_version(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        lives = [Replica(open_store(), "gate-a", None, 0.2) for _ in range(5)]
        await asyncio.gather(*(live.start() for live in lives))
        assert len({live.snapshot.model_dump_json() for live in lives}) == 1
        assert await lives[0].history(10) == [lives[0].snapshot]
        for live in lives:
            await live.close()
            await live._store.close()

    async def test_a_restart_finds_the_policy_again(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policy = await live.set(threshold=0.8)
        async with replica(open_store()) as live:
            assert live.snapshot == policy
            assert live.changes[-1] == policy

    async def test_a_new_gate_starts_from_its_default_threshold_and_the_newest_other_fields(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as old:
            last = await old.set(threshold=0.8, deferral="off", on_remote_failure="fail", remote_timeout_s=3)
        async with replica(open_store(), gate_digest="gate-b") as new:
            assert (new.snapshot.threshold, new.snapshot.gate_digest) == (0.5, "gate-b")
            assert (new.snapshot.deferral, new.snapshot.on_remote_failure) == ("off", "fail")
            assert (new.snapshot.remote_timeout_s, new.snapshot.version) == (3.0, last.version + 1)
            assert f"version {last.version}" in new.snapshot.note
            assert await new.history(10) == [new.snapshot]
        async with replica(open_store()) as old:
            assert old.snapshot == last, "the old gate's policy is still its own"

    async def test_following_ends_at_whatever_moment_it_is_closed(self, open_store: Callable[[], PolicyStore]) -> None:
        """A cancellation may be swallowed on its way through a client library."""
        for steps in range(40):
            async with asyncio.timeout(DEADLINE_S), replica(open_store(), poll_s=0.001) as live:
                for _ in range(steps):
                    await asyncio.sleep(0)
            assert live._follower is not None
            assert live._follower.done()

    async def test_the_snapshot_outlives_the_close(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policy = await live.set(threshold=0.8)
        assert live.snapshot == policy
        with pytest.raises(PolicyStoreDown):
            await live.set(threshold=0.9)
