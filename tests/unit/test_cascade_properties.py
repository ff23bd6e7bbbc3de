"""Properties of the merge: any mixture of accepted, deferred, degraded and failed items, of requests at once, of faults
of the large model and of clients that leave. Each output is the right model's own for that item, in its place; each
item of an answered request is counted once, by what became of it.

The cascade, batcher, policy and metrics are real; the two models follow scripts (fakes.py).

One file because it is a second opinion on the whole story: a model of it, and what runs against that.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.middleware import Middleware
from support.fakes import LABELS, FakePrediction, FakeRemote, FakeSmallModel, Script, large_answer

from service.access.budgets import RateLimits
from service.access.keys import ApiKeys
from service.api import classify
from service.api.classify import ClassifyCall
from service.api.problems import install_problems, refusal
from service.batching.batcher import Batcher, BatchLimits
from service.cascade.call import Answer
from service.cascade.cascade import Cascade
from service.cascade.drafts import BatchedModel
from service.errors import (
    BreakerOpen,
    ClientGone,
    DeadlineExceeded,
    LargeModelFailed,
    LargeModelLate,
    ModelFailed,
    RemoteBadAnswer,
    RemoteError,
    RemoteLimit,
    RemoteTimeout,
    RemoteUnavailable,
)
from service.outcomes import Outcome
from service.policy.document import Policy
from service.policy.live import LivePolicy
from service.policy.operating_point import OperatingPoint
from service.policy.sqlite import SqlitePolicyStore
from service.remote.large_model import RemoteAnswer
from service.server.intake import Intake
from service.server.middleware import DirectRoute, RequestMiddleware
from service.server.running import Lifecycle
from service.server.sites import Sites
from service.telemetry.metrics import EdgeMetrics
from service.telemetry.outage import Deferrals
from service.telemetry.recent import RecentItems

ERRORS = [RemoteUnavailable, RemoteTimeout, RemoteBadAnswer, BreakerOpen, RemoteLimit, DeadlineExceeded]
# Few values, so that ties with the threshold are common; None: the model raises on it.
USUAL = [0.0, 0.3, 0.5, 0.7318, 0.9, 1.0]
STRANGE = [float("nan"), float("inf"), float("-inf"), None]
THRESHOLDS = st.sampled_from([*USUAL, 0.7317999999999999, 0.7318000000000001])

Override = tuple[float | None, Literal["auto", "small", "large"]]
OVERRIDES = st.one_of(
    st.just((None, "auto")),
    st.just((None, "auto")),
    st.tuples(THRESHOLDS, st.just("auto")),
    st.tuples(st.none() | THRESHOLDS, st.sampled_from(["small", "large"])),
)
Counted = tuple[str, str, str]  # decision, reason, override
DEPTHS = [
    pytest.param(150, id="default"),
    pytest.param(1_500, id="deep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@dataclass(frozen=True)
class Plan:
    """One request, and what the large model and the client do about it."""

    confidences: list[float | None]
    top_k: int
    override: Override
    own_deadline: bool
    ending: Literal["answers", "error", "client leaves", "is cancelled"]
    error: type[RemoteError]
    turns: int
    degraded: frozenset[int]  # positions which the large model, an edge itself, answers degraded


@dataclass(frozen=True)
class World:
    """Requests at once under one policy."""

    plans: list[Plan]
    threshold: float
    deferral: Literal["on", "off"]
    on_remote_failure: Literal["degrade", "fail"]
    runner: Literal["inline", "thread"]
    max_batch_items: int
    breaker_open: bool


def confidences(usual: list[float]) -> st.SearchStrategy[list[float | None]]:
    """Mostly of the usual ones; one in ten lists may hold what makes a model's answer unusable."""
    plain: st.SearchStrategy[Any] = st.sampled_from(usual) | st.floats(0.0, 1.0)
    lists = [st.lists(plain, min_size=1, max_size=40)] * 9
    return st.one_of(*lists, st.lists(plain | st.sampled_from(STRANGE), min_size=1, max_size=40))


PLANS = st.builds(
    Plan,
    confidences=confidences(USUAL),
    top_k=st.integers(1, len(LABELS)),
    override=OVERRIDES,
    own_deadline=st.booleans(),
    ending=st.sampled_from(["answers", "answers", "answers", "error", "error", "client leaves", "is cancelled"]),
    error=st.sampled_from(ERRORS),
    turns=st.integers(0, 20),
    degraded=st.frozensets(st.integers(0, 39), max_size=10),
)
WORLDS = st.builds(
    World,
    plans=st.lists(PLANS, min_size=1, max_size=4),
    threshold=THRESHOLDS,
    deferral=st.sampled_from(["on", "on", "on", "off"]),
    on_remote_failure=st.sampled_from(["degrade", "degrade", "fail"]),
    runner=st.sampled_from(["inline", "inline", "inline", "thread"]),
    max_batch_items=st.integers(1, 40),
    breaker_open=st.sampled_from([False] * 7 + [True]),
)


@dataclass
class Output:
    """What the client must be told of one item: (label, score) pairs, and whose they are."""

    answer: tuple[str, float]
    confidence: float
    decision: str
    answered_by: str
    reason: str | None
    small: tuple[str, float]
    top: list[tuple[str, float]]


@dataclass
class Expectation:
    """What must become of one request, told from its plan alone: the second opinion."""

    raises: type[Exception] | None
    outputs: list[Output]
    outcomes: list[Counted]
    asks: bool


def expected(world: World, plan: Plan, texts: list[str]) -> Expectation:
    if not all(_finite(confidence) for confidence in plan.confidences):
        return Expectation(ModelFailed, [], [], False)
    threshold, route = plan.override
    threshold = world.threshold if threshold is None else threshold
    override = "route" if route != "auto" else "none" if plan.override[0] is None else "threshold"
    rows = [
        _row(confidence or 0.0, threshold, route, world.deferral == "on")  # never None here
        for confidence in plan.confidences
    ]
    wants = any(defers for defers, _ in rows)
    asks = wants and not world.breaker_open
    if asks and plan.ending in ("client leaves", "is cancelled"):
        gone = ClientGone if plan.ending == "client leaves" else asyncio.CancelledError
        return Expectation(gone, [], [], True)
    failure = None
    if world.breaker_open:
        failure = "breaker_open"
    elif plan.ending == "error":
        late = plan.error is RemoteTimeout and plan.own_deadline
        failure = "deadline" if late else plan.error.reason
    outputs = []
    for position, ((defers, reason), text) in enumerate(zip(rows, texts, strict=True)):
        outputs.append(_output(world, plan, text, position, defers=defers, reason=reason, failure=failure))
    outcomes = [(output.decision, output.reason or "none", override) for output in outputs]
    raises: type[Exception] | None = None
    if wants and failure is not None and world.on_remote_failure == "fail":
        raises = LargeModelLate if failure in ("remote_timeout", "deadline") else LargeModelFailed
    return Expectation(raises, outputs, outcomes, asks)


def _finite(confidence: float | None) -> bool:
    return confidence is not None and float("-inf") < confidence < float("inf")


def _row(confidence: float, threshold: float, route: str, deferral: bool) -> tuple[bool, str | None]:
    """Whether the gate defers, and the reason if all goes well."""
    if route != "auto":
        return route == "large", "forced"
    if confidence >= threshold:
        return False, None
    return (True, "below_threshold") if deferral else (False, "deferral_off")


def _output(world: World, plan: Plan, text: str, position: int, *, defers: bool, reason: Any, failure: Any) -> Output:
    model = FakeSmallModel()
    model.confidences[text] = plan.confidences[position]
    prediction = model.predict(text)
    labels = [(LABELS[label], score) for label, score in prediction.top(plan.top_k)]
    top = labels if plan.top_k > 1 else []
    small: Any = labels[0]
    own = Output(small, prediction.confidence, "accepted", "small", reason, small, top)
    if not defers:
        return own
    if failure is not None:
        own.decision = "failed" if world.on_remote_failure == "fail" else "degraded"
        own.reason = failure
        return own
    answer = large_answer(text, plan.top_k)
    reason = "remote_degraded" if position in plan.degraded else reason
    large: Any = (answer.label, answer.score)
    top = list(answer.top) if plan.top_k > 1 else []
    return Output(large, prediction.confidence, "deferred", "large", reason, small, top)


class Stage:
    """The real cascade of one world, with its scripted models."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.model = FakeSmallModel()
        self.remote = FakeRemote(world.breaker_open)
        recent, deferrals = RecentItems(), Deferrals()
        self.metrics = EdgeMetrics("small", "gate-a", "0", [0.5, 1.0], recent, deferrals)
        self.batcher: Batcher[Any, Any] = Batcher(
            self.model,
            BatchLimits(world.max_batch_items, max_queue_items=10_000),
            runner=world.runner,
            on_batch=self.metrics.observe_batch,
        )
        # Never started, so it never touches its store.
        policy = LivePolicy(
            SqlitePolicyStore(folder / "policy.db"),
            name="small",
            gate_digest="gate-a",
            default_threshold=world.threshold,
            threshold_range=(0.0, 1.0),
            last_good_path=None,
            poll_s=60,
            on_change=lambda _: None,
            on_store_up=lambda _: None,
        )
        wished = Policy(
            version=7,
            gate_digest="gate-a",
            threshold=0.5,
            on_remote_failure=world.on_remote_failure,
            updated_at=datetime.now(UTC),
            updated_by="test",
        )
        # In force is another point than the one that is wished: the gate stands at the former.
        policy.point = OperatingPoint(world.threshold, world.deferral, wished.version, "controller", wished)
        listeners = (self.metrics.on_settled, recent.on_settled, deferrals.on_settled)
        self.cascade = Cascade(BatchedModel(self.batcher), policy, self.remote, listeners)

    def prepare(self, number: int) -> tuple[Plan, list[str], Script]:
        """Tell the models what to make of request `number`; its texts."""
        plan = self.world.plans[number]
        texts = [f"request {number} item {position}" for position in range(len(plan.confidences))]
        self.model.confidences.update(zip(texts, plan.confidences, strict=True))
        script = self.remote.scripts[f"id-{number}"] = Script(
            turns=plan.turns,
            error=plan.error("as scripted") if plan.ending == "error" else None,
            forever=plan.ending in ("client leaves", "is cancelled"),
            degraded=frozenset(text for position, text in enumerate(texts) if position in plan.degraded),
        )
        return plan, texts, script

    def counted(self) -> Counter[Counted]:
        return Counter(
            {
                (sample.labels["decision"], sample.labels["reason"], sample.labels["override"]): int(sample.value)
                for metric in self.metrics.registry.collect()
                for sample in metric.samples
                if sample.name == "gatekeeper_items_total" and sample.value
            }
        )

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"gatekeeper_{name}", {"model": "small"})


@asynccontextmanager
async def staged(world: World, folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(world, folder)
    try:
        yield stage
    finally:
        await stage.batcher.aclose()


async def ask(stage: Stage, number: int) -> Answer[Any, Any] | BaseException:
    """One request of the world: its answer, or what it raised."""
    plan, texts, script = stage.prepare(number)
    threshold, route = plan.override
    deadline = time.monotonic() + 9.0 if plan.own_deadline else None  # below the policy's ten seconds
    call = ClassifyCall(texts, f"id-{number}", threshold, route, deadline, inputs=texts, top_k=plan.top_k)

    async def disconnected() -> None:
        if plan.ending == "client leaves":
            await script.asked.wait()
        else:
            await asyncio.Event().wait()

    asking = asyncio.ensure_future(stage.cascade.answer(call, disconnected))
    if plan.ending == "is cancelled":
        called = asyncio.ensure_future(script.asked.wait())
        await asyncio.wait((asking, called), return_when=asyncio.FIRST_COMPLETED)
        if called.done():
            asking.cancel()
        called.cancel()
    try:
        return await asking
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  what it raised is the result
        return error


async def enact(world: World, folder: Path) -> None:
    async with staged(world, folder) as stage:
        results = await asyncio.gather(*(ask(stage, number) for number in range(len(world.plans))))
        outcomes: Counter[Counted] = Counter()
        for number, (plan, result) in enumerate(zip(world.plans, results, strict=True)):
            texts = [f"request {number} item {position}" for position in range(len(plan.confidences))]
            wanted = expected(world, plan, texts)
            check(wanted, result, plan, world)
            outcomes.update(wanted.outcomes)
            script = stage.remote.scripts[f"id-{number}"]
            assert script.calls == int(wanted.asks), "one call for all deferred items of a request, or none"
            await asyncio.sleep(0)  # a call that was given up hears of it in the next turn
            assert script.cancelled == (wanted.raises in (ClientGone, asyncio.CancelledError))
        check_metrics(stage, outcomes)


def check(wanted: Expectation, result: Answer[Any, Any] | BaseException, plan: Plan, world: World) -> None:
    if wanted.raises is not None:
        assert type(result) is wanted.raises, result
        return
    assert isinstance(result, Answer), result
    assert result.policy_version == 7
    assert result.threshold == (world.threshold if plan.override[0] is None else plan.override[0])
    assert [told(outcome, plan.top_k) for outcome in result.outcomes] == wanted.outputs


def told(outcome: Outcome[FakePrediction, RemoteAnswer], top_k: int) -> Output:
    """What the outcome says of its item, in labels."""
    draft, answer = outcome.draft, outcome.answer
    assert (answer is not None) == (outcome.answered_by == "large")
    small = [(LABELS[label], score) for label, score in draft.top(top_k)]
    ranked = small if answer is None else list(answer.top)
    first = small[0] if answer is None else (answer.label, answer.score)
    top = ranked if top_k > 1 else []
    return Output(first, draft.confidence, outcome.decision, outcome.answered_by, outcome.reason, small[0], top)


def check_metrics(stage: Stage, outcomes: Counter[Counted]) -> None:
    assert stage.counted() == outcomes
    assert stage.sample("confidence_count") == outcomes.total()
    own = Counter({key: count for key, count in outcomes.items() if key[2] == "none"})
    not_accepted = sum(count for key, count in own.items() if key[0] in ("deferred", "degraded", "failed"))
    ratio = stage.sample("deferral_ratio")
    assert ratio == pytest.approx(not_accepted / own.total() if own else float("nan"), nan_ok=True)
    assert stage.batcher.depth == 0


@pytest.mark.parametrize("examples", DEPTHS)
def test_outputs_are_merged_in_order_and_counted_once(examples: int, tmp_path: Path) -> None:
    @given(world=WORLDS)
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 1_000,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    def holds(world: World) -> None:
        asyncio.run(enact(world, tmp_path))

    holds()


def an_app(stage: Stage) -> FastAPI:
    """The classify route over this stage, with the edge's middleware and problems."""
    app = FastAPI(
        middleware=[
            Middleware(
                RequestMiddleware,
                routes=frozenset({"/v1/classify"}),
                access_log=False,
                sites=Sites(None),
                refuse=refusal,
            ),
            Middleware(DirectRoute, path="/v1/classify", endpoint=classify.classify),
        ]
    )
    install_problems(app)
    app.state.runtime = SimpleNamespace(
        api_keys=ApiKeys(None, None, source="", on_names=lambda _: None),
        batcher=stage.batcher,
        rate_limits=RateLimits(None, group="", on_spent=lambda *_: None, on_shared=lambda _: None),
        answerer=stage.cascade,
        decoder=None,
        intake=Intake(100_000),
        max_body_bytes=100_000,
        lifecycle=Lifecycle(),
        labels=LABELS,
        metrics=stage.metrics,
        name="small",
        settings=SimpleNamespace(max_items=40, max_text_chars=100),
        threshold_range=(0.0, 1.0),
    )
    return app


async def post(app: FastAPI, stage: Stage, number: int) -> tuple[int, dict[str, Any]]:
    """One request of the world over plain ASGI, where a client can leave: (status, document)."""
    plan, texts, script = stage.prepare(number)
    threshold, route = plan.override
    parameters = {"top_k": plan.top_k, "threshold": threshold, "route": route}
    body = json.dumps({"inputs": texts, "parameters": parameters}).encode()
    headers = [(b"x-request-id", f"id-{number}".encode())]
    if plan.own_deadline:
        headers.append((b"x-request-timeout-ms", b"9000"))
    arriving = [{"type": "http.request", "body": part, "more_body": True} for part in (body[:9], body[9:])]
    arriving[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        if arriving:
            return arriving.pop(0)
        await (script.asked.wait() if plan.ending == "client leaves" else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message["body"] for message in sent[1:]))


STATUSES = {ModelFailed: 500, ClientGone: 499, LargeModelFailed: 503, LargeModelLate: 504}


async def enact_over_http(world: World, folder: Path) -> None:
    async with staged(world, folder) as stage:
        app = an_app(stage)
        numbers = [n for n, plan in enumerate(world.plans) if plan.ending != "is cancelled"]
        answers = await asyncio.gather(*(post(app, stage, number) for number in numbers))
        outcomes: Counter[Counted] = Counter()
        refusals: Counter[int] = Counter()
        for number, (status, document) in zip(numbers, answers, strict=True):
            plan = world.plans[number]
            texts = [f"request {number} item {position}" for position in range(len(plan.confidences))]
            wanted = expected(world, plan, texts)
            outcomes.update(wanted.outcomes)
            if wanted.raises is not None:
                assert status == STATUSES[wanted.raises]
                refusals[status] += 1
                continue
            assert status == 200, document
            assert document["id"] == f"id-{number}"
            assert document["outputs"] == [as_json(output, plan.top_k) for output in wanted.outputs]
        check_metrics(stage, outcomes)
        gone = stage.metrics.registry.get_sample_value("gatekeeper_rejected_total", {"reason": "client-gone"})
        assert (gone or 0) == refusals[499], "who leaves is counted among the refusals, not among the items"


def as_json(output: Output, top_k: int) -> dict[str, Any]:
    """The contract's words for an output."""
    (label, score), (small_label, small_score) = output.answer, output.small
    document = {
        "label": label,
        "score": score,
        "confidence": output.confidence,
        "decision": output.decision,
        "answered_by": output.answered_by,
        "reason": output.reason,
        "small": {"label": small_label, "score": small_score},
    }
    if top_k > 1:
        document["top"] = [{"label": name, "score": value} for name, value in output.top]
    return document


def test_the_same_holds_over_http(tmp_path: Path) -> None:
    @given(world=WORLDS)
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def holds(world: World) -> None:
        asyncio.run(enact_over_http(world, tmp_path))

    holds()
