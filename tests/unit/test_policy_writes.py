"""Changes of the policy: PATCH, PUT, rollback and history, and what refuses them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.policies import a_policy
from support.replicas import replica
from support.waiting import until

from service.errors import GateDigestMismatch, InvalidRequest, NotFound, VersionMismatch
from service.policy.document import Policy, PolicyPatch, PolicyReplacement
from service.policy.store import PolicyStore


class TestRefusedWrites:
    """A refused write changes nothing."""

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"threshold": 1.5}, InvalidRequest, "between 0 and 1"),
            ({"threshold": -1e-9}, InvalidRequest, "between 0 and 1"),
            ({"gate_digest": "gate-b"}, GateDigestMismatch, "gate-a"),
            ({"threshold": 0.8, "if_match": 7}, VersionMismatch, "at version 1, not 7"),
            ({"if_match": 7}, VersionMismatch, "at version 1, not 7"),
        ],
    )
    async def test_a_refusal_says_why(
        self, open_store: Callable[[], PolicyStore], change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        async with replica(open_store()) as live:
            before = live.snapshot
            with pytest.raises(error, match=words):
                await live.set(**change)
            if "if_match" not in change:
                replacement = PolicyReplacement.model_validate({"threshold": 0.5} | change)
                with pytest.raises(error, match=words):
                    await live.replace(replacement, updated_by="operator", if_match=1)
            assert live.snapshot == before
            assert await live.history(10) == [before]

    @pytest.mark.parametrize("version", [-1, 0, 2, 10**30])
    async def test_rollback_to_a_version_that_is_not_kept_is_not_found(
        self, open_store: Callable[[], PolicyStore], version: int
    ) -> None:
        async with replica(open_store()) as live:
            with pytest.raises(NotFound, match=str(version)):
                await live.rollback(version, updated_by="operator")

    async def test_if_match_compares_with_the_store_not_with_a_stale_snapshot(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store(), poll_s=60) as one, replica(open_store(), poll_s=60) as two:
            stale = two.snapshot.version
            policy = await one.set(threshold=0.7)
            with pytest.raises(VersionMismatch, match=f"at version {policy.version}"):
                await two.set(if_match=stale, threshold=0.8)
            assert two.snapshot == policy, "the refused writer has learnt of the other's change"


class TestWrites:
    """PATCH, PUT, rollback and history."""

    async def test_a_patch_changes_its_fields_only_and_is_in_force_at_once(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as live:
            first = await live.set(threshold=0.8, note="incident 12", remote_timeout_s=3)
            second = await live.set(deferral="off", gate_digest="gate-a")
            assert live.snapshot == second == live.changes[-1]
            assert second.version == first.version + 1
            assert (second.threshold, second.remote_timeout_s) == (0.8, 3.0)
            assert second.updated_by == "operator"
            assert second.updated_at >= first.updated_at

    async def test_a_note_belongs_to_the_change_that_it_came_with(self, open_store: Callable[[], PolicyStore]) -> None:
        """What a rollback or somebody else wrote never stands beside another threshold."""
        async with replica(open_store()) as live:
            first = await live.set(threshold=0.8, note="incident 12")
            assert live.proposed(PolicyPatch(threshold=0.4)).note == ""
            silent = await live.set(threshold=0.6)
            back = await live.rollback(first.version, updated_by="operator")
            after = await live.set(deferral="off")
            again = await live.replace(PolicyReplacement(threshold=0.1), updated_by="operator", if_match=after.version)
            assert (silent.note, after.note, again.note) == ("", "", "")
            assert back.note == f"rollback to version {first.version}: incident 12"
            notes = [policy.note for policy in await live.history(6)]
            assert notes == ["", "", back.note, "", "incident 12", "default of the bundle"]

    async def test_documents_of_before_are_read_as_they_are(self, open_store: Callable[[], PolicyStore]) -> None:
        """A note that an earlier release carried along stays in the history; the next change has its own."""
        store = open_store()
        for version, threshold in ((1, 0.8), (2, 0.6)):
            carried = a_policy(version, threshold=threshold, note="rollback to version 1")
            await store.append("bundle", carried, expected_version=version - 1 or None)
        async with replica(store) as live:
            assert live.snapshot.note == "rollback to version 1"
            await live.set(threshold=0.7)
            notes = [policy.note for policy in await live.history(3)]
            assert notes == ["", "rollback to version 1", "rollback to version 1"]

    async def test_an_empty_patch_makes_no_version(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            assert await live.set(if_match=1) == await live.set(gate_digest="gate-a") == live.snapshot
            assert await live.history(10) == [live.snapshot]

    async def test_a_replacement_resets_what_it_leaves_out(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            before = await live.set(deferral="off", note="tonight only", remote_timeout_s=3)
            replacement = PolicyReplacement(threshold=0.8)
            after = await live.replace(replacement, updated_by="operator", if_match=before.version)
            assert (after.threshold, after.deferral, after.note, after.remote_timeout_s) == (0.8, "on", "", 10.0)
            assert after.gate_digest == "gate-a"

    async def test_a_rollback_is_a_new_version_with_the_old_content(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as live:
            old = await live.set(threshold=0.8, deferral="off", note="n" * 500)
            await live.set(threshold=0.3, deferral="on", note="")
            back = await live.rollback(old.version, updated_by="operator")
            assert (back.threshold, back.deferral, back.version) == (0.8, "off", old.version + 2)
            assert back.note.startswith(f"rollback to version {old.version}: nnn")
            plain = await live.rollback(old.version + 1, updated_by="x" * 1000)
            assert (plain.note, plain.updated_by) == (f"rollback to version {old.version + 1}", "x" * 100)
            assert [policy.version for policy in await live.history(3)] == [5, 4, 3]

    async def test_simultaneous_patches_all_count(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policies = await asyncio.gather(*(live.set(threshold=n / 100) for n in range(30)))
            assert sorted(policy.version for policy in policies) == list(range(2, 32))
            assert live.snapshot == max(policies, key=lambda policy: policy.version)
            assert len(await live.history(100)) == 31

    async def test_of_simultaneous_conditional_patches_one_succeeds(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            patches = [live.set(if_match=1, threshold=0.7) for live in (one, two) for _ in range(5)]
            results = await asyncio.gather(*patches, return_exceptions=True)
            assert sum(isinstance(result, Policy) for result in results) == 1
            assert sum(isinstance(result, VersionMismatch) for result in results) == 9

    async def test_patches_on_two_replicas_at_once_build_on_each_other(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            thresholds = [one.set(threshold=n / 100) for n in range(10)]
            timeouts = [two.set(remote_timeout_s=n + 1.0) for n in range(10)]
            policies = await asyncio.gather(*thresholds, *timeouts)
            assert len({policy.version for policy in policies}) == 20
            last = max(policies, key=lambda policy: policy.version)
            assert (last.threshold, last.remote_timeout_s) == (0.09, 10.0)
            await until(lambda: one.snapshot == two.snapshot == last)

    @pytest.mark.parametrize("delay_s", [0.0, 0.0005, 0.001, 0.002, 0.004])
    async def test_after_a_cancelled_write_snapshot_and_store_agree(
        self, open_store: Callable[[], PolicyStore], delay_s: float
    ) -> None:
        async with replica(open_store()) as live:
            writing = asyncio.create_task(live.set(threshold=0.8))
            await asyncio.wait([writing], timeout=delay_s)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            after = await live.set(note="the next one")
            history = await live.history(10)
            assert history[0] == after == live.snapshot
            assert after.threshold == history[1].threshold, "nothing half-made in between"

    async def test_a_write_whose_answer_was_lost_is_followed(self, open_store: Callable[[], PolicyStore]) -> None:
        """The store has committed, but the writer was cancelled before it could take the policy up."""
        async with replica(open_store()) as live:
            policy = a_policy(2)
            await live._store.append("bundle", policy, expected_version=1)
            await until(lambda: live.snapshot == policy)
