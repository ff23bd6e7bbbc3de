"""What an operator looks at first: the document of GET /admin/v1/status."""

from pydantic import BaseModel, Field

from service.policy import Policy


class StoreStatus(BaseModel):
    """Where policies are kept, and whether it answers."""

    kind: str
    up: bool


class RemoteStatus(BaseModel):
    """The way to the large model."""

    url: str
    breaker_open: bool
    labels_match: bool | None = Field(description="null until the large model has been asked")


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
