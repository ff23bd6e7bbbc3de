"""The policy: what an operator may change while the service runs.

`OperatorFields` names what may be set, once: a new field stands there, with a default that means what was done before,
and where it is read. `Policy` is one immutable version, PolicyPatch and PolicyReplacement ask for the next one.
store.py keeps versions, live.py follows them, operating_point.py is what is in force.

Releases share one store. A reader keeps the fields that it does not know and passes them on; only the admin API
refuses them.
"""

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

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


class OperatorFields(BaseModel):
    """What an operator wishes."""

    model_config = ConfigDict(frozen=True)

    threshold: Threshold
    deferral: Deferral = "on"
    on_remote_failure: OnRemoteFailure = "degrade"
    remote_timeout_s: RemoteTimeout = 10.0


class _Identity(BaseModel):
    """Which version of which gate; a base of its own, so that a document begins with it."""

    version: Annotated[int, Field(strict=True, ge=1, le=MAX_VERSION, description="never goes down, never repeats")]
    gate_digest: GateDigest


class Policy(OperatorFields, _Identity):
    """One immutable version of what an operator may change at run time.

    It may have fields that this release does not know, written by a later one beside it: PATCH and rollback keep them.
    """

    model_config = ConfigDict(extra="allow")

    note: Note = ""
    updated_at: UtcDatetime
    updated_by: Annotated[str, Field(max_length=100)]

    def wishes(self) -> dict[str, Any]:
        """The operator's fields, and those that are not known here, by name; the note belongs to one change alone."""
        return self.model_dump(exclude={"version", "gate_digest", "note", "updated_at", "updated_by"})

    def patched(self, changes: dict[str, Any]) -> Self:
        """This policy with the changed fields; the same object without any. A change without a note has an empty one:
        the last one's, left standing beside a new threshold, would tell of another change."""
        return self.model_copy(update={"note": "", **changes}) if changes else self

    def replaced(self, fields: dict[str, Any]) -> Self:
        """This version with other fields. What is left out takes its default, and so goes what is not known here: a
        later release would answer the same request with that field's default."""
        stamp = {"version", "gate_digest", "updated_at", "updated_by"}
        return self.model_validate(self.model_dump(include=stamp) | fields)


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
    if policy.model_extra:
        json.dumps(policy.model_extra, allow_nan=False)  # ValueError: NaN is no JSON, and never equal to itself
    return policy


def _promise_no_default(schema: dict[str, Any]) -> None:
    """A field that is left out of a patch keeps its value, whatever the default of a whole policy is."""
    for field in schema["properties"].values():
        field.pop("default", None)


class PolicyPatch(OperatorFields):
    """The body of PATCH: a JSON merge patch of the fields an operator may set.

    A field that is left out keeps its value, but for `note`, which belongs to the change: left out, it is empty.
    null would remove a field, and a policy always has all of them, so null is refused; so are unknown fields, NaN,
    infinities, and booleans or strings where a number belongs.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=_promise_no_default)

    threshold: Threshold = ABSENT
    note: Note = ABSENT
    gate_digest: GateDigest = ABSENT

    def changes(self) -> dict[str, Any]:
        """The fields that were sent, by name; the others' attributes mean nothing."""
        return self.model_dump(exclude_unset=True)


class PolicyReplacement(OperatorFields):
    """The body of PUT: a whole policy; fields that are left out take their defaults, not their present values.

    The read-only fields `version`, `updated_at` and `updated_by` may be present and are ignored, so that what
    GET answered can be edited and sent back. Values are refused as in PATCH, and so are unknown fields: one that a
    later release has put into the policy takes its default too, as if that release had answered; PATCH keeps it.
    """

    model_config = ConfigDict(extra="forbid")

    note: Note = ""
    gate_digest: GateDigest = ABSENT
    version: Any = IGNORED
    updated_at: Any = IGNORED
    updated_by: Any = IGNORED

    def changes(self) -> dict[str, Any]:
        """Every field that an operator may set, by name, and gate_digest if it was sent."""
        unsent = {"gate_digest"} - self.model_fields_set
        return self.model_dump(exclude={"version", "updated_at", "updated_by"} | unsent)
