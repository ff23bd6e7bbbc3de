"""What an operator looks at first: the documents of GET /admin/v1/status and GET /console/state."""

import math
import time
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

from service.policy.document import OperatorFields, Policy
from service.policy.forecast import Histogram, Outlook
from service.runtime import EdgeRuntime, code_version


class StoreStatus(BaseModel):
    """Where policies are kept, and whether it answers."""

    kind: str
    up: bool


class DegradingStatus(BaseModel):
    """Nearly all of what the gate defers is degraded or fails, whatever the reason."""

    seconds: float = Field(description="since when")
    requests: int = Field(description="the last that were deferred, 20 at most and of the last minute")
    reasons: dict[str, int] = Field(description="why the large model's answer did not reach them")


class EndpointStatus(BaseModel):
    """One URL of the large model."""

    url: str
    breaker_open: bool
    in_flight: int = Field(description="calls that it has right now")
    labels_match: bool | None = Field(description="null until it has been asked")
    labels_told: int | None = Field(description="how many labels it says that its model has")
    labels_shared: int | None = Field(description="how many of them this edge's bundle has")
    is_self: bool = Field(description="the URL leads back to this edge: no large model is there, it is not asked")


class RemoteStatus(BaseModel):
    """The way to the large model. `url` is as it was set; `breaker_open`: every breaker is."""

    url: str
    breaker_open: bool
    labels_match: bool | None = Field(description="null until an endpoint has been asked; false if one of them differs")
    foreign_labels: str = Field(description="refuse or allow: answers with a label that the bundle does not have")
    endpoints: list[EndpointStatus]


class Status(BaseModel):
    """The state of one replica."""

    model: str
    gate_digest: str
    version: str
    uptime_s: float
    draining: bool
    policy: Policy
    policy_store: StoreStatus
    remote: RemoteStatus
    degrading: DegradingStatus | None = Field(description="null while the large model's answers arrive")
    deferral_ratio: float | None = Field(description="over the last 1,000 items; null before the first")
    expected_deferral_ratio: float | None
    expected_joint_accuracy: float | None
    runner: str
    queue_depth: int


class PolicyInForce(OperatorFields):
    """The policy without its note and author: these are for those who have the token."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    version: int


class EndpointState(BaseModel):
    """One large model, under the name that metrics have for it."""

    name: str
    breaker_open: bool
    labels_match: bool | None
    labels_told: int | None
    labels_shared: int | None
    is_self: bool


class Savings(BaseModel):
    """What the small model has answered in the large one's place since this replica started."""

    items: int = Field(description="decided without an override")
    calls_saved: int = Field(description="those of them that were accepted: the large model was not asked about them")


class ConsoleState(BaseModel):
    """What the page shows, asked for once a second."""

    model: str
    task: str
    score: str
    gate_digest: str
    service_version: str
    uptime_s: float
    draining: bool
    admin: bool = Field(description="whether there is an admin token, and so an admin API")
    guarded: bool = Field(description="whether classify requests need an API key")
    threshold_range: tuple[float, float]
    policy: PolicyInForce
    outlook: Outlook
    deferral_ratio: float | None = Field(description="as decided, over the last 1,000 items without an override")
    decisions: dict[str, int] = Field(description="the same items by decision")
    savings: Savings
    confidence_drift: float | None
    histogram: Histogram
    breaker_open: bool
    degrading: DegradingStatus | None
    labels: int = Field(description="how many labels the bundle has")
    foreign_labels: str
    endpoints: list[EndpointState]
    policy_store: str
    policy_store_up: bool
    queue_depth: int
    trouble: str | None = Field(description="why the model does not answer, if it does not")


def replica_status(runtime: EdgeRuntime) -> Status:
    """GET /admin/v1/status."""
    point = runtime.policy.point
    expected = runtime.forecast.outlook(point)
    recent = runtime.recent.deferral_ratio()
    return Status(
        model=runtime.name,
        gate_digest=runtime.bundle.gate_digest,
        version=code_version(),
        uptime_s=round(runtime.lifecycle.uptime_s(), 3),
        draining=runtime.lifecycle.draining,
        policy=point.policy,
        policy_store=StoreStatus(kind=_store_kind(runtime), up=runtime.policy.store_up),
        remote=_remote(runtime),
        degrading=_degrading(runtime),
        deferral_ratio=None if math.isnan(recent) else recent,
        expected_deferral_ratio=expected.expected_deferral_ratio,
        expected_joint_accuracy=expected.expected_joint_accuracy,
        runner=runtime.batcher.runner,
        queue_depth=runtime.batcher.depth,
    )


def console_state(runtime: EdgeRuntime) -> ConsoleState:
    """GET /console/state."""
    point, recent = runtime.policy.point, runtime.recent
    ratio = recent.deferral_ratio()
    return ConsoleState(
        model=runtime.name,
        task=runtime.bundle.manifest.task,
        score=runtime.bundle.manifest.score,
        gate_digest=runtime.bundle.gate_digest,
        service_version=code_version(),
        uptime_s=round(runtime.lifecycle.uptime_s(), 3),
        draining=runtime.lifecycle.draining,
        admin=runtime.settings.admin_token is not None,
        guarded=runtime.api_keys.guarded,
        threshold_range=runtime.threshold_range,
        policy=PolicyInForce.model_validate(point.policy, from_attributes=True),
        outlook=runtime.forecast.outlook(point),
        deferral_ratio=None if math.isnan(ratio) else ratio,
        decisions=recent.decisions(),
        savings=Savings(items=recent.ever, calls_saved=recent.accepted_ever),
        confidence_drift=runtime.forecast.confidence_drift(),
        histogram=runtime.forecast.histogram(*runtime.confidence_range),
        breaker_open=runtime.remote.breaker_open,
        degrading=_degrading(runtime),
        labels=len(runtime.labels),
        foreign_labels=runtime.settings.remote_foreign_labels,
        endpoints=[
            EndpointState(name=endpoint.name, breaker_open=endpoint.breaker_open, **asdict(endpoint.wire.facts))
            for endpoint in runtime.remote.endpoints
        ],
        policy_store=_store_kind(runtime),
        policy_store_up=runtime.policy.store_up,
        queue_depth=runtime.batcher.depth,
        trouble=runtime.batcher.trouble(),
    )


def _store_kind(runtime: EdgeRuntime) -> str:
    return "redis" if runtime.settings.redis_url else "sqlite"


def _degrading(runtime: EdgeRuntime) -> DegradingStatus | None:
    state = runtime.deferrals.degrading()
    if state is None:
        return None
    seconds = round(time.monotonic() - state.since, 1)
    return DegradingStatus(seconds=seconds, requests=state.requests, reasons=state.reasons)


def _remote(runtime: EdgeRuntime) -> RemoteStatus:
    endpoints = [
        EndpointStatus(
            url=endpoint.url,
            breaker_open=endpoint.breaker_open,
            in_flight=endpoint.in_flight,
            **asdict(endpoint.wire.facts),
        )
        for endpoint in runtime.remote.endpoints
    ]
    told = [endpoint.labels_match for endpoint in endpoints if endpoint.labels_match is not None]
    return RemoteStatus(
        url=",".join(endpoint.url for endpoint in endpoints),
        breaker_open=runtime.remote.breaker_open,
        labels_match=all(told) if told else None,
        foreign_labels=runtime.settings.remote_foreign_labels,
        endpoints=endpoints,
    )
