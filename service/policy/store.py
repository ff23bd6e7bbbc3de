"""Where policies are kept: what a store promises, and which one the settings name."""

from typing import Protocol

from service.policy.document import Policy
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.settings import EdgeSettings


class PolicyStore(Protocol):
    """Keeps the last 1,000 versions for each (bundle name, gate digest).

    A stored document that cannot be read, or whose version cannot be, is logged once and skipped everywhere; it pushes
    no policy out. Of those that a read meets the newest 100 stay where they are, a later release may have written them;
    the others, and what is too long for a policy, are removed. A read that meets 10,000 of them raises PolicyStoreDown
    and the next one goes on from there. When the medium fails, every method but `wait_for_change` and `close` raises
    PolicyStoreDown; so do they all after `close`.
    """

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        """The newest readable version for this gate."""

    async def newest(self, name: str) -> Policy | None:
        """The newest readable version for any gate of this bundle name."""

    async def next_version(self, name: str) -> int:
        """One above every believable version of this bundle name. Not a reservation: `append` decides who gets it."""

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        """Stores the policy, whole or not at all.

        Raises VersionMismatch unless `expected_version` is what `latest` would answer (None: nothing yet) and
        `policy.version` is above every believable version of this bundle name, so that two writers never share a
        number; PolicyStoreDown for a document that would not be read again: too long, or of a
        version that nobody believes.
        """

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        """One version, if it is still kept and readable."""

    async def history(self, name: str, gate_digest: str, limit: int) -> list[Policy]:
        """The newest `limit` readable versions, newest first."""

    async def wait_for_change(self, timeout_s: float) -> None:
        """Returns when something may have changed, at the latest after `timeout_s`. Never raises for the medium."""

    async def close(self) -> None:
        """Lets go of threads and connections."""


def open_policy_store(settings: EdgeSettings) -> PolicyStore:
    """The store that the settings name. Touches no disk or network yet; a bad REDIS_URL raises StartupError."""
    if settings.redis_url is None:
        return SqlitePolicyStore(settings.policy_path)
    return RedisPolicyStore(str(settings.redis_url), settings.redis_timeout_s)
