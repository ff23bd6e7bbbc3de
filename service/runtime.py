"""Composition root: what one process is made of, opened in order and closed in reverse. Nobody else builds these.

First the parts, then one frozen runtime of them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

import torch

from models.bundle import CALIBRATION, SCORE_RANGES, Bundle, load_bundle
from models.errors import BundleError
from models.inference.classifier import Classifier, Prediction, load_classifier
from models.scale import bucket_bounds, shown_range
from service.access.budgets import RateLimits
from service.access.keys import ApiKeys
from service.batching.batcher import Batcher, BatchLimits
from service.batching.probe import INLINE_BELOW_S, INLINE_LONGEST_S, batch_items, worst_item_s
from service.cascade.call import Answerer
from service.cascade.cascade import Cascade, Ungated
from service.cascade.drafts import BatchedModel
from service.errors import StartupError
from service.images.decoder import DecodeLimits, Decoder, DecodingFirst
from service.images.reader import ImageReader
from service.policy.forecast import Forecast
from service.policy.live import LivePolicy
from service.policy.operating_point import OperatingPoint
from service.policy.store import PolicyStore, open_policy_store
from service.remote.coalescing import Coalescer
from service.remote.fan_out import FanOut
from service.remote.gatekeeper_wire import GatekeeperWire, divided
from service.remote.http import trusted_roots
from service.remote.large_model import LargeModel
from service.remote.llm_question import label_prompt
from service.remote.openai_wire import OpenAIWire
from service.remote.pool import EndpointLimits, Pool
from service.remote.wire import Wire
from service.server.intake import Intake
from service.server.running import Lifecycle
from service.settings import EdgeSettings, LargeSettings
from service.telemetry.metrics import EdgeMetrics, Metrics
from service.telemetry.outage import Deferrals
from service.telemetry.recent import RecentItems

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
# Of one body, and of all on their way: with four clients that send as much as they may, a service stays within a
# fifth of its memory. `python -m loadtests.stress.fuzz` measures it.
BODY_BYTES = {"text-classification": 4 * MIB, "image-classification": 16 * MIB}
RECEIVE_BYTES = {"text-classification": 64 * MIB, "image-classification": 32 * MIB}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What both services have: a bundle, its model behind a batcher, and what answers a call."""

    role: ClassVar[Literal["edge", "large"]]

    settings: EdgeSettings | LargeSettings
    bundle: Bundle
    metrics: Metrics
    batcher: Batcher[Any, Prediction]
    decoder: Decoder | None  # there where the model takes images
    answerer: Answerer
    api_keys: ApiKeys
    rate_limits: RateLimits
    intake: Intake
    max_body_bytes: int
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    @cached_property
    def name(self) -> str:
        """The bundle's name."""
        return self.bundle.manifest.name

    @cached_property
    def labels(self) -> Sequence[str]:
        """In the order of the model's outputs."""
        return self.bundle.manifest.labels

    @cached_property
    def threshold_range(self) -> tuple[float, float]:
        """(low, high) of the bundle's score, inclusive."""
        return SCORE_RANGES[self.bundle.manifest.score]

    def was_asked(self, handshake: str) -> None:
        """Another edge, or this one itself, has asked for the labels."""


@dataclass(frozen=True, kw_only=True)
class EdgeRuntime(Runtime):
    """The edge: a cascade under a policy."""

    role = "edge"

    settings: EdgeSettings
    metrics: EdgeMetrics
    policy: LivePolicy
    remote: Pool
    forecast: Forecast
    recent: RecentItems
    deferrals: Deferrals
    confidence_range: tuple[float, float]

    def was_asked(self, handshake: str) -> None:
        self.remote.was_asked(handshake)


@dataclass(frozen=True, kw_only=True)
class LargeRuntime(Runtime):
    """The large-model service: one model, no gate."""

    role = "large"

    settings: LargeSettings


@asynccontextmanager
async def open_edge(settings: EdgeSettings) -> AsyncIterator[EdgeRuntime]:
    """Everything of the edge, closed in reverse order. Raises StartupError."""
    bundle, model = _load(settings)
    try:
        calibration = bundle.read_calibration()
    except BundleError as error:
        raise StartupError(str(error)) from error
    if CALIBRATION not in bundle.manifest.files:
        logger.warning("the bundle is not calibrated: its threshold is a guess; run `gatekeeper calibrate`")
    recent, deferrals = RecentItems(), Deferrals()
    forecast = Forecast(calibration, recent)
    bounds = bucket_bounds(bundle.manifest.score, calibration)
    metrics = EdgeMetrics(bundle.manifest.name, bundle.gate_digest, code_version(), bounds, recent, deferrals)
    if calibration is not None:
        metrics.expect_confidences(calibration.shares_up_to(metrics.confidence_bounds))
    async with AsyncExitStack() as stack:
        keys, budgets = await _open_guard(stack, settings, EdgeRuntime.role, bundle, metrics)
        max_body_bytes, intake = _intake(settings, bundle)
        batcher = _open_batcher(stack, settings, bundle, model, metrics)
        store = open_policy_store(settings)
        stack.push_async_callback(store.close)
        policy = _live_policy(settings, bundle, store, metrics, forecast)
        stack.push_async_callback(policy.close)
        await policy.start()
        remote = _remote(settings, metrics, bundle.manifest.labels)
        stack.push_async_callback(remote.aclose)
        metrics.watch_breaker(lambda: remote.breaker_open)
        listeners = (metrics.on_settled, recent.on_settled, deferrals.on_settled)
        cascade = Cascade(BatchedModel(batcher), policy, _large_model(settings, remote, max_body_bytes), listeners)
        remote.start()
        decoder = _open_decoder(stack, settings, model, max_body_bytes)  # closed first: it stands in front
        yield EdgeRuntime(
            settings=settings,
            bundle=bundle,
            metrics=metrics,
            batcher=batcher,
            decoder=decoder,
            answerer=cascade if decoder is None else DecodingFirst(decoder, cascade),
            api_keys=keys,
            rate_limits=budgets,
            intake=intake,
            max_body_bytes=max_body_bytes,
            policy=policy,
            remote=remote,
            forecast=forecast,
            recent=recent,
            deferrals=deferrals,
            confidence_range=shown_range(bundle.manifest.score, calibration),
        )


@asynccontextmanager
async def open_large(settings: LargeSettings) -> AsyncIterator[LargeRuntime]:
    """Everything of the large-model service. Raises StartupError."""
    bundle, model = _load(settings)
    bounds = bucket_bounds(bundle.manifest.score, None)
    metrics = Metrics(bundle.manifest.name, bundle.gate_digest, code_version(), bounds)
    async with AsyncExitStack() as stack:
        keys, budgets = await _open_guard(stack, settings, LargeRuntime.role, bundle, metrics)
        max_body_bytes, intake = _intake(settings, bundle)
        batcher = _open_batcher(stack, settings, bundle, model, metrics)
        decoder = _open_decoder(stack, settings, model, max_body_bytes)
        ungated = Ungated(BatchedModel(batcher), (metrics.on_settled,))
        yield LargeRuntime(
            settings=settings,
            bundle=bundle,
            metrics=metrics,
            batcher=batcher,
            decoder=decoder,
            answerer=ungated if decoder is None else DecodingFirst(decoder, ungated),
            api_keys=keys,
            rate_limits=budgets,
            intake=intake,
            max_body_bytes=max_body_bytes,
        )


async def _open_guard(
    stack: AsyncExitStack, settings: EdgeSettings | LargeSettings, role: str, bundle: Bundle, metrics: Metrics
) -> tuple[ApiKeys, RateLimits]:
    """API keys and their limits. Raises StartupError."""
    keys = ApiKeys(
        settings.api_keys,
        settings.api_keys_file,
        source="GATEKEEPER_API_KEYS" if role == "edge" else "GATEKEEPER_LARGE_API_KEYS",
        on_names=metrics.know_keys,
        on_current=metrics.set_keys_current,
    )
    # Without keys there is nothing to count, and no reason to connect.
    redis_url = str(settings.redis_url) if settings.redis_url is not None and keys.guarded else None
    budgets = RateLimits(
        redis_url,
        group=f"{role}:{bundle.manifest.name}",
        on_spent=metrics.count_key_items,
        on_shared=metrics.set_limits_shared,
    )
    stack.push_async_callback(budgets.aclose)
    await budgets.start()
    following = asyncio.create_task(keys.follow(), name="API keys")
    stack.push_async_callback(_cancelled, following)
    return keys, budgets


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _intake(settings: EdgeSettings | LargeSettings, bundle: Bundle) -> tuple[int, Intake]:
    """(bytes of the longest body, room for all that arrive). One body of the greatest length must always fit."""
    max_body_bytes = settings.max_body_bytes or BODY_BYTES[bundle.manifest.task]
    receive_bytes = settings.max_receive_bytes or RECEIVE_BYTES[bundle.manifest.task]
    return max_body_bytes, Intake(max(receive_bytes, max_body_bytes))


def _open_decoder(
    stack: AsyncExitStack, settings: EdgeSettings | LargeSettings, model: Classifier, max_body_bytes: int
) -> Decoder | None:
    """Where the model takes images."""
    if model.prepare is None:
        return None
    limits = DecodeLimits(
        threads=settings.decode_threads,
        # One request of max_items, or of max_body_bytes, must always fit, and as much again is kept for smaller ones.
        max_queue_items=max(settings.max_queue_items, 2 * settings.max_items),
        max_queue_bytes=max(settings.max_decode_queue_bytes, 2 * max_body_bytes),
        max_request_s=max(settings.max_decode_ms, settings.max_image_ms) / 1000,
        max_queue_wait_s=settings.max_queue_wait_ms / 1000,
    )
    decoder = Decoder(ImageReader(model.prepare, settings.max_image_pixels, settings.max_image_ms / 1000), limits)
    stack.push_async_callback(decoder.aclose)
    return decoder


def _live_policy(
    settings: EdgeSettings, bundle: Bundle, store: PolicyStore, metrics: EdgeMetrics, forecast: Forecast
) -> LivePolicy:
    name = bundle.manifest.name
    last_good_path = None
    if settings.redis_url is not None:  # SQLite is itself the local copy
        last_good_path = settings.policy_path.parent / f"last-good-{name}.json"

    def on_change(point: OperatingPoint) -> None:
        metrics.threshold.set(point.threshold)
        metrics.policy_version.set(point.policy_version)
        expected = forecast.outlook(point)
        metrics.expect(expected.expected_deferral_ratio, expected.expected_joint_accuracy)

    return LivePolicy(
        store,
        name=name,
        gate_digest=bundle.gate_digest,
        default_threshold=bundle.manifest.default_threshold,
        threshold_range=SCORE_RANGES[bundle.manifest.score],
        last_good_path=last_good_path,
        poll_s=settings.policy_poll_s,
        on_change=on_change,
        on_store_up=metrics.set_store_up,
    )


def _load(settings: EdgeSettings | LargeSettings) -> tuple[Bundle, Classifier]:
    torch.set_num_threads(settings.torch_threads)
    try:
        bundle = load_bundle(settings.bundle)
        return bundle, load_classifier(bundle)
    except BundleError as error:
        raise StartupError(str(error)) from error


def _open_batcher(
    stack: AsyncExitStack,
    settings: EdgeSettings | LargeSettings,
    bundle: Bundle,
    model: Classifier,
    metrics: Metrics,
) -> Batcher[Any, Prediction]:
    most_items, batch_s = batch_items(model, settings.max_batch_items, settings.max_batch_ms / 1000)
    worst_s = worst_item_s(model, settings.max_text_chars)
    runner: Literal["inline", "thread"]
    if settings.runner == "auto":
        runner = "inline" if batch_s < INLINE_BELOW_S and worst_s < INLINE_LONGEST_S else "thread"
    else:
        runner = settings.runner
    max_tokens = bundle.manifest.max_tokens or 1
    batch_tokens = settings.max_batch_tokens
    if runner == "inline":
        batch_tokens = min(batch_tokens, max(1, int(INLINE_LONGEST_S / worst_s)) * max_tokens)
        if worst_s > INLINE_LONGEST_S:
            logger.warning("one item may hold up the event loop: unset GATEKEEPER_RUNNER", extra={"seconds": worst_s})
    limits = BatchLimits(
        max_batch_items=most_items,
        # One request of max_items must always fit into an empty queue.
        max_queue_items=max(settings.max_queue_items, settings.max_items),
        max_batch_tokens=batch_tokens,
        max_wait_s=settings.max_wait_ms / 1000,
        max_queue_wait_s=settings.max_queue_wait_ms / 1000,
        model_timeout_s=settings.model_timeout_s,
    )
    batcher: Batcher[Any, Prediction] = Batcher(
        model.predict,
        limits,
        runner=runner,
        on_batch=metrics.observe_batch,
        on_queue=metrics.observe_queue,
        length=_length(bundle.manifest.max_tokens),
    )
    metrics.watch_queue(lambda: batcher.depth, limits.max_queue_items)
    stack.push_async_callback(batcher.aclose)
    return batcher


def _length(max_tokens: int | None) -> Callable[[Any], int]:
    """Tokens of a text, guessed from its characters because counting them is the tokenizer's work; 1 for an image."""
    if max_tokens is None:
        return lambda _: 1
    most = max_tokens

    return lambda text: min(len(text) // 4 + 1, most)


def new_wire(settings: EdgeSettings, labels: Sequence[str], metrics: EdgeMetrics) -> Callable[[str], Wire]:
    """What makes the wire to a URL."""
    if settings.remote_wire == "gatekeeper":
        refuse_foreign = settings.remote_foreign_labels == "refuse"
        return lambda url: GatekeeperWire(url, labels, refuse_foreign=refuse_foreign)
    if settings.remote_model is None:
        raise StartupError("GATEKEEPER_REMOTE_WIRE=openai needs GATEKEEPER_REMOTE_MODEL, the LLM's name at its server")
    prompt = label_prompt(labels, settings.remote_descriptions, settings.remote_prompt)
    prices = (settings.remote_price_prompt, settings.remote_price_completion)
    on_usage = partial(metrics.observe_usage, prices)
    return partial(OpenAIWire, model=settings.remote_model, prompt=prompt, on_usage=on_usage)


def _large_model(settings: EdgeSettings, remote: Pool, max_body_bytes: int) -> LargeModel:
    """How the items of a request travel: many in one call, or each in its own."""
    if settings.remote_wire == "openai":
        return FanOut(remote, settings.remote_fan_out)
    return Coalescer(remote, settings.remote_max_items, partial(divided, max_bytes=max_body_bytes))


def _remote(settings: EdgeSettings, metrics: EdgeMetrics, labels: Sequence[str]) -> Pool:
    limits = EndpointLimits(
        max_concurrency=settings.remote_max_concurrency,
        connect_timeout_s=settings.remote_connect_timeout_s,
        max_response_bytes=settings.remote_max_response_bytes,
        breaker_failures=settings.breaker_failures,
        breaker_open_s=settings.breaker_open_s,
    )
    urls = [str(url) for url in settings.remote_url]
    if settings.remote_ca_file is not None and not any(url.startswith("https:") for url in urls):
        logger.warning("GATEKEEPER_REMOTE_CA_FILE is not used: no remote URL is https")
    key = settings.remote_key
    remote = Pool(
        urls,
        new_wire(settings, labels, metrics),
        limits,
        metrics.observe_remote,
        key=None if key is None else key.get_secret_value(),
        tls=trusted_roots(settings.remote_ca_file) if any(url.startswith("https:") for url in urls) else None,
    )
    for endpoint in remote.endpoints:
        metrics.watch_endpoint(endpoint.name, partial(getattr, endpoint, "breaker_open"))
    return remote


@cache
def code_version() -> str:
    """The version of the installed package."""
    with suppress(PackageNotFoundError):
        return version("gatekeeper-cascade")
    return "unknown"
