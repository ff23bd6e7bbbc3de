"""Every metric of the service, defined once. Names and labels are a contract with dashboards and alerts.

No label ever holds a raw path, a text or an id; children that are known at start exist at start.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.utils import floatToGoString

from service.outcomes import CALL_FAILURES, REMOTE_REASONS, Draft, Outcome, Settled
from service.telemetry.outage import Deferrals
from service.telemetry.recent import RecentItems

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0, 10.0, 30.0)
FORWARD_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS[:12])
BATCH_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REMOTE_OUTCOMES = ("ok", *CALL_FAILURES)
# All that can happen to an item without an override: a child that appears late loses its first increase in a rate().
KNOWN_OUTCOMES = (
    ("accepted", "none"),
    ("accepted", "deferral_off"),
    ("deferred", "below_threshold"),
    ("deferred", "remote_degraded"),
    *(("degraded", reason) for reason in REMOTE_REASONS),
    *(("failed", reason) for reason in REMOTE_REASONS),
)

# Statuses and refusals of the classify route that alerts count, for the same reason.
CLASSIFY = "/v1/classify"
KNOWN_STATUSES = (200, 500, 503, 504)
KNOWN_REFUSALS = ("overloaded", "rate-limited", "client-gone", "model-failed", "model-down", "expired")


def _le(bound: float) -> str:
    """A bucket's bound as the histogram's own label has it, so that the two can be matched."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]  # prometheus_client's


class Metrics:
    """The metrics of one process that serves one model, in a registry of their own."""

    def __init__(self, model: str, gate_digest: str, version: str, confidence_bounds: Sequence[float]) -> None:
        self.registry = CollectorRegistry()
        self.model = model
        self.confidence_bounds = confidence_bounds
        own = self.registry
        self._items = Counter(
            "gatekeeper_items_total",
            "Items by what became of them; override says whether the request set its own threshold or route",
            ["model", "decision", "reason", "override"],
            registry=own,
        )
        self._confidence = Histogram(
            "gatekeeper_confidence",
            "The small model's confidence g(x)",
            ["model"],
            buckets=self.confidence_bounds,
            registry=own,
        ).labels(model)
        self._request_seconds = Histogram(
            "gatekeeper_request_seconds", "Whole requests", ["route", "status"], buckets=SECONDS, registry=own
        )
        self._rejected = Counter("gatekeeper_rejected_total", "Requests turned away, by kind", ["reason"], registry=own)
        self._small_seconds = Histogram(
            "gatekeeper_small_seconds", "One batch through the served model", buckets=FORWARD_SECONDS, registry=own
        )
        self._batch_size = Histogram("gatekeeper_batch_size", "Items in a batch", buckets=BATCH_ITEMS, registry=own)
        self._queue_seconds = Histogram(
            "gatekeeper_queue_seconds", "What a request waited for the served model", buckets=SECONDS, registry=own
        )
        self._queue_depth = Gauge("gatekeeper_queue_depth", "Items waiting for the served model", registry=own)
        self._queue_capacity = Gauge(
            "gatekeeper_queue_capacity", "Items that may wait; above that requests are refused", registry=own
        )
        Gauge("gatekeeper_build_info", "1", ["version", "model", "gate_digest"], registry=own).labels(
            version, model, gate_digest
        ).set(1)
        self._item_children: dict[tuple[str, str, str], Counter] = {
            (decision, reason, "none"): self._items.labels(model, decision, reason, "none")
            for decision, reason in KNOWN_OUTCOMES
        }
        self._request_children = {
            (CLASSIFY, status): self._request_seconds.labels(CLASSIFY, str(status)) for status in KNOWN_STATUSES
        }
        for refusal in KNOWN_REFUSALS:
            self._rejected.labels(refusal)
        self._key_items = Counter(
            "gatekeeper_key_items_total", "Items let in, by the API key's name", ["key"], registry=own
        )
        self._key_children: dict[str, Counter] = {}
        self._limits_shared = Gauge(
            "gatekeeper_rate_limits_shared", "1: keys' limits are counted in Redis, across replicas", registry=own
        )
        self._keys_current = Gauge(
            "gatekeeper_api_keys_current",
            "1: the API keys in force are those configured; 0: their file cannot be read, and the old ones stay",
            registry=own,
        )

    def on_settled(self, call: Settled, outcomes: Sequence[Outcome[Draft, object]]) -> None:
        """Count the items of a request by what became of them."""
        override = call.override
        for draft, decision, reason, *_ in outcomes:
            key = (decision, reason or "none", override)
            child = self._item_children.get(key)
            if child is None:
                child = self._item_children[key] = self._items.labels(self.model, *key)
            child.inc()
            self._confidence.observe(draft.confidence)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        child = self._request_children.get((route, status))
        if child is None:
            child = self._request_children[route, status] = self._request_seconds.labels(route, str(status))
        child.observe(seconds)

    def observe_batch(self, items: int, seconds: float) -> None:
        self._batch_size.observe(items)
        self._small_seconds.observe(seconds)

    def observe_queue(self, seconds: float) -> None:
        self._queue_seconds.observe(seconds)

    def count_shed(self) -> None:
        """A classify request refused in front of everything."""
        self.count_rejected("overloaded")
        self.observe_request(CLASSIFY, 429, 0.0)

    def count_rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def know_keys(self, names: Iterable[str]) -> None:
        """Prepare for the keys in force; their names are the operator's."""
        self._key_children |= {name: self._key_items.labels(name) for name in names}

    def count_key_items(self, name: str, items: int) -> None:
        self._key_children[name].inc(items)

    def set_limits_shared(self, shared: bool) -> None:
        self._limits_shared.set(shared)

    def set_keys_current(self, current: bool) -> None:
        self._keys_current.set(current)

    def watch_queue(self, depth: Callable[[], int], capacity: int) -> None:
        """Read the depth when scraped."""
        self._queue_depth.set_function(depth)
        self._queue_capacity.set(capacity)

    def exposition(self) -> tuple[bytes, str]:
        """(body, content type) of GET /metrics."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class EdgeMetrics(Metrics):
    """What only an edge has: a gate, a policy and a remote. `recent` and `deferrals` are read when scraped."""

    def __init__(
        self,
        model: str,
        gate_digest: str,
        version: str,
        confidence_bounds: Sequence[float],
        recent: RecentItems,
        deferrals: Deferrals,
    ) -> None:
        super().__init__(model, gate_digest, version, confidence_bounds)
        own = self.registry
        ratio = Gauge(
            "gatekeeper_deferral_ratio", "Over the last 1,000 items without an override", ["model"], registry=own
        ).labels(model)
        ratio.set_function(recent.deferral_ratio)
        self._expected_deferral_ratio = Gauge(
            "gatekeeper_expected_deferral_ratio",
            "What the calibration data expect at the current threshold",
            ["model"],
            registry=own,
        ).labels(model)
        self._expected_joint_accuracy = Gauge(
            "gatekeeper_expected_joint_accuracy",
            "What the calibration data expect of the cascade at the current threshold",
            ["model"],
            registry=own,
        ).labels(model)
        self.expect(None, None)
        self._calibration_confidence = Gauge(
            "gatekeeper_calibration_confidence",
            "Share of the calibration items at or below le: what gatekeeper_confidence should look like",
            ["model", "le"],
            registry=own,
        )
        self.threshold = Gauge("gatekeeper_threshold", "The policy's threshold", ["model"], registry=own).labels(model)
        self.policy_version = Gauge(
            "gatekeeper_policy_version", "The policy's version", ["model"], registry=own
        ).labels(model)
        self._store_up = Gauge("gatekeeper_policy_store_up", "1: the policy store answers", registry=own)
        self._breaker_open = Gauge(
            "gatekeeper_remote_breaker_open", "1: the large model is not being asked", registry=own
        )
        self._endpoint_breaker_open = Gauge(
            "gatekeeper_remote_endpoint_breaker_open",
            "1: this one of the configured remote URLs is not being asked",
            ["endpoint"],
            registry=own,
        )
        Gauge(
            "gatekeeper_deferrals_degrading",
            "1: of the last requests that were deferred nearly all were degraded or failed, whatever the reason",
            ["model"],
            registry=own,
        ).labels(model).set_function(lambda: float(deferrals.degrading() is not None))
        self._remote_requests = Counter(
            "gatekeeper_remote_requests_total", "Calls to the large model", ["outcome"], registry=own
        )
        self._remote_seconds = Histogram(
            "gatekeeper_remote_seconds", "One call to the large model", ["outcome"], buckets=SECONDS, registry=own
        )
        self._remote_children = {
            outcome: (self._remote_requests.labels(outcome), self._remote_seconds.labels(outcome))
            for outcome in REMOTE_OUTCOMES
        }

        tokens = Counter(
            "gatekeeper_remote_tokens_total",
            "Tokens that an LLM as the large model says it has used",
            ["kind"],
            registry=own,
        )
        self._remote_tokens = [tokens.labels(kind) for kind in ("prompt", "completion")]
        self._remote_cost = Counter(
            "gatekeeper_remote_cost_total", "What they have cost, at the prices of the settings", registry=own
        )

    def observe_usage(self, prices: tuple[float, float], used: tuple[int, int]) -> None:
        """Tokens of a question and of its answer, also of one that is no label; prices per million of each."""
        for counter, count in zip(self._remote_tokens, used, strict=True):
            counter.inc(count)
        self._remote_cost.inc(sum(price * count for price, count in zip(prices, used, strict=True)) / 1e6)

    def observe_remote(self, outcome: str, seconds: float) -> None:
        requests, histogram = self._remote_children[outcome]
        requests.inc()
        histogram.observe(seconds)

    def expect(self, deferral_ratio: float | None, joint_accuracy: float | None) -> None:
        """What the calibration data expect of the policy in force; None, NaN in the metrics, where they do not know."""
        self._expected_deferral_ratio.set(math.nan if deferral_ratio is None else deferral_ratio)
        self._expected_joint_accuracy.set(math.nan if joint_accuracy is None else joint_accuracy)

    def expect_confidences(self, shares: Iterable[float]) -> None:
        """The share of the calibration items at or below each of `confidence_bounds`."""
        for bound, share in zip(self.confidence_bounds, shares, strict=True):
            self._calibration_confidence.labels(self.model, _le(bound)).set(share)

    def set_store_up(self, up: bool) -> None:
        self._store_up.set(up)

    def watch_breaker(self, is_open: Callable[[], bool]) -> None:
        """Read the breaker's state when scraped."""
        self._breaker_open.set_function(lambda: float(is_open()))

    def watch_endpoint(self, name: str, is_open: Callable[[], bool]) -> None:
        """Read one endpoint's breaker when scraped; names come from the settings alone."""
        self._endpoint_breaker_open.labels(name).set_function(lambda: float(is_open()))
