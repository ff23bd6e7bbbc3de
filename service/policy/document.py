"""The policy: what an operator may change while the service runs.

`Policy` is one immutable version, PolicyPatch and PolicyReplacement ask for the next one, and a PolicyStore
(policy_store.py) keeps them. The version in force is held by live_policy.py.
"""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

MAX_VERSION = 2**53 - 1  # the largest whole number that JSON readers and Redis scores hold exactly
MAX_DOCUMENT_BYTES = 64 * 1024  # several times the longest policy that can be written


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null_not_allowed", "must not be null: leave the field out instead")
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("moment_out_of_range", "is before the year 1 or after 9999 in UTC") from None


NotNull = BeforeValidator(_refuse_null)
# A default that no caller can send, so that the schema says "optional" and not "nullable".
ABSENT: Any = Field(default_factory=lambda: None)
IGNORED: Any = Field(default_factory=lambda: None, description="read-only, ignored")

# Strict, because "0.8" and true are a caller's mistakes here, not numbers.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Threshold = Annotated[Number, Field(description="tau: confidence >= threshold is accepted"), NotNull]
Deferral = Annotated[Literal["on", "off"], Field(description="off: the small model answers everything"), NotNull]
OnRemoteFailure = Annotated[
    Literal["degrade", "fail"], Field(description="degrade: the small model's answer stands in; fail: 503"), NotNull
]
RemoteTimeout = Annotated[
    Number, Field(gt=0, le=600, description="seconds for a whole call to the large model"), NotNull
]
GateDigest = Annotated[str, Field(min_length=1, max_length=200, description="what the threshold belongs to"), NotNull]
Note = Annotated[str, Field(max_length=500, description="why this change, for the next person"), NotNull]
UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class Policy(BaseModel):
    """One immutable version of what an operator may change at run time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(strict=True, ge=1, le=MAX_VERSION, description="never goes down, never repeats")]
    gate_digest: GateDigest
    threshold: Threshold
    deferral: Deferral = "on"
    on_remote_failure: OnRemoteFailure = "degrade"
    remote_timeout_s: RemoteTimeout = 10.0
    note: Note = ""
    updated_at: UtcDatetime
    updated_by: Annotated[str, Field(max_length=100)]


def highest_believable() -> int:
    """The highest version that a store's content is believed to have: the milliseconds since 1970, as no store has had
    more changes than that. A bound that stood still would leave no next version to who finds a policy right at it; a
    clock that is wrong does no harm below 2**40."""
    return max(2**40, time.time_ns() // 1_000_000)


def read_document(document: bytes) -> Policy:
    """A stored policy. Raises ValueError, which says what is wrong without repeating more than the name of a field."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it has {len(document):,} bytes, and a policy at most {MAX_DOCUMENT_BYTES:,}")
    try:
        policy = Policy.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))[:100]} {first['msg']}".strip()) from None
    if policy.version > highest_believable():
        raise ValueError("no policy has had so many versions")
    return policy


class PolicyPatch(BaseModel):
    """The body of PATCH: a JSON merge patch of the fields an operator may set.

    A field that is left out keeps its value, but for `note`, which belongs to the change: left out, it is empty.
    null would remove a field, and a policy always has all of them, so null is refused; so are unknown fields, NaN,
    infinities, and booleans or strings where a number belongs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Threshold = ABSENT
    deferral: Deferral = ABSENT
    on_remote_failure: OnRemoteFailure = ABSENT
    remote_timeout_s: RemoteTimeout = ABSENT
    note: Note = ABSENT
    gate_digest: GateDigest = ABSENT

    def changes(self) -> dict[str, Any]:
        """The fields that were sent, by name; the others' attributes mean nothing."""
        return self.model_dump(exclude_unset=True)


class PolicyReplacement(BaseModel):
    """The body of PUT: a whole policy; fields that are left out take their defaults, not their present values.

    The read-only fields `version`, `updated_at` and `updated_by` may be present and are ignored, so that what
    GET answered can be edited and sent back. Values are refused as in PATCH.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Threshold
    deferral: Deferral = "on"
    on_remote_failure: OnRemoteFailure = "degrade"
    remote_timeout_s: RemoteTimeout = 10.0
    note: Note = ""
    gate_digest: GateDigest = ABSENT
    version: Any = IGNORED
    updated_at: Any = IGNORED
    updated_by: Any = IGNORED

    def changes(self) -> dict[str, Any]:
        """Every field that an operator may set, by name, and gate_digest if it was sent."""
        unsent = {"gate_digest"} - self.model_fields_set
        return self.model_dump(exclude={"version", "updated_at", "updated_by"} | unsent)


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
        number; PolicyStoreDown for a version that would not be believed.
        """

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        """One version, if it is still kept and readable."""

    async def history(self, name: str, gate_digest: str, limit: int) -> list[Policy]:
        """The newest `limit` readable versions, newest first."""

    async def wait_for_change(self, timeout_s: float) -> None:
        """Returns when something may have changed, at the latest after `timeout_s`. Never raises for the medium."""

    async def close(self) -> None:
        """Lets go of threads and connections."""
