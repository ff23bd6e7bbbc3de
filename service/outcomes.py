"""What may become of an item, in the words of the contract: how it was asked, what was decided, and why."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

Route = Literal["auto", "small", "large"]
Override = Literal["none", "threshold", "route"]  # what of the policy a request has set for itself
Decision = Literal["accepted", "deferred", "degraded", "failed"]
AnsweredBy = Literal["small", "large"]
# Why a deferral failed. No call was made for breaker_open; remote_limit and deadline may come before or after one.
RemoteReason = Literal[
    "remote_unavailable", "remote_timeout", "remote_bad_answer", "breaker_open", "remote_limit", "deadline"
]
Reason = Literal["below_threshold", "forced", "deferral_off", RemoteReason, "remote_degraded"]

DECISIONS: tuple[Decision, ...] = get_args(Decision)
REMOTE_REASONS: tuple[RemoteReason, ...] = get_args(RemoteReason)
# What a call to the large model may end in; for the others none is made, or it is given up.
CALL_FAILURES = tuple(reason for reason in REMOTE_REASONS if reason not in {"breaker_open", "deadline"})


class Draft(Protocol):
    """What the small model says of one item; the gate reads its confidence and nothing else."""

    @property
    def confidence(self) -> float: ...


DraftT_co = TypeVar("DraftT_co", bound=Draft, covariant=True)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Outcome(NamedTuple, Generic[DraftT_co, AnswerT_co]):
    """What became of one item. `answer` is the large model's; without one the draft is the answer, if there is any."""

    draft: DraftT_co
    decision: Decision
    reason: Reason | None
    answered_by: AnsweredBy
    answer: AnswerT_co | None = None


class Settled(Protocol):
    """What a listener may know of the request whose items are settled."""

    @property
    def override(self) -> Override: ...


OnSettled = Callable[[Settled, Sequence[Outcome[Draft, object]]], None]
