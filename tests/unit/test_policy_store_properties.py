"""Properties of the policy's stores, on a real SQLite file and a real Redis.

Whatever the order of writers, readers and restarts, no version is given twice or goes down, one of two equal claims
wins, and nothing acknowledged is lost or changes afterwards. Writers race in threads of their own.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.policy_runs import DEPTHS, GATES, KEPT, NAMES, STORED, RedisRun, Run

from service.errors import PolicyStoreDown, VersionMismatch
from service.policy.document import Policy
from service.policy.store import PolicyStore

pytestmark = pytest.mark.usefixtures("few_kept")


def a_policy(version: int, gate_digest: str, **fields: Any) -> Policy:
    stamp = {"updated_at": datetime.now(UTC), "updated_by": "test"}
    return Policy.model_validate({"version": version, "gate_digest": gate_digest, "threshold": 0.5} | stamp | fields)


def race(claims: list[Callable[[PolicyStore], Awaitable[Any]]], open_store: Callable[[], PolicyStore]) -> list[Any]:
    """All claims at once, each in a thread with a store and an event loop of its own, as in processes of their own.

    A result is what the claim returned, or the VersionMismatch or PolicyStoreDown that it raised.
    """
    start = threading.Barrier(len(claims))
    results: list[Any] = [None] * len(claims)

    async def run(number: int) -> None:
        store = open_store()
        try:
            await store.next_version("connects")
            await asyncio.to_thread(start.wait, 20)
            results[number] = await claims[number](store)
        except (VersionMismatch, PolicyStoreDown) as error:
            results[number] = error
        finally:
            await store.close()

    threads = [threading.Thread(target=asyncio.run, args=(run(number),)) for number in range(len(claims))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class StoreMachine(RuleBasedStateMachine):
    """Two stores on one medium against a list of what was acknowledged."""

    def __init__(self, new_run: Callable[[], Run]) -> None:
        super().__init__()
        self.medium = new_run()
        self.runner = asyncio.Runner()
        self.stores = [self.medium.open_store(), self.medium.open_store()]
        self.kept: dict[tuple[str, str], list[Policy]] = {}  # oldest first

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self.runner.run(awaited())

    def teardown(self) -> None:
        for store in self.stores:
            self.run(store.close())
        self.runner.close()
        self.medium.close()

    def latest(self, name: str, gate: str) -> Policy | None:
        return self.kept.get((name, gate), [None])[-1]

    def highest(self, name: str) -> int:
        """Over all gates of the name: the last one of each gate is never trimmed."""
        return max((policies[-1].version for (of, _), policies in self.kept.items() if of == name), default=0)

    def acknowledge(self, name: str, policy: Policy) -> None:
        policies = self.kept.setdefault((name, policy.gate_digest), [])
        policies.append(policy)
        del policies[:-KEPT]

    @rule(
        which=st.integers(0, 1),
        name=NAMES,
        gate=GATES,
        fields=STORED,
        skipped=st.sampled_from([0, 0, 0, 1, 5, -1, -3]),
        stale=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def append(self, which: int, name: str, gate: str, fields: dict[str, Any], skipped: int, stale: int) -> None:
        """A true claim is stored and a false one refused, whatever its falsehood."""
        latest = self.latest(name, gate)
        expected = None if latest is None else latest.version
        policy = a_policy(max(1, self.highest(name) + 1 + skipped), gate, **fields)
        true_claim = stale == 0 and policy.version > self.highest(name)
        claimed = expected if stale == 0 else (expected or 0) + stale
        work = self.stores[which].append(name, policy, expected_version=claimed)
        if true_claim:
            self.run(work)
            self.acknowledge(name, policy)
        else:
            with pytest.raises(VersionMismatch):
                self.run(work)

    @rule(which=st.integers(0, 1), name=NAMES, gate=GATES)
    def append_more_than_are_kept(self, which: int, name: str, gate: str) -> None:
        for _ in range(KEPT + 1):
            self.append(which, name, gate, {}, 0, 0)

    @rule(name=NAMES, gates=st.lists(GATES, min_size=2, max_size=5))
    def race_for_one_version(self, name: str, gates: list[str]) -> None:
        """Of claims to the same version, of one gate or several, exactly one is stored."""
        version = self.highest(name) + 1
        policies = [a_policy(version, gate, note=f"racer {number}") for number, gate in enumerate(gates)]

        def claim(policy: Policy) -> Callable[[PolicyStore], Awaitable[Policy]]:
            latest = self.latest(name, policy.gate_digest)

            async def append(store: PolicyStore) -> Policy:
                await store.append(name, policy, expected_version=None if latest is None else latest.version)
                return policy

            return append

        results = race([claim(policy) for policy in policies], self.medium.open_store)
        won = [result for result in results if isinstance(result, Policy)]
        assert len(won) == 1, results
        assert all(isinstance(result, VersionMismatch) for result in results if result is not won[0]), results
        self.acknowledge(name, won[0])

    @rule(name=NAMES, gates=st.lists(GATES, min_size=2, max_size=4))
    def race_until_stored(self, name: str, gates: list[str]) -> None:
        """Writers that read again when refused all get through, each with a version of its own."""

        def writer(gate: str) -> Callable[[PolicyStore], Awaitable[Policy]]:
            async def write(store: PolicyStore) -> Policy:
                while True:
                    latest = await store.latest(name, gate)
                    policy = a_policy(await store.next_version(name), gate)
                    with suppress(VersionMismatch):
                        expected = None if latest is None else latest.version
                        await store.append(name, policy, expected_version=expected)
                        return policy

            return write

        policies = race([writer(gate) for gate in gates], self.medium.open_store)
        assert all(isinstance(policy, Policy) for policy in policies), policies
        for policy in sorted(policies, key=lambda policy: policy.version):
            assert policy.version > self.highest(name)
            self.acknowledge(name, policy)

    @rule(which=st.integers(0, 1), cut=st.integers(0, 3))
    def reopen(self, which: int, cut: int) -> None:
        """A store that is closed, in the middle of a read too, leaves everything behind for the next one."""
        store = self.stores[which]

        async def close() -> None:
            reading = asyncio.ensure_future(store.history("bundle", "gate-a", 10))
            for _ in range(cut):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await store.close()

        self.run(close())
        self.stores[which] = self.medium.open_store()

    @precondition(lambda self: self.medium.loses_everything)
    @rule()
    def lose_everything(self) -> None:
        assert isinstance(self.medium, RedisRun)
        self.medium.empty()
        self.kept.clear()

    @rule(which=st.integers(0, 1), name=NAMES, gate=GATES, limit=st.integers(1, KEPT + 2))
    def read(self, which: int, name: str, gate: str, limit: int) -> None:
        """History is newest first, complete up to the limit, and as it was acknowledged."""
        store, kept = self.stores[which], self.kept.get((name, gate), [])
        assert self.run(store.history(name, gate, limit)) == kept[::-1][:limit]
        for version in range(1, self.highest(name) + 2):
            found = [policy for policy in kept if policy.version == version]
            assert self.run(store.get(name, gate, version)) == (found[0] if found else None)

    @invariant()
    def both_stores_know_the_newest(self) -> None:
        for store in self.stores:
            for name, gate in self.kept:
                assert self.run(store.latest(name, gate)) == self.latest(name, gate)
                newest = self.run(store.newest(name))
                assert newest is not None
                assert newest.version == self.highest(name) == self.run(store.next_version(name)) - 1


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_store_keeps_what_it_acknowledged_and_refuses_what_is_stale(
    new_run: Callable[[], Run], depth: settings
) -> None:
    run_state_machine_as_test(lambda: StoreMachine(new_run), settings=depth)
