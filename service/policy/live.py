"""The policy in force: `LivePolicy.point`, which the gate reads and no request waits for.

It follows the store in the background: takes up what others write, writes back what a store has lost, and goes on with
what it has while the store is down.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import GateDigestMismatch, InvalidRequest, NotFound, PolicyStoreDown, VersionMismatch
from service.policy.document import Policy, PolicyPatch, PolicyReplacement
from service.policy.last_good import LastGood
from service.policy.operating_point import OperatingPoint
from service.policy.store import PolicyStore

logger = logging.getLogger(__name__)

WRITE_ATTEMPTS = 20
MAX_BACKOFF_S = 1.0  # with redis_timeout_s at its default this heals within two seconds
UNKNOWN_TOLD = 10
MAX_NAME_CHARS = 100


class LivePolicy:
    """The policy in force: `point` is replaced whole, so reading it is free and never waits for the store.

    `start` always succeeds: with the store's policy, else the last good copy, else the bundle's default. Then a
    task follows the store and mends it when it has lost what is in force. `default_threshold` and
    `threshold_range` (low, high; inclusive) come from the bundle. `on_change` gets every new point,
    `on_store_up` every change of the store's health; both are called on the event loop and must not block.
    The store is the caller's to close, after this.
    """

    def __init__(
        self,
        store: PolicyStore,
        *,
        name: str,
        gate_digest: str,
        default_threshold: float,
        threshold_range: tuple[float, float],
        last_good_path: Path | None,
        poll_s: float,
        on_change: Callable[[OperatingPoint], None],
        on_store_up: Callable[[bool], None],
    ) -> None:
        self._store = store
        self._name = name
        self._gate_digest = gate_digest
        self._threshold_range = threshold_range
        self._last_good = LastGood(last_good_path, gate_digest)
        self._poll_s = poll_s
        self._on_change = on_change
        self._on_store_up = on_store_up
        # Writes and rounds of the follower take turns: a round that read before a write must not act after it.
        self._turns = asyncio.Lock()
        self._failures = 0
        self._last_failure = PolicyStoreDown("")
        self._closing = False
        self._store_up: bool | None = None
        self._follower: asyncio.Task[None] | None = None
        # True while the policy is of our own making: whatever the store has for this gate then wins over it.
        self._made_up = True
        self._default_threshold = default_threshold
        self.point = OperatingPoint.of(self._first_policy(None, version=1))

    @property
    def snapshot(self) -> Policy:
        """The policy behind the operating point."""
        return self.point.policy

    @property
    def store_up(self) -> bool:
        """Whether the store answers."""
        return self._store_up is True

    async def start(self) -> None:
        """Takes up the policy and begins to follow the store; a store that is down costs its own timeout."""
        last_good = self._last_good.load()
        if last_good is not None:
            self.point = OperatingPoint.of(last_good)
            self._made_up = False
        self._on_change(self.point)
        await self._sync()
        self._tell("the policy in force")
        await self._save_last_good()
        self._follower = asyncio.create_task(self._follow(), name="policy follower")

    async def close(self) -> None:
        """Stops following. The snapshot stays readable."""
        # Python 3.11's asyncio.wait_for, which redis uses, can swallow a cancellation: then the flag ends the loop.
        self._closing = True
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._save_last_good()

    async def patch(self, patch: PolicyPatch, *, updated_by: str, if_match: int | None) -> Policy:
        """Stores and takes up the policy with the patch's fields changed; an empty patch changes nothing. A patch
        without a note makes a version without one.

        Raises InvalidRequest (threshold outside the range), GateDigestMismatch, VersionMismatch (not at version
        `if_match`) or PolicyStoreDown, at once while the store is known to be down. Without `if_match` a concurrent
        change is built upon, not refused.
        """
        changes = self._checked(patch.changes())
        return await self._write(lambda policy: policy.patched(changes), updated_by=updated_by, if_match=if_match)

    def proposed(self, patch: PolicyPatch) -> Policy:
        """What the policy would be with the patch's fields changed; nothing is stored.

        Raises InvalidRequest (threshold outside the range) or GateDigestMismatch.
        """
        return self.snapshot.patched(self._checked(patch.changes()))

    async def replace(self, replacement: PolicyReplacement, *, updated_by: str, if_match: int) -> Policy:
        """Stores and takes up a whole policy. Raises what `patch` raises."""
        fields = self._checked(replacement.changes())
        return await self._write(lambda policy: policy.replaced(fields), updated_by=updated_by, if_match=if_match)

    async def rollback(self, version: int, *, updated_by: str) -> Policy:
        """Stores and takes up a new version that says what `version` said; its note tells so.

        Raises NotFound when that version is not kept for this gate, or PolicyStoreDown.
        """
        self._require_store()
        old = await self._store.get(self._name, self._gate_digest, version)
        if old is None:
            raise NotFound(f"Version {version} of this policy is not kept; the history lists those that are.")
        note = f"rollback to version {version}: {old.note}".removesuffix(": ")[:500]
        # The old version's fields and no others: what a later release has added since was at its default then.
        return await self._write(lambda _: old.patched({"note": note}), updated_by=updated_by, if_match=None)

    async def history(self, limit: int) -> list[Policy]:
        """The newest `limit` versions for this gate, newest first. Raises PolicyStoreDown."""
        return await self._store.history(self._name, self._gate_digest, limit)

    def _checked(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The changes without gate_digest, which may only confirm ours."""
        if changes.pop("gate_digest", self._gate_digest) != self._gate_digest:
            raise GateDigestMismatch(f"A threshold belongs to one gate digest; this edge serves {self._gate_digest}.")
        low, high = self._threshold_range
        if not low <= changes.get("threshold", low) <= high:
            raise InvalidRequest(f"threshold must be between {low:g} and {high:g}, the range of this bundle's score.")
        return changes

    async def _write(self, change: Callable[[Policy], Policy], *, updated_by: str, if_match: int | None) -> Policy:
        """Stores and takes up what `change` makes of the policy in force; the same object is no change."""
        self._require_store()
        async with self._turn():
            for attempt in range(WRITE_ATTEMPTS):
                await self._settle()
                current = self.snapshot
                if if_match is not None and if_match != current.version:
                    raise VersionMismatch(f"The policy is at version {current.version}, not {if_match}: read it again.")
                wanted = change(current)
                if wanted is current:
                    return current
                policy = await self._stamped(wanted, current.version, updated_by)
                with suppress(VersionMismatch):
                    await self._store.append(self._name, policy, expected_version=current.version)
                    self._take(policy)
                    return policy
                await asyncio.sleep(random.uniform(0, 0.005) * attempt)
        raise PolicyStoreDown("Too many changes at once: this one was not made.", retry_after_s=1)

    def _require_store(self) -> None:
        """Raises PolicyStoreDown while the follower finds the store down: it asks about once a second."""
        if self._store_up is False:
            raise self._down_again()

    def _down_again(self) -> PolicyStoreDown:
        return PolicyStoreDown(self._last_failure.detail, retry_after_s=self._last_failure.retry_after_s)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Raises PolicyStoreDown if the store failed for somebody while we waited: a store that hangs costs its timeout
        once, not once for each of those who wait."""
        failures = self._failures
        async with self._turns:
            if self._failures > failures:
                raise self._down_again()
            yield

    async def _stamped(self, wanted: Policy, current_version: int, updated_by: str) -> Policy:
        version = max(await self._store.next_version(self._name), current_version + 1)
        stamp = {"version": version, "updated_at": datetime.now(UTC), "updated_by": updated_by[:100]}
        return wanted.model_copy(update=stamp)

    async def _settle(self) -> None:
        """Reconciles until no other replica is faster."""
        for _ in range(WRITE_ATTEMPTS):
            try:
                return await self._reconcile()
            except VersionMismatch:
                continue
            except PolicyStoreDown as error:
                self._failures += 1
                self._last_failure = error
                raise
        raise PolicyStoreDown("Too many changes at once in the policy store.", retry_after_s=1)

    async def _reconcile(self) -> None:
        """Makes the snapshot and the store agree: the higher version wins, the store when they are level.

        Raises VersionMismatch when another replica was faster: what it wrote is there to be read.
        """
        stored = await self._store.latest(self._name, self._gate_digest)
        if stored is not None and (self._made_up or stored.version >= self.snapshot.version):
            self._take(stored)
        elif self._made_up:
            await self._begin()
        else:
            await self._write_back(None if stored is None else stored.version)

    async def _begin(self) -> None:
        newest = await self._store.newest(self._name)
        policy = self._first_policy(newest, version=await self._store.next_version(self._name))
        await self._store.append(self._name, policy, expected_version=None)
        self._take(policy)

    async def _write_back(self, expected_version: int | None) -> None:
        """Gives a store that has lost the policy in force its own back: under its number, or a new one if that is
        taken, since another gate of this bundle name may have been first."""
        version = max(self.snapshot.version, await self._store.next_version(self._name))
        policy = self.snapshot.model_copy(update={"version": version})
        await self._store.append(self._name, policy, expected_version=expected_version)
        logger.warning("the policy store had lost the policy in force: wrote it back as version %d", version)
        self._take(policy)

    def _first_policy(self, newest: Policy | None, *, version: int) -> Policy:
        """For a gate that has no policy yet: the bundle's threshold, all else from the newest of the same name."""
        inherited: dict[str, Any] = {}
        note = "default of the bundle"
        if newest is not None:
            inherited = newest.wishes()
            note = f"new gate: default threshold of the bundle, all else from version {newest.version}"
        return Policy.model_validate(
            inherited
            | {
                "version": version,
                "gate_digest": self._gate_digest,
                "threshold": self._default_threshold,
                "note": note,
                "updated_at": datetime.now(UTC),
                "updated_by": "gatekeeper",
            }
        )

    def _take(self, policy: Policy) -> None:
        """Takes up a policy that the store holds."""
        self._made_up = False
        if policy != self.snapshot:
            self.point = OperatingPoint.of(policy)
            self._tell("the policy has changed")
            self._on_change(self.point)

    def _tell(self, what: str) -> None:
        unknown = sorted(self.snapshot.model_extra or ())
        fields = self.snapshot.model_dump(mode="json", exclude={"gate_digest", "updated_at", *unknown})
        if unknown:
            fields["without_effect_here"] = [name[:MAX_NAME_CHARS] for name in unknown[:UNKNOWN_TOLD]]
        logger.info(what, extra={"policy": fields})

    async def _follow(self) -> None:
        failures = 0
        while not self._closing:
            try:
                await self._pause(failures)
                failures = 0 if await self._sync() else failures + 1
                await self._save_last_good()
            except Exception:  # a replica whose follower has died would never see a change again
                logger.exception("Following the policy store failed; going on.")
                failures += 1

    async def _pause(self, failures: int) -> None:
        """Until the next round. Jittered, so that replicas do not come back to the store all at once."""
        jitter = random.uniform(0.5, 1.0)
        if failures:
            await asyncio.sleep(jitter * min(MAX_BACKOFF_S, 0.05 * 2 ** min(failures, 10)))
        else:
            await self._store.wait_for_change(jitter * self._poll_s)

    async def _sync(self) -> bool:
        """One round with the store; whether it answered."""
        try:
            async with self._turn():
                await self._settle()
        except PolicyStoreDown as error:
            self._last_failure = error
            self._report_store(False, error.detail)
            return False
        self._report_store(True, "the policy store answers")
        return True

    def _report_store(self, up: bool, detail: str) -> None:
        if up == self._store_up:
            return
        self._store_up = up
        logger.log(logging.INFO if up else logging.WARNING, detail)
        self._on_store_up(up)

    async def _save_last_good(self) -> None:
        if not self._made_up:
            await self._last_good.save(self.snapshot)
