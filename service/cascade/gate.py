"""The gate: accept iff g(x) >= tau (equation 6 of arXiv 2502.19335). Pure: no I/O, no torch."""

from dataclasses import dataclass
from typing import Literal

from service.outcomes import Reason, Route


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate chose for one item, before anything has been asked of the large model."""

    defer: bool
    reason: Reason | None


ACCEPT = Verdict(False, None)
ACCEPT_FORCED = Verdict(False, "forced")
ACCEPT_DEFERRAL_OFF = Verdict(False, "deferral_off")
DEFER = Verdict(True, "below_threshold")
DEFER_FORCED = Verdict(True, "forced")


def decide(confidence: float, *, threshold: float, deferral: Literal["on", "off"], route: Route = "auto") -> Verdict:
    """The verdict on one item. A forced route beats the threshold; `deferral` off beats everything but `large`."""
    if route == "large":
        return DEFER_FORCED
    if route == "small":
        return ACCEPT_FORCED
    if confidence >= threshold:
        return ACCEPT
    return DEFER if deferral == "on" else ACCEPT_DEFERRAL_OFF
