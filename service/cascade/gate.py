"""The gate: accept iff g(x) >= tau (equation 6 of arXiv 2502.19335). Pure: no I/O, no torch."""

from dataclasses import dataclass
from typing import Literal

Route = Literal["auto", "small", "large"]
DecisionName = Literal["accepted", "deferred", "degraded", "failed"]
Reason = Literal[
    "below_threshold",
    "forced",
    "deferral_off",
    "remote_unavailable",
    "remote_timeout",
    "remote_bad_answer",
    "breaker_open",
    "remote_limit",
    "deadline",
    "remote_degraded",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate chose for one item, before anything has been asked of the large model."""

    defer: bool
    reason: Reason | None


ACCEPT = Decision(False, None)
ACCEPT_FORCED = Decision(False, "forced")
ACCEPT_DEFERRAL_OFF = Decision(False, "deferral_off")
DEFER = Decision(True, "below_threshold")
DEFER_FORCED = Decision(True, "forced")


def decide(confidence: float, *, threshold: float, deferral: Literal["on", "off"], route: Route = "auto") -> Decision:
    """The decision for one item. A forced route beats the threshold; `deferral` off beats everything but `large`."""
    if route == "large":
        return DEFER_FORCED
    if route == "small":
        return ACCEPT_FORCED
    if confidence >= threshold:
        return ACCEPT
    return DEFER if deferral == "on" else ACCEPT_DEFERRAL_OFF
