"""The gate's decisions, all of them."""

import pytest

from service.cascade.gate import Decision, Route, decide


@pytest.mark.parametrize(
    ("confidence", "threshold", "deferral", "route", "expected"),
    [
        (0.8, 0.8, "on", "auto", Decision(False, None)),
        (0.7999999, 0.8, "on", "auto", Decision(True, "below_threshold")),
        (0.1, 0.8, "off", "auto", Decision(False, "deferral_off")),
        (0.9, 0.8, "off", "auto", Decision(False, None)),
        (1.0, 1.0, "on", "auto", Decision(False, None)),
        (0.0, 0.0, "on", "auto", Decision(False, None)),
        (0.99, 0.5, "on", "large", Decision(True, "forced")),
        (0.99, 0.5, "off", "large", Decision(True, "forced")),
        (0.01, 0.5, "on", "small", Decision(False, "forced")),
        (float("nan"), 0.5, "on", "auto", Decision(True, "below_threshold")),
        (-0.4, -0.3, "on", "auto", Decision(True, "below_threshold")),
    ],
)
def test_decision(confidence: float, threshold: float, deferral: str, route: Route, expected: Decision) -> None:
    assert decide(confidence, threshold=threshold, deferral=deferral, route=route) == expected  # type: ignore[arg-type]
