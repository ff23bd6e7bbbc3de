"""What an operator looks at first: the documents of GET /admin/v1/status and GET /console/state."""

from pydantic import BaseModel, ConfigDict, Field

from service.policy.document import OperatorFields, Policy
from service.policy.forecast import Histogram, Outlook


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
