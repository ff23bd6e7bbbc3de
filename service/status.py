"""What an operator looks at first: the document of GET /admin/v1/status."""

from pydantic import BaseModel, Field

from service.policy import Policy


class StoreStatus(BaseModel):
    """Where policies are kept, and whether it answers."""

    kind: str
    up: bool


class EndpointStatus(BaseModel):
    """One URL of the large model."""

    url: str
    breaker_open: bool
    in_flight: int = Field(description="calls that it has right now")
    labels_match: bool | None = Field(description="null until it has been asked")


class RemoteStatus(BaseModel):
    """The way to the large model. `url` is as it was set; `breaker_open`: every breaker is."""

    url: str
    breaker_open: bool
    labels_match: bool | None = Field(description="null until an endpoint has been asked; false if one of them differs")
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
    deferral_ratio: float | None = Field(description="over the last 1,000 items; null before the first")
    expected_deferral_ratio: float | None
    expected_joint_accuracy: float | None
    runner: str
    queue_depth: int
