"""Thresholds from calibration data, the temperature, and the numbers of the evaluation."""

import numpy as np
import pytest

from models import metrics
from models.bundle import Calibration
from models.calibrate import (
    NoThreshold,
    expectation,
    fit_temperature,
    threshold_for_accuracy,
    threshold_for_ratio,
)
from models.errors import InputError


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


def test_the_deferral_curve_is_the_definition() -> None:
    calibration = data(50)
    assert calibration.large_correct is not None
    curve = metrics.deferral_curve(calibration.confidence, calibration.small_correct, calibration.large_correct)
    order = np.argsort(calibration.confidence)
    for deferred in range(51):
        answers = calibration.small_correct.copy()
        answers[order[:deferred]] = calibration.large_correct[order[:deferred]]
        assert curve[deferred] == pytest.approx(answers.mean())


def test_s_d_is_one_for_the_ideal_gate_and_zero_for_a_random_one() -> None:
    """With a large model that is never wrong, and a confidence that knows the errors, or knows nothing."""
    generator = np.random.default_rng(0)
    small = (generator.uniform(size=20_000) < 0.7).astype(np.float64)
    large = np.ones(20_000)
    knowing = small + generator.uniform(size=20_000) * 0.1
    assert metrics.deferral_performance(knowing, small, large) == pytest.approx(1.0, abs=1e-3)
    assert metrics.deferral_performance(generator.uniform(size=20_000), small, large) == pytest.approx(0.0, abs=0.05)
    assert np.isnan(metrics.deferral_performance(knowing, small, small))


def test_s_o_is_zero_apart_and_near_one_together() -> None:
    generator = np.random.default_rng(0)
    right = np.repeat([1.0, 0.0], 2_000)
    apart = np.concatenate([generator.normal(0.9, 0.01, 2_000), generator.normal(0.1, 0.01, 2_000)])
    assert metrics.overlap(apart, right) < 0.01
    assert metrics.overlap(generator.normal(0.5, 0.1, 4_000), right) > 0.9
    assert np.isnan(metrics.overlap(apart, np.ones(4_000)))


def test_joint_accuracy_is_the_gate_of_equation_6() -> None:
    confidence, small, large = np.array([0.2, 0.5, 0.8]), np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0])
    assert metrics.joint_accuracy(0.5, confidence, small, large) == 1.0
    assert metrics.joint_accuracy(0.81, confidence, small, large) == pytest.approx(1 / 3)


def test_the_bootstrap_interval_covers_and_repeats() -> None:
    values = np.random.default_rng(3).uniform(size=2_000)
    first = metrics.bootstrap({"mean": lambda rows: float(values[rows].mean())}, 2_000)
    assert first == metrics.bootstrap({"mean": lambda rows: float(values[rows].mean())}, 2_000)
    low, high = first["mean"]["low"], first["mean"]["high"]
    assert low is not None
    assert high is not None
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 2_000**0.5, rel=0.25)
    assert metrics.bootstrap({"none": lambda _: float("nan")}, 10)["none"]["value"] is None
