"""Thresholds from calibration data, and the temperature."""

import numpy as np
import pytest

from models.bundle import Calibration
from models.calibration.calibrate import fit_temperature
from models.calibration.thresholds import expectation, threshold_for_accuracy, threshold_for_ratio
from models.errors import InputError, NoThreshold


def data(count: int = 1_000, seed: int = 0) -> Calibration:
    """A small model that is right with probability g, a large one that is right in 95 %."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 1.0, count)
    small = (generator.uniform(size=count) < confidence).astype(np.float64)
    large = (generator.uniform(size=count) < 0.95).astype(np.float64)
    return Calibration(confidence, small, large)


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.2, 0.5, 0.999, 1.0])
def test_a_ratio_is_met_exactly_where_confidences_differ(ratio: float) -> None:
    choice = threshold_for_ratio(data(), ratio, "max_softmax")
    assert choice.deferral_ratio == pytest.approx(ratio)
    assert expectation(data(), choice.threshold) == choice


def test_equal_confidences_are_never_parted() -> None:
    tied = Calibration(np.array([0.5] * 4 + [0.9] * 6), np.ones(10), np.ones(10))
    assert threshold_for_ratio(tied, 0.2, "max_softmax").deferral_ratio in {0.0, 0.4}
    assert threshold_for_ratio(tied, 0.4, "max_softmax").deferral_ratio == 0.4


def test_an_accuracy_is_met_with_the_fewest_deferrals() -> None:
    calibration = data()
    choice = threshold_for_accuracy(calibration, 0.9, "max_softmax")
    assert choice.joint_accuracy is not None
    assert choice.joint_accuracy >= 0.9
    fewer = [t for t in np.sort(calibration.confidence) if t < choice.threshold - 1e-3]
    assert all((calibration.joint_accuracy(t) or 0) < 0.9 for t in fewer)


def test_an_accuracy_out_of_reach_is_an_answer() -> None:
    with pytest.raises(NoThreshold, match="the best is"):
        threshold_for_accuracy(data(), 0.999, "max_softmax")


def test_targets_that_make_no_sense_are_refused() -> None:
    unknown = Calibration(np.array([0.1, 0.2]), np.ones(2), None)
    for call in (
        lambda: threshold_for_ratio(data(), 1.2, "max_softmax"),
        lambda: threshold_for_ratio(data(), float("nan"), "max_softmax"),
        lambda: threshold_for_accuracy(data(), -0.1, "max_softmax"),
        lambda: threshold_for_accuracy(unknown, 0.9, "max_softmax"),
    ):
        with pytest.raises(InputError):
            call()


def test_the_temperature_that_was_put_in_is_found() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(20_000, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > generator.uniform(size=(20_000, 1))).argmax(1)
    assert fit_temperature(logits * 3.0, labels) == pytest.approx(3.0, rel=0.05)
