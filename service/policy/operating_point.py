"""What is in force: where the gate stands. A policy says what operators wish; this is what came of it."""

from dataclasses import dataclass
from typing import Literal, Self

from service.policy.document import Policy


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where the gate stands, who put it there, and under which policy. Replaced whole: a request reads it once."""

    threshold: float
    deferral: Literal["on", "off"]
    policy_version: int
    set_by: str
    policy: Policy

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """As the operator wishes it."""
        return cls(policy.threshold, policy.deferral, policy.version, policy.updated_by, policy)
