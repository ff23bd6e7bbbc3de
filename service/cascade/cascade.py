"""The story: small model -> gate -> accept, or defer to the large model -> merge, or degrade.

The only place that counts what becomes of an item.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from service.batching.batcher import Batcher
from service.batching.queue import Batched
from service.cascade.gate import Decision, DecisionName, Reason, Route, decide
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    GatekeeperError,
    LargeModelFailed,
    LargeModelLate,
    ModelFailed,
    RemoteError,
    RemoteTimeout,
)
from service.policy.document import Policy
from service.policy.live import LivePolicy
from service.remote import large_model
from service.remote.large_model import Ask, Input, ItemAnswer, RemoteAnswer
from service.telemetry.metrics import EdgeMetrics, Metrics

MAX_HOPS = 4
ANSWER_MARGIN_S = 0.02  # kept back of a client's deadline, so that a degraded answer still reaches it in time

Result = TypeVar("Result")


class Prediction(Protocol):
    """What the model says of one item; models.inference.classifier.Prediction is one."""

    @property
    def label(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    def top(self, count: int) -> list[tuple[int, float]]: ...


class Scored(NamedTuple):
    """A label with its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Call:
    """One classify request, checked: what to classify and how. `deadline` is on time.monotonic's clock.

    `inputs` are the items as they travel to the large model, `items` as the small model takes them; texts are both.
    """

    inputs: Sequence[Input]
    items: Sequence[Any]
    request_id: str
    top_k: int = 1
    threshold: float | None = None
    route: Route = "auto"
    deadline: float | None = None
    hops: int = 0

    @property
    def override(self) -> Literal["none", "threshold", "route"]:
        if self.route != "auto":
            return "route"
        return "none" if self.threshold is None else "threshold"


@dataclass(slots=True)
class Output:
    """The answer for one item, as the contract has it."""

    answer: Scored
    confidence: float
    decision: DecisionName
    answered_by: Literal["small", "large"]
    reason: Reason | None
    small: Scored | None
    top: Sequence[tuple[str, float]] = ()


@dataclass(slots=True)
class Answer:
    """The answer for one request. policy_version and threshold are None from a model without a gate."""

    outputs: list[Output]
    policy_version: int | None = None
    threshold: float | None = None
    timings_s: dict[str, float] = field(default_factory=dict)


Disconnected = Callable[[], Awaitable[None]]


class Classifier(Protocol):
    """What the classify route serves: a cascade, or a large model alone."""

    async def classify(self, call: Call, disconnected: Disconnected) -> Answer: ...


class Cascade:
    """A small model behind a gate, with a remote large model."""

    def __init__(
        self,
        labels: Sequence[str],
        batcher: Batcher[Any, Prediction],
        policy: LivePolicy,
        remote: large_model.LargeModel,
        metrics: EdgeMetrics,
    ) -> None:
        self._labels = labels
        self._batcher = batcher
        self._policy = policy
        self._remote = remote
        self._metrics = metrics

    async def classify(self, call: Call, disconnected: Disconnected) -> Answer:
        """Answers in the order of the items. `disconnected` returns when the client has left.

        Raises Overloaded, Expired or ModelFailed for the whole request; LargeModelFailed under the policy `fail`.
        """
        point = self._policy.point
        threshold = point.threshold if call.threshold is None else call.threshold
        batched = await _batched(self._batcher, call, disconnected)
        predictions = _whole(batched.results)
        decisions = [
            decide(prediction.confidence, threshold=threshold, deferral=point.deferral, route=call.route)
            for prediction in predictions
        ]
        deferred = [position for position, decision in enumerate(decisions) if decision.defer]
        outputs = [
            self._accepted(prediction, decision, call)
            for prediction, decision in zip(predictions, decisions, strict=True)
        ]
        timings = {"queue": batched.queue_s, "small": batched.model_s}
        failure: LargeModelFailed | None = None
        if deferred:
            began = time.monotonic()
            failure = await self._defer(call, point.policy, outputs, deferred, decisions, disconnected)
            timings["remote"] = time.monotonic() - began
        for output in outputs:
            self._metrics.count_item(output.decision, output.reason, call.override, output.confidence)
        if failure is not None:
            raise failure
        return Answer(outputs, point.policy_version, threshold, timings)

    def _accepted(self, prediction: Prediction, decision: Decision, call: Call) -> Output:
        small = Scored(self._labels[prediction.label], prediction.score)
        top = _top(prediction, call, self._labels)
        return Output(small, prediction.confidence, "accepted", "small", decision.reason, small, top)

    async def _defer(
        self,
        call: Call,
        policy: Policy,
        outputs: list[Output],
        deferred: list[int],
        decisions: list[Decision],
        disconnected: Disconnected,
    ) -> LargeModelFailed | None:
        """Put the large model's answers in; where it has none, mark the items degraded, or failed and say why."""
        answers: Sequence[ItemAnswer | RemoteError]
        try:
            answers = await self._ask(call, policy, [call.inputs[position] for position in deferred], disconnected)
        except RemoteError as error:
            answers = [error] * len(deferred)
        fail = policy.on_remote_failure == "fail"
        failure: LargeModelFailed | None = None
        for position, answer in zip(deferred, answers, strict=True):
            output = outputs[position]
            if not isinstance(answer, RemoteAnswer):
                output.decision, output.reason = "failed" if fail else "degraded", answer.reason
                failure = _failure(answer) if fail else None
                continue
            output.answer = Scored(answer.label, answer.score)
            output.decision, output.answered_by = "deferred", "large"
            output.reason = "remote_degraded" if answer.degraded else decisions[position].reason
            output.top = answer.top[: call.top_k] if call.top_k > 1 else ()
        self._metrics.deferrals.note(_what_became(answers))
        return failure

    async def _ask(
        self, call: Call, policy: Policy, inputs: list[Input], disconnected: Disconnected
    ) -> list[ItemAnswer]:
        """The large model's answers, within the policy's time and the client's own deadline. Raises RemoteError."""
        refusal = self._remote.refusal()
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
        deadline = asyncio.get_running_loop().time() + timeout_s
        ask = Ask(inputs, call.top_k, deadline, call.hops + 1, call.request_id, own_deadline)
        try:
            return await unless_gone(self._remote.answer(ask), disconnected)
        except RemoteTimeout as error:
            if own_deadline:
                raise DeadlineExceeded("the client's deadline passed while the large model was asked") from error
            raise


class LargeModel:
    """A model without a gate on the same route: every item is accepted, answered by `large`."""

    def __init__(self, labels: Sequence[str], batcher: Batcher[Any, Prediction], metrics: Metrics) -> None:
        self._labels = labels
        self._batcher = batcher
        self._metrics = metrics

    async def classify(self, call: Call, disconnected: Disconnected) -> Answer:
        """Answers in the order of the items. Raises Overloaded, Expired, ClientGone or ModelFailed."""
        batched = await _batched(self._batcher, call, disconnected)
        outputs = []
        for prediction in _whole(batched.results):
            answer = Scored(self._labels[prediction.label], prediction.score)
            top = _top(prediction, call, self._labels)
            outputs.append(Output(answer, prediction.confidence, "accepted", "large", None, None, top))
            self._metrics.count_item("accepted", None, call.override, prediction.confidence)
        return Answer(outputs, timings_s={"queue": batched.queue_s, "model": batched.model_s})


async def _batched(batcher: Batcher[Any, Prediction], call: Call, disconnected: Disconnected) -> Batched[Prediction]:
    """Through the model. From a queue that takes time a client may leave; the inline runner's is not worth watching."""
    if batcher.runner == "inline":
        return await batcher.submit(call.items, call.deadline)
    return await unless_gone(batcher.submit(call.items, call.deadline), disconnected)


def _whole(results: Sequence[Prediction | GatekeeperError]) -> list[Prediction]:
    """All predictions of a request, or the error of the first item that has none."""
    predictions: list[Prediction] = []
    for result in results:
        if isinstance(result, GatekeeperError):
            raise result
        if not math.isfinite(result.confidence):
            raise ModelFailed("the model gave no finite confidence on this input")
        predictions.append(result)
    return predictions


def _top(prediction: Prediction, call: Call, labels: Sequence[str]) -> Sequence[tuple[str, float]]:
    if call.top_k == 1:
        return ()
    return [(labels[label], score) for label, score in prediction.top(call.top_k)]


def _what_became(answers: Sequence[ItemAnswer | RemoteError]) -> str | None:
    """Of one request: None if the large model answered any of its items, else the reason of the last."""
    reason: str | None = None
    for answer in answers:
        if not isinstance(answer, RemoteAnswer):
            reason = answer.reason
        elif answer.degraded:
            reason = "remote_degraded"
        else:
            return None
    return reason


def _failure(error: RemoteError) -> LargeModelFailed:
    late = isinstance(error, RemoteTimeout | DeadlineExceeded)
    kind = LargeModelLate if late else LargeModelFailed
    return kind(f"the large model did not answer ({error.reason}): try again", retry_after_s=1)


async def unless_gone(asked: Coroutine[Any, Any, Result], disconnected: Disconnected) -> Result:
    """The result of `asked`; when the client leaves first, `asked` is cancelled and ClientGone raised.

    Starlette does not cancel a handler whose client has left, and a model's time is worth saving.
    """
    this, gone = asyncio.current_task(), False
    assert this is not None

    async def watch() -> None:
        nonlocal gone
        await disconnected()
        gone = True
        this.cancel()

    # Only the watching is a task of its own; it interrupts this one, as asyncio.timeout does.
    watching = asyncio.ensure_future(watch())
    try:
        return await asked
    except asyncio.CancelledError:
        if gone and this.uncancel() == 0:
            raise ClientGone("the client left before its answer was there") from None
        raise
    finally:
        watching.cancel()
