"""The story: small model -> gate -> accept, or defer to the large model -> settle, or degrade.

It does not know what an answer is: of a draft it reads the confidence, of a large model's answer whether it is
degraded. Whoever wants to know what became of the items listens (`on_settled`).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from service.cascade.call import Answer, Call, Disconnected
from service.cascade.client_gone import unless_gone
from service.cascade.drafts import SmallModel
from service.cascade.gate import decide
from service.errors import DeadlineExceeded, LargeModelFailed, LargeModelLate, RemoteError, RemoteTimeout
from service.outcomes import Draft, OnSettled, Outcome
from service.policy.document import Policy
from service.policy.live import LivePolicy

ANSWER_MARGIN_S = 0.02  # kept back of a client's deadline, so that a degraded answer still reaches it in time


class LargeAnswer(Protocol):
    """The large model's answer to one item. degraded: it is an edge, and could not reach its own large model."""

    @property
    def degraded(self) -> bool: ...


Item = TypeVar("Item")
Question = TypeVar("Question")
Question_contra = TypeVar("Question_contra", contravariant=True)
DraftT = TypeVar("DraftT", bound=Draft)
AnswerT = TypeVar("AnswerT", bound=LargeAnswer)
AnswerT_co = TypeVar("AnswerT_co", bound=LargeAnswer, covariant=True)


class LargeModel(Protocol[Question_contra, AnswerT_co]):
    """Whatever is asked about what the small model is not sure of."""

    def refusal(self) -> RemoteError | None:
        """The error of a call that would be refused right now, without any waiting; else None."""
        ...

    async def answer(self, question: Question_contra, /) -> Sequence[AnswerT_co | RemoteError]:
        """One answer to each item of the question, in order, or what is wrong with it. Raises RemoteError."""
        ...


class Cascade(Generic[Item, Question, DraftT, AnswerT]):
    """A small model behind a gate, with a remote large model."""

    def __init__(
        self,
        small: SmallModel[Item, DraftT],
        policy: LivePolicy,
        large: LargeModel[Question, AnswerT],
        on_settled: Sequence[OnSettled],
    ) -> None:
        self._small = small
        self._policy = policy
        self._large = large
        self._on_settled = on_settled

    async def answer(self, call: Call[Item, Question], disconnected: Disconnected) -> Answer[DraftT, AnswerT]:
        """Raises what the small model does, for the whole request; LargeModelFailed under the policy `fail`."""
        point = self._policy.point
        threshold = point.threshold if call.threshold is None else call.threshold
        drafts, queue_s, small_s = await self._small.draft(call, disconnected)
        verdicts = [
            decide(draft.confidence, threshold=threshold, deferral=point.deferral, route=call.route) for draft in drafts
        ]
        outcomes: list[Outcome[DraftT, AnswerT]] = [
            Outcome(draft, "accepted", verdict.reason, "small") for draft, verdict in zip(drafts, verdicts, strict=True)
        ]
        deferred = [position for position, verdict in enumerate(verdicts) if verdict.defer]
        timings_s = {"queue": queue_s, "small": small_s}
        failure: LargeModelFailed | None = None
        if deferred:
            began = time.monotonic()
            failure = await self._defer(call, point.policy, outcomes, deferred, disconnected)
            timings_s["remote"] = time.monotonic() - began
        for settled in self._on_settled:
            settled(call, outcomes)
        if failure is not None:
            raise failure
        return Answer(outcomes, point.policy_version, threshold, timings_s)

    async def _defer(
        self,
        call: Call[Item, Question],
        policy: Policy,
        outcomes: list[Outcome[DraftT, AnswerT]],
        deferred: list[int],
        disconnected: Disconnected,
    ) -> LargeModelFailed | None:
        """Put the large model's answers in; where it has none, mark the items degraded, or failed and say why."""
        answers: Sequence[AnswerT | RemoteError]
        try:
            answers = await self._ask(call, policy, deferred, disconnected)
        except RemoteError as error:
            answers = [error] * len(deferred)
        fail = policy.on_remote_failure == "fail"
        failure: LargeModelFailed | None = None
        for position, answer in zip(deferred, answers, strict=True):
            draft, _, why, *_ = outcomes[position]
            if isinstance(answer, RemoteError):
                outcomes[position] = Outcome(draft, "failed" if fail else "degraded", answer.reason, "small")
                failure = _failure(answer) if fail else None
            else:
                reason = "remote_degraded" if answer.degraded else why
                outcomes[position] = Outcome(draft, "deferred", reason, "large", answer)
        return failure

    async def _ask(
        self, call: Call[Item, Question], policy: Policy, deferred: list[int], disconnected: Disconnected
    ) -> Sequence[AnswerT | RemoteError]:
        """The large model's answers, within the policy's time and the client's own deadline. Raises RemoteError."""
        refusal = self._large.refusal()
        if refusal is not None:
            raise refusal
        timeout_s, own_deadline = policy.remote_timeout_s, False
        if call.deadline is not None:
            left_s = call.deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("no time is left for the large model")
            left_s -= min(ANSWER_MARGIN_S, left_s * 0.1)
            own_deadline = left_s < timeout_s
            timeout_s = min(timeout_s, left_s)
        question = call.question(deferred, asyncio.get_running_loop().time() + timeout_s, own_deadline)
        try:
            return await unless_gone(self._large.answer(question), disconnected)
        except RemoteTimeout as error:
            if own_deadline:
                raise DeadlineExceeded("the client's deadline passed while the large model was asked") from error
            raise


class Ungated(Generic[Item, DraftT]):
    """A large model on the same route: every item is accepted, answered by `large`."""

    def __init__(self, model: SmallModel[Item, DraftT], on_settled: Sequence[OnSettled]) -> None:
        self._model = model
        self._on_settled = on_settled

    async def answer(self, call: Call[Item, Any], disconnected: Disconnected) -> Answer[DraftT, Any]:
        """Raises what the model does, for the whole request."""
        drafts, queue_s, model_s = await self._model.draft(call, disconnected)
        outcomes: list[Outcome[DraftT, Any]] = [Outcome(draft, "accepted", None, "large") for draft in drafts]
        for settled in self._on_settled:
            settled(call, outcomes)
        return Answer(outcomes, timings_s={"queue": queue_s, "model": model_s})


def _failure(error: RemoteError) -> LargeModelFailed:
    late = isinstance(error, RemoteTimeout | DeadlineExceeded)
    kind = LargeModelLate if late else LargeModelFailed
    return kind(f"the large model did not answer ({error.reason}): try again", retry_after_s=1)
