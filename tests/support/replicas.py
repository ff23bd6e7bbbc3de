"""Live policies under test: replicas that remember what they told their listeners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from support.policies import INDEX_KEY
from support.waiting import until

from service.policy.document import Policy, PolicyPatch
from service.policy.live import LivePolicy
from service.policy.redis import RedisPolicyStore
from service.policy.store import PolicyStore


class Replica(LivePolicy):
    """A live policy that remembers what it told its listeners and is patched in fewer words."""

    def __init__(self, store: PolicyStore, gate_digest: str, last_good_path: Path | None, poll_s: float) -> None:
        self.changes: list[Policy] = []
        self.health: list[bool] = []
        super().__init__(
            store,
            name="bundle",
            gate_digest=gate_digest,
            default_threshold=0.5,
            threshold_range=(0.0, 1.0),
            last_good_path=last_good_path,
            poll_s=poll_s,
            on_change=lambda point: self.changes.append(point.policy),
            on_store_up=self.health.append,
        )

    async def set(self, if_match: int | None = None, **fields: Any) -> Policy:
        return await self.patch(PolicyPatch.model_validate(fields), updated_by="operator", if_match=if_match)

    @property
    def store_up(self) -> bool:
        return self.health[-1]


class CountingStore(RedisPolicyStore):
    """A store that counts how often it was asked, and how often it was written to."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, timeout_s)
        self.asked = 0
        self.appended = 0

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        self.asked += 1
        return await super().latest(name, gate_digest)

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        self.appended += 1
        await super().append(name, policy, expected_version=expected_version)


@asynccontextmanager
async def replica(
    store: PolicyStore, *, gate_digest: str = "gate-a", last_good_path: Path | None = None, poll_s: float = 0.2
) -> AsyncIterator[Replica]:
    """A started replica; it closes its store when it is done."""
    live = Replica(store, gate_digest, last_good_path, poll_s)
    try:
        await live.start()
        yield live
    finally:
        await live.close()
        await store.close()


async def eventually_stored(redis: Redis, *policies: Policy) -> None:
    """Until each policy, whatever its number has become, is the newest that Redis holds for its gate."""

    async def stored(policy: Policy) -> bool:
        found = await redis.zrevrange(f"{INDEX_KEY}:{policy.gate_digest}", 0, 0)
        return bool(found) and Policy.model_validate_json(found[0]).updated_at == policy.updated_at  # type: ignore[arg-type]

    for policy in policies:
        await until(lambda policy=policy: stored(policy))  # type: ignore[misc]
