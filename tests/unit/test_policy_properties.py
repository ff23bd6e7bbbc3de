"""Properties of live policies (replicas), on a real SQLite file and a real Redis: whatever the order of writers,
restarts and losses of the store, replicas agree, no version is given twice or goes down, and nothing acknowledged is
lost or changes afterwards.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import settings
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
from support.policy_runs import CHANGES, DEPTHS, FIELDS, KEPT, RedisRun, Run
from support.replicas import Replica

from service.errors import NotFound, VersionMismatch
from service.policy.document import Policy, PolicyReplacement

pytestmark = pytest.mark.usefixtures("few_kept")


class Replicas(RuleBasedStateMachine):
    """Up to four live policies of two gates on one medium, written to, restarted and bereft of their store."""

    live: Bundle[int] = Bundle("live")

    def __init__(self, new_run: Callable[[], Run]) -> None:
        super().__init__()
        self.medium = new_run()
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
        assert isinstance(self.medium, RedisRun)
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
        assert isinstance(self.medium, RedisRun)
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
            self.run(asyncio.sleep(0.002))  # not `until`: a condition runs the loop itself

    @invariant()
    def no_replica_shows_an_older_version_than_before(self) -> None:
        for number, replica in self.replicas.items():
            versions = [policy.version for policy in [*self.shown[number], *replica.changes[1:]]]
            assert versions == sorted(versions), versions
            assert replica.health == [True]


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_replicas_agree_and_never_show_an_older_policy(new_run: Callable[[], Run], depth: settings) -> None:
    run_state_machine_as_test(lambda: Replicas(new_run), settings=depth)
