"""Settled items, for what listens to the cascade."""

from dataclasses import dataclass
from typing import NamedTuple

from service.outcomes import Decision, OnSettled, Outcome, Override, Reason


class Sure(NamedTuple):
    """A draft of nothing."""

    confidence: float


@dataclass(frozen=True)
class Asked:
    override: Override = "none"


def settle(
    listener: OnSettled, *items: tuple[float, Decision] | tuple[float, Decision, Reason], override: Override = "none"
) -> None:
    """Tell the listener of one request with these items."""
    outcomes = [
        Outcome(
            Sure(confidence), decision, reason[0] if reason else None, "large" if decision == "deferred" else "small"
        )
        for confidence, decision, *reason in items
    ]
    listener(Asked(override), outcomes)
