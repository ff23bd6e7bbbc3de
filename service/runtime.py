"""Composition root: what one process is made of, opened in order and closed in reverse. Nobody else builds these."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch

from models.bundle import CALIBRATION, SCORE_RANGES, Bundle, Calibration, load_bundle
from models.errors import BundleError
from models.inference.classifier import Classifier as BundleClassifier
from models.inference.classifier import load_classifier
from service.access.budgets import RateLimits
from service.access.keys import ApiKeys
from service.api.status import (
    ConsoleState,
    DegradingStatus,
    EndpointState,
    EndpointStatus,
    PolicyInForce,
    RemoteStatus,
    Savings,
    Status,
    StoreStatus,
)
from service.batching.batcher import Batcher, BatchLimits
from service.cascade.cascade import Cascade, Classifier, LargeModel, Prediction
from service.errors import StartupError
from service.images.decoder import DecodeLimits, Decoder, DecodingClassifier
from service.images.reader import ImageReader
from service.policy.forecast import Forecast
from service.policy.live import LivePolicy
from service.policy.operating_point import OperatingPoint
from service.policy.store import PolicyStore, open_policy_store
from service.remote.coalescing import Coalescer
from service.remote.gatekeeper_wire import GatekeeperWire, divided
from service.remote.http import trusted_roots
from service.remote.pool import EndpointLimits, Pool
from service.server.intake import Intake
from service.settings import EdgeSettings, LargeSettings
from service.telemetry.metrics import EdgeMetrics, Metrics

logger = logging.getLogger(__name__)

INLINE_BELOW_S = 0.002  # a forward pass of 32 items quicker than this is not worth a thread switch
INLINE_LONGEST_S = 0.05  # nothing may keep the event loop for longer
WIDE = 100.0  # logits of a trained classifier, and so its energy, rarely lie further apart
MIB = 1024 * 1024
# Of one body, and of all on their way: with four clients that send as much as they may, a service stays within a
# fifth of its memory. `python -m loadtests.stress.fuzz` measures it.
BODY_BYTES = {"text-classification": 4 * MIB, "image-classification": 16 * MIB}
RECEIVE_BYTES = {"text-classification": 64 * MIB, "image-classification": 32 * MIB}


class Runtime:
    """What both services have: a bundle, its model behind a batcher, metrics."""

    role: Literal["edge", "large"]
    classifier: Classifier
    metrics: Metrics

    def __init__(self, settings: EdgeSettings | LargeSettings, bundle: Bundle) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.name
        self.labels = bundle.manifest.labels
        self.threshold_range = SCORE_RANGES[bundle.manifest.score]
        self.draining = False
        self.started_at = time.monotonic()
        self.batcher: Batcher[Any, Prediction]
        self.api_keys: ApiKeys
        self.rate_limits: RateLimits
        self.decoder: Decoder | None = None  # there where the model takes images
        self.max_body_bytes = settings.max_body_bytes or BODY_BYTES[bundle.manifest.task]
        receive_bytes = settings.max_receive_bytes or RECEIVE_BYTES[bundle.manifest.task]
        # One body of the greatest length must always fit.
        self.intake = Intake(max(receive_bytes, self.max_body_bytes))

    def meet(self, handshake: str) -> None:
        """Another edge, or this one itself, has asked for the labels."""


class EdgeRuntime(Runtime):
    """The edge: a cascade under a policy."""

    role = "edge"
    metrics: EdgeMetrics
    policy: LivePolicy

    def __init__(self, settings: EdgeSettings, bundle: Bundle, calibration: Calibration | None) -> None:
        super().__init__(settings, bundle)
        self.settings = settings
        self._confidence_range = _shown_range(self.threshold_range, calibration)
        self.metrics = EdgeMetrics(self.name, bundle.gate_digest, code_version(), self._confidence_range)
        self.store_up = False
        self.remote: Pool
        self.forecast = Forecast(calibration, self.metrics.recent)
        if calibration is not None:
            self.metrics.expect_confidences(calibration.shares_up_to(self.metrics.confidence_bounds))

    def on_policy(self, point: OperatingPoint) -> None:
        """Show in the metrics what is in force."""
        self.metrics.threshold.set(point.threshold)
        self.metrics.policy_version.set(point.policy_version)
        expected = self.forecast.outlook(point)
        self.metrics.expect(expected.expected_deferral_ratio, expected.expected_joint_accuracy)

    def on_store_up(self, up: bool) -> None:
        """Show whether the policy store answers."""
        self.store_up = up
        self.metrics.set_store_up(up)

    def status(self) -> Status:
        """GET /admin/v1/status."""
        point = self.policy.point
        expected = self.forecast.outlook(point)
        recent = self.metrics.recent.deferral_ratio()
        return Status(
            model=self.name,
            gate_digest=self.bundle.gate_digest,
            version=code_version(),
            uptime_s=round(time.monotonic() - self.started_at, 3),
            draining=self.draining,
            policy=point.policy,
            policy_store=StoreStatus(kind=self._store_kind, up=self.store_up),
            remote=self._remote_status(),
            degrading=self._degrading(),
            deferral_ratio=None if math.isnan(recent) else recent,
            expected_deferral_ratio=expected.expected_deferral_ratio,
            expected_joint_accuracy=expected.expected_joint_accuracy,
            runner=self.batcher.runner,
            queue_depth=self.batcher.depth,
        )

    def console_state(self) -> ConsoleState:
        """GET /console/state."""
        point, recent = self.policy.point, self.metrics.recent
        ratio = recent.deferral_ratio()
        return ConsoleState(
            model=self.name,
            task=self.bundle.manifest.task,
            score=self.bundle.manifest.score,
            gate_digest=self.bundle.gate_digest,
            service_version=code_version(),
            uptime_s=round(time.monotonic() - self.started_at, 3),
            draining=self.draining,
            admin=self.settings.admin_token is not None,
            guarded=self.api_keys.guarded,
            threshold_range=self.threshold_range,
            policy=PolicyInForce.model_validate(point.policy, from_attributes=True),
            outlook=self.forecast.outlook(point),
            deferral_ratio=None if math.isnan(ratio) else ratio,
            decisions=recent.decisions(),
            savings=Savings(items=recent.ever, calls_saved=recent.accepted_ever),
            confidence_drift=self.forecast.confidence_drift(),
            histogram=self.forecast.histogram(*self._confidence_range),
            breaker_open=self.remote.breaker_open,
            degrading=self._degrading(),
            labels=len(self.labels),
            foreign_labels=self.settings.remote_foreign_labels,
            endpoints=[
                EndpointState(name=endpoint.name, breaker_open=endpoint.breaker_open, **asdict(endpoint.wire.facts))
                for endpoint in self.remote.endpoints
            ],
            policy_store=self._store_kind,
            policy_store_up=self.store_up,
            queue_depth=self.batcher.depth,
            trouble=self.batcher.trouble(),
        )

    def meet(self, handshake: str) -> None:
        self.remote.was_asked(handshake)

    @property
    def _store_kind(self) -> str:
        return "redis" if self.settings.redis_url else "sqlite"

    def _degrading(self) -> DegradingStatus | None:
        state = self.metrics.deferrals.degrading()
        if state is None:
            return None
        seconds = round(time.monotonic() - state.since, 1)
        return DegradingStatus(seconds=seconds, requests=state.requests, reasons=state.reasons)

    def _remote_status(self) -> RemoteStatus:
        endpoints = [
            EndpointStatus(
                url=endpoint.url,
                breaker_open=endpoint.breaker_open,
                in_flight=endpoint.in_flight,
                **asdict(endpoint.wire.facts),
            )
            for endpoint in self.remote.endpoints
        ]
        told = [endpoint.labels_match for endpoint in endpoints if endpoint.labels_match is not None]
        return RemoteStatus(
            url=",".join(endpoint.url for endpoint in endpoints),
            breaker_open=self.remote.breaker_open,
            labels_match=all(told) if told else None,
            foreign_labels=self.settings.remote_foreign_labels,
            endpoints=endpoints,
        )


class LargeRuntime(Runtime):
    """The large-model service: one model, no gate."""

    role = "large"

    def __init__(self, settings: LargeSettings, bundle: Bundle) -> None:
        super().__init__(settings, bundle)
        self.settings = settings
        self.metrics = Metrics(self.name, bundle.gate_digest, code_version(), _shown_range(self.threshold_range, None))


@asynccontextmanager
async def open_edge(settings: EdgeSettings) -> AsyncIterator[EdgeRuntime]:
    """Everything of the edge, closed in reverse order. Raises StartupError."""
    bundle, model = _load(settings)
    try:
        runtime = EdgeRuntime(settings, bundle, bundle.read_calibration())
    except BundleError as error:
        raise StartupError(str(error)) from error
    if CALIBRATION not in bundle.manifest.files:
        logger.warning("the bundle is not calibrated: its threshold is a guess; run `gatekeeper calibrate`")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_guard(settings, runtime, "GATEKEEPER_API_KEYS"))
        runtime.batcher = _batcher(settings, bundle, model, runtime.metrics)
        stack.push_async_callback(runtime.batcher.aclose)
        store = open_policy_store(settings)
        stack.push_async_callback(store.close)
        runtime.policy = _live_policy(settings, runtime, store)
        stack.push_async_callback(runtime.policy.close)
        await runtime.policy.start()
        runtime.remote = remote = _remote(settings, runtime.metrics, runtime.labels)
        stack.push_async_callback(remote.aclose)
        runtime.metrics.watch_breaker(lambda: remote.breaker_open)
        divide = partial(divided, max_bytes=runtime.max_body_bytes)
        coalescer = Coalescer(remote, settings.remote_max_items, divide)
        runtime.classifier = Cascade(runtime.labels, runtime.batcher, runtime.policy, coalescer, runtime.metrics)
        _decode_first(runtime, settings, model, stack)
        remote.start()
        yield runtime


@asynccontextmanager
async def open_large(settings: LargeSettings) -> AsyncIterator[LargeRuntime]:
    """Everything of the large-model service. Raises StartupError."""
    bundle, model = _load(settings)
    runtime = LargeRuntime(settings, bundle)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_guard(settings, runtime, "GATEKEEPER_LARGE_API_KEYS"))
        runtime.batcher = _batcher(settings, bundle, model, runtime.metrics)
        stack.push_async_callback(runtime.batcher.aclose)
        runtime.classifier = LargeModel(runtime.labels, runtime.batcher, runtime.metrics)
        _decode_first(runtime, settings, model, stack)
        yield runtime


def _decode_first(
    runtime: Runtime, settings: EdgeSettings | LargeSettings, model: BundleClassifier, stack: AsyncExitStack
) -> None:
    """Where the model takes images, a decoder in front of the runtime's classifier."""
    if model.prepare is None:
        return
    limits = DecodeLimits(
        threads=settings.decode_threads,
        # One request of max_items, or of max_body_bytes, must always fit, and as much again is kept for smaller ones.
        max_queue_items=max(settings.max_queue_items, 2 * settings.max_items),
        max_queue_bytes=max(settings.max_decode_queue_bytes, 2 * runtime.max_body_bytes),
        max_request_s=max(settings.max_decode_ms, settings.max_image_ms) / 1000,
        max_queue_wait_s=settings.max_queue_wait_ms / 1000,
    )
    reader = ImageReader(model.prepare, settings.max_image_pixels, settings.max_image_ms / 1000)
    runtime.decoder = Decoder(reader, limits)
    stack.push_async_callback(runtime.decoder.aclose)
    runtime.classifier = DecodingClassifier(runtime.decoder, runtime.classifier)


@asynccontextmanager
async def _guard(settings: EdgeSettings | LargeSettings, runtime: Runtime, variable: str) -> AsyncIterator[None]:
    """API keys and their limits. Raises StartupError."""
    metrics = runtime.metrics
    runtime.api_keys = ApiKeys(
        settings.api_keys,
        settings.api_keys_file,
        source=variable,
        on_names=metrics.know_keys,
        on_current=metrics.set_keys_current,
    )
    # Without keys there is nothing to count, and no reason to connect.
    redis_url = str(settings.redis_url) if settings.redis_url is not None and runtime.api_keys.guarded else None
    runtime.rate_limits = RateLimits(
        redis_url,
        group=f"{runtime.role}:{runtime.name}",
        on_spent=metrics.count_key_items,
        on_shared=metrics.set_limits_shared,
    )
    await runtime.rate_limits.start()
    following = asyncio.create_task(runtime.api_keys.follow(), name="API keys")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await runtime.rate_limits.aclose()


def _live_policy(settings: EdgeSettings, runtime: EdgeRuntime, store: PolicyStore) -> LivePolicy:
    last_good_path = None
    if settings.redis_url is not None:  # SQLite is itself the local copy
        last_good_path = settings.policy_path.parent / f"last-good-{runtime.name}.json"
    return LivePolicy(
        store,
        name=runtime.name,
        gate_digest=runtime.bundle.gate_digest,
        default_threshold=runtime.bundle.manifest.default_threshold,
        threshold_range=runtime.threshold_range,
        last_good_path=last_good_path,
        poll_s=settings.policy_poll_s,
        on_change=runtime.on_policy,
        on_store_up=runtime.on_store_up,
    )


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
    refuse_foreign = settings.remote_foreign_labels == "refuse"
    remote = Pool(
        urls,
        lambda url: GatekeeperWire(url, labels, refuse_foreign=refuse_foreign),
        limits,
        metrics.observe_remote,
        key=None if key is None else key.get_secret_value(),
        tls=trusted_roots(settings.remote_ca_file) if any(url.startswith("https:") for url in urls) else None,
    )
    for endpoint in remote.endpoints:
        metrics.watch_endpoint(endpoint.name, partial(getattr, endpoint, "breaker_open"))
    return remote


def _load(settings: EdgeSettings | LargeSettings) -> tuple[Bundle, BundleClassifier]:
    torch.set_num_threads(settings.torch_threads)
    try:
        bundle = load_bundle(settings.bundle)
        return bundle, load_classifier(bundle)
    except BundleError as error:
        raise StartupError(str(error)) from error


def _batcher(
    settings: EdgeSettings | LargeSettings, bundle: Bundle, model: BundleClassifier, metrics: Metrics
) -> Batcher[Any, Prediction]:
    batch_items, batch_s = _batch_items(model, settings.max_batch_items, settings.max_batch_ms / 1000)
    worst_s = _worst_item_s(model, settings.max_text_chars)
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
        max_batch_items=batch_items,
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
    return batcher


def _length(max_tokens: int | None) -> Callable[[Any], int]:
    """Tokens of a text, guessed from its characters because counting them is the tokenizer's work; 1 for an image."""
    if max_tokens is None:
        return lambda _: 1
    most = max_tokens

    return lambda text: min(len(text) // 4 + 1, most)


def _batch_items(model: BundleClassifier, most: int, max_s: float) -> tuple[int, float]:
    """(items, seconds) of the largest batch that does not take too long.

    A batch is what a request waits for twice, behind one and in one. Where company costs next to nothing, as on a model
    that takes as long for one as for many, it stays large all the same.
    """
    alone_s = _forward_s(model, 1)
    items = most
    while True:
        seconds = _forward_s(model, items) if items > 1 else alone_s
        if items == 1 or seconds <= max(max_s, 2 * alone_s):
            return items, seconds
        items //= 2


def _forward_s(model: BundleClassifier, items: int) -> float:
    """Seconds that a batch of short texts or prepared images takes at best: neighbours make some runs slower."""
    item: Any = "what is the balance of my savings account today"
    if model.prepare is not None:
        item = model.prepare(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    return _best_s(model, [item] * items, 8)


def _best_s(model: BundleClassifier, batch: list[Any], times: int) -> float:
    seconds: list[float] = []
    while len(seconds) < times:
        began = time.perf_counter()
        model.predict(batch)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > 20 * INLINE_BELOW_S and len(seconds) > 1:
            break  # slow beyond doubt: a start need not wait for the others
    return min(seconds)


def _worst_item_s(model: BundleClassifier, max_text_chars: int) -> float:
    """Seconds that one item takes at worst: of the texts that are slow to tokenise, the slowest. Images are alike."""
    if model.prepare is not None:
        return _forward_s(model, 1)
    slow = ("x" * 99 + " ", "x" * 99 + "_", "\uac01", "\uac01" * 16 + "!", "!", "a", " ")
    return max(_best_s(model, [(text * max_text_chars)[:max_text_chars]], 2) for text in slow)


def _shown_range(bounds: tuple[float, float], calibration: Calibration | None) -> tuple[float, float]:
    """What confidences are shown between: the score's own bounds or, where they say nothing (energy), the data's."""
    if bounds[1] - bounds[0] <= WIDE:
        return bounds
    if calibration is None:
        return -WIDE / 2, WIDE / 2
    return math.floor(calibration.confidence.min()), math.ceil(calibration.confidence.max()) + 1


@cache
def code_version() -> str:
    """The version of the installed package."""
    with suppress(PackageNotFoundError):
        return version("gatekeeper-cascade")
    return "unknown"
