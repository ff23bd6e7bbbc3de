"""Properties of the policy's keeping, on a real SQLite file and a real Redis: whatever the order of writers, readers,
replicas and restarts, no version is given twice or goes down, one of two equal claims wins, and nothing acknowledged is
lost or changes afterwards.

Two machines: the stores alone, and live policies (replicas) on top of them. Writers race in threads of their own.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from support.redis_server import RedisServer
from test_policy import Replica

from service.errors import NotFound, PolicyStoreDown, VersionMismatch
from service.policy import store as policy_store
from service.policy.document import Policy, PolicyReplacement, PolicyStore
from service.policy.store import RedisPolicyStore, SqlitePolicyStore

KEPT = 3  # instead of 1,000, so that a short run reaches it
NAMES = st.sampled_from(["bundle", "b:{undle}"])
GATES = st.sampled_from(["gate-a", "gate-b", "gate-c"])
FIELDS = {
    "threshold": st.floats(0.0, 1.0),
    "deferral": st.sampled_from(["on", "off"]),
    "on_remote_failure": st.sampled_from(["degrade", "fail"]),
    "remote_timeout_s": st.floats(0.001, 600.0),
    "note": st.text(max_size=20),
}
CHANGES = st.fixed_dictionaries({}, optional=FIELDS)
Race = tuple[str, int]  # how a racer's claim ended, and its version

DEFAULT = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
DEEP = settings(DEFAULT, max_examples=25, stateful_step_count=40, derandomize=False, database=None, print_blob=True)
DEPTHS = [
    pytest.param(DEFAULT, id="default"),
    pytest.param(DEEP, id="deep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


class Medium:
    """Where the stores of one run keep their policies; empty at first."""

    loses_everything = False

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="policy-")
        self.folder = Path(self._folder.name)

    def open_store(self) -> PolicyStore:
        return SqlitePolicyStore(self.folder / "policy.db")

    def close(self) -> None:
        self._folder.cleanup()


class RedisMedium(Medium):
    """A Redis server that the runs share, one after the other."""

    loses_everything = True

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self._url = server.url
        self.empty()

    def open_store(self) -> PolicyStore:
        return RedisPolicyStore(self._url, 5.0)

    def empty(self) -> None:
        """As after a restart that has lost everything."""
        with Redis.from_url(self._url) as redis:
            redis.flushall()

    def lose(self, gate_digest: str, version: int) -> None:
        """One version, and that it was the newest."""
        with Redis.from_url(self._url) as redis, redis.pipeline() as transaction:
            transaction.zremrangebyscore(f"gatekeeper:policy:{{bundle}}:{gate_digest}", version, version)
            transaction.zadd("gatekeeper:policy:{bundle}", {gate_digest: version - 1})
            transaction.execute()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def new_medium(request: pytest.FixtureRequest) -> Callable[[], Medium]:
    if request.param == "sqlite":
        return Medium
    redis = request.getfixturevalue("server")
    return lambda: RedisMedium(redis)


@pytest.fixture(autouse=True)
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_store, "VERSIONS_KEPT", KEPT)


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

    def __init__(self, new_medium: Callable[[], Medium]) -> None:
        super().__init__()
        self.medium = new_medium()
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
        fields=CHANGES,
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
        assert isinstance(self.medium, RedisMedium)
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


class Replicas(RuleBasedStateMachine):
    """Up to four live policies of two gates on one medium, written to, restarted and bereft of their store."""

    live: Bundle[int] = Bundle("live")

    def __init__(self, new_medium: Callable[[], Medium]) -> None:
        super().__init__()
        self.medium = new_medium()
        self.runner = asyncio.Runner()
        self.replicas: dict[int, Replica] = {}
        self.gates: dict[int, str] = {}
        self.shown: dict[int, list[Policy]] = {}  # by replica, over its restarts
        self.kept: dict[str, list[Policy]] = {}  # by gate, oldest first: what the store must have
        self.all_versions: set[int] = set()

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self.runner.run(awaited())

    def teardown(self) -> None:
        for number in list(self.replicas):
            self.stop(number)
        self.runner.close()
        self.medium.close()

    def start(self, number: int) -> None:
        gate = self.gates[number]
        newest = max((policies[-1] for policies in self.kept.values()), key=lambda p: p.version, default=None)
        path = self.medium.folder / f"last-good-{number}.json"
        replica = self.replicas[number] = Replica(self.medium.open_store(), gate, path, poll_s=0.05)
        self.run(replica.start())
        if gate not in self.kept:
            first = replica.snapshot
            assert (first.threshold, first.gate_digest) == (0.5, gate)
            if newest is not None:
                assert first.deferral == newest.deferral
                assert first.on_remote_failure == newest.on_remote_failure
                assert first.remote_timeout_s == newest.remote_timeout_s
            self.acknowledge(first)
        assert replica.snapshot == self.kept[gate][-1]
        # The first that is told is made up before the store has been asked: only then may the version be a lower one.
        self.shown[number] += replica.changes[-1:]

    def stop(self, number: int) -> None:
        replica = self.replicas.pop(number)
        self.run(replica.close())
        self.run(replica._store.close())
        self.shown[number] += [p for p in replica.changes[1:] if p.version > self.shown[number][-1].version]

    def acknowledge(self, policy: Policy) -> None:
        assert policy.version not in self.all_versions, "a version is given once"
        assert policy.version > max(self.all_versions, default=0), "versions never go down"
        self.all_versions.add(policy.version)
        policies = self.kept.setdefault(policy.gate_digest, [])
        policies.append(policy)
        del policies[:-KEPT]

    def of_gate(self, gate: str) -> list[Replica]:
        return [replica for number, replica in self.replicas.items() if self.gates[number] == gate]

    @initialize(target=live)
    def begin(self) -> Any:
        for number, gate in enumerate(["gate-a", "gate-a", "gate-b"]):
            self.gates[number], self.shown[number] = gate, []
            self.start(number)
        return multiple(0, 1, 2)

    @rule(number=live, changes=CHANGES, conditional=st.sampled_from([None, "now", "stale"]))
    def patch(self, number: int, changes: dict[str, Any], conditional: str | None) -> None:
        gate = self.gates[number]
        before = self.kept[gate][-1]
        if_match = {None: None, "now": before.version, "stale": before.version - 1}[conditional]
        work = self.replicas[number].set(if_match=if_match, **changes)
        if conditional == "stale":
            with pytest.raises(VersionMismatch):
                self.run(work)
            return
        policy = self.run(work)
        if not changes:
            assert policy == before
            return
        assert policy.model_dump(include=set(FIELDS)) == before.model_dump(include=set(FIELDS)) | {"note": ""} | changes
        self.acknowledge(policy)

    @rule(number=live, threshold=FIELDS["threshold"], others=CHANGES)
    def replace(self, number: int, threshold: float, others: dict[str, Any]) -> None:
        """What is left out takes its default."""
        replacement = PolicyReplacement.model_validate(others | {"threshold": threshold})
        if_match = self.kept[self.gates[number]][-1].version
        policy = self.run(self.replicas[number].replace(replacement, updated_by="operator", if_match=if_match))
        assert policy.model_dump(include=set(FIELDS)) == replacement.model_dump(include=set(FIELDS))
        self.acknowledge(policy)

    @rule(number=live, version=st.integers(0, 30))
    def rollback_to_any(self, number: int, version: int) -> None:
        """Another gate's version, or one that is forgotten or never was, is not found."""
        if version not in {policy.version for policy in self.kept[self.gates[number]]}:
            with pytest.raises(NotFound):
                self.run(self.replicas[number].rollback(version, updated_by="operator"))

    @rule(number=live, back=st.integers(0, KEPT - 1))
    def rollback(self, number: int, back: int) -> None:
        """A new version with the old one's fields."""
        kept = self.kept[self.gates[number]]
        old = kept[-1 - min(back, len(kept) - 1)]
        policy = self.run(self.replicas[number].rollback(old.version, updated_by="operator"))
        same = {"threshold", "deferral", "on_remote_failure", "remote_timeout_s", "gate_digest"}
        assert policy.model_dump(include=same) == old.model_dump(include=same)
        self.acknowledge(policy)

    @rule(gate=st.sampled_from(["gate-a", "gate-b"]), writers=st.integers(2, 6))
    def race_with_the_same_if_match(self, gate: str, writers: int) -> None:
        """Through all replicas at once: exactly one is stored, the others are told that they are late."""
        replicas = self.of_gate(gate)
        if not replicas:
            return
        version = self.kept[gate][-1].version
        patches = [
            replicas[number % len(replicas)].set(if_match=version, note=f"racer {number}") for number in range(writers)
        ]
        results = self.run(asyncio.gather(*patches, return_exceptions=True))
        won = [result for result in results if isinstance(result, Policy)]
        assert len(won) == 1, results
        assert sum(isinstance(result, VersionMismatch) for result in results) == writers - 1, results
        self.acknowledge(won[0])

    @rule(writers=st.integers(2, 6))
    def race_without_condition(self, writers: int) -> None:
        """Patches of both gates at once all count, and build on each other."""
        replicas = list(self.replicas.values())
        if not replicas:
            return
        patches = [replicas[number % len(replicas)].set(remote_timeout_s=number + 1.0) for number in range(writers)]
        policies = self.run(asyncio.gather(*patches))
        for policy in sorted(policies, key=lambda policy: policy.version):
            self.acknowledge(policy)

    @rule(number=live)
    def restart(self, number: int) -> None:
        self.stop(number)
        self.start(number)

    @rule(target=live, gate=st.sampled_from(["gate-a", "gate-c"]))
    @precondition(lambda self: len(self.gates) < 4)
    def another_replica(self, gate: str) -> int:
        number = len(self.gates)
        self.gates[number], self.shown[number] = gate, []
        self.start(number)
        return number

    @precondition(lambda self: self.medium.loses_everything)
    @rule()
    def lose_everything(self) -> None:
        """The replicas give an emptied store their policy back, in any order of gates."""
        assert isinstance(self.medium, RedisMedium)
        self.replicas_follow()
        self.medium.empty()
        in_force = {gate: policies[-1] for gate, policies in self.kept.items()}
        self.kept = {gate: [] for gate in in_force}
        for gate, before in in_force.items():
            self.is_given_back(gate, before)
        versions = [policies[-1].version for policies in self.kept.values()]
        assert len(versions) == len(set(versions)), "two gates of one name share no number"

    @precondition(lambda self: self.medium.loses_everything)
    @rule(gate=st.sampled_from(["gate-a", "gate-b"]))
    def lose_the_newest(self, gate: str) -> None:
        """As after a failover to a copy that had not seen the last write."""
        assert isinstance(self.medium, RedisMedium)
        self.replicas_follow()
        before = self.kept[gate].pop()
        self.medium.lose(gate, before.version)
        self.is_given_back(gate, before)

    def is_given_back(self, gate: str, before: Policy) -> None:
        """The policy in force is kept again: under its number, or a new one where another gate was first."""
        replicas = self.of_gate(gate)

        def given_back() -> bool:
            stored = self.run(replicas[0].history(1))
            return stored != self.kept[gate][-1:] and all([replica.snapshot] == stored for replica in replicas)

        self.eventually(given_back)
        after = replicas[0].snapshot
        assert after.model_copy(update={"version": before.version}) == before
        assert after.version >= before.version
        self.all_versions.add(after.version)
        self.kept[gate].append(after)

    @rule(number=live, limit=st.integers(1, KEPT + 2))
    def history(self, number: int, limit: int) -> None:
        """From any replica: newest first, complete up to the limit, as acknowledged."""
        assert self.run(self.replicas[number].history(limit)) == self.kept[self.gates[number]][::-1][:limit]

    @rule()
    def replicas_follow(self) -> None:
        """All replicas of a gate come to show what was acknowledged last."""
        for gate, policies in self.kept.items():
            self.eventually(lambda g=gate, p=policies[-1]: all(r.snapshot == p for r in self.of_gate(g)))

    def eventually(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < deadline, [(self.gates[n], r.snapshot) for n, r in self.replicas.items()]
            self.run(asyncio.sleep(0.002))

    @invariant()
    def no_replica_shows_an_older_version_than_before(self) -> None:
        for number, replica in self.replicas.items():
            versions = [policy.version for policy in [*self.shown[number], *replica.changes[1:]]]
            assert versions == sorted(versions), versions
            assert replica.health == [True]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_store_keeps_what_it_acknowledged_and_refuses_what_is_stale(
    new_medium: Callable[[], Medium], depth: settings
) -> None:
    run_state_machine_as_test(lambda: StoreMachine(new_medium), settings=depth)


@pytest.mark.parametrize("depth", DEPTHS)
def test_replicas_agree_and_never_show_an_older_policy(new_medium: Callable[[], Medium], depth: settings) -> None:
    run_state_machine_as_test(lambda: Replicas(new_medium), settings=depth)
