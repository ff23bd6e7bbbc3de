"""The gate's decisions, all of them."""

import pytest

from service.cascade.gate import Verdict, decide
from service.outcomes import Route


@pytest.mark.parametrize(
    ("confidence", "threshold", "deferral", "route", "expected"),
    [
        (0.8, 0.8, "on", "auto", Verdict(False, None)),
        (0.7999999, 0.8, "on", "auto", Verdict(True, "below_threshold")),
        (0.1, 0.8, "off", "auto", Verdict(False, "deferral_off")),
        (0.9, 0.8, "off", "auto", Verdict(False, None)),
        (1.0, 1.0, "on", "auto", Verdict(False, None)),
        (0.0, 0.0, "on", "auto", Verdict(False, None)),
        (0.99, 0.5, "on", "large", Verdict(True, "forced")),
        (0.99, 0.5, "off", "large", Verdict(True, "forced")),
        (0.01, 0.5, "on", "small", Verdict(False, "forced")),
        (float("nan"), 0.5, "on", "auto", Verdict(True, "below_threshold")),
        (-0.4, -0.3, "on", "auto", Verdict(True, "below_threshold")),
    ],
)
def test_decision(confidence: float, threshold: float, deferral: str, route: Route, expected: Verdict) -> None:
    assert decide(confidence, threshold=threshold, deferral=deferral, route=route) == expected  # type: ignore[arg-type]
