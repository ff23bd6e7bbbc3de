"""Thresholds by the gate's own rule, against an oracle that asks it: ties, the ends of a score's range, rounding."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import SCORE_RANGES, Calibration
from models.calibration.certify import certify_accuracy_loss, certify_joint_accuracy, certify_selective_accuracy
from models.calibration.thresholds import (
    Choice,
    floored,
    nearest_to_ratio,
    threshold_for_accuracy,
    threshold_for_accuracy_loss,
    threshold_for_ratio,
)
from models.errors import NoThreshold
from models.numbers.cuts import possible_cuts
from service.cascade.gate import decide
from service.policy.forecast import Expectation

SCORES = st.sampled_from(sorted(SCORE_RANGES))


@st.composite
def calibrations(draw: st.DrawFn) -> tuple[Calibration, str]:
    """Few distinct confidences, so that ties are the rule; the ends of the range, and neighbours of a number."""
    score = draw(SCORES)
    low, high = SCORE_RANGES[score]
    inside = st.floats(max(low, -50.0), min(high, 50.0))
    ends = st.sampled_from([low, high, math.nextafter(high, low), math.nextafter(low, high), (low + high) / 2])
    steps = st.integers(0, 4).map(lambda step: low / 2 + high / 2 + step * math.ulp(0.3))
    pool = draw(st.lists(inside | ends | steps, min_size=1, max_size=6))
    size = draw(st.integers(1, 25))
    pick = st.lists(st.sampled_from(pool), min_size=size, max_size=size)
    right = st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size)
    return Calibration(np.array(draw(pick)), np.array(draw(right)), np.array(draw(right))), score


def by_the_gate(data: Calibration, threshold: float) -> tuple[int, float]:
    """(items deferred, joint accuracy), asked of the gate item by item."""
    assert data.large_correct is not None
    deferred = [decide(float(one), threshold=threshold, deferral="on").defer for one in data.confidence]
    right = [data.large_correct[row] if defer else data.small_correct[row] for row, defer in enumerate(deferred)]
    return sum(deferred), sum(right) / len(right)


def every_outcome(data: Calibration, score: str) -> dict[int, float]:
    """What any threshold within the range does: joint accuracy by items deferred."""
    low, high = SCORE_RANGES[score]
    near = {float(value) for value in data.confidence}
    near |= {math.nextafter(value, math.inf) for value in near} | {low, high}
    return dict(by_the_gate(data, threshold) for threshold in near if low <= threshold <= high)


def check(choice: Choice, data: Calibration, score: str) -> int:
    """A printed threshold does what is printed beside it, also read back from what is printed; items deferred."""
    low, high = SCORE_RANGES[score]
    assert low <= choice.threshold <= high  # what the admin API and the bundle accept
    deferred, joint = by_the_gate(data, float(repr(choice.threshold)))
    assert choice.deferral_ratio == deferred / len(data.confidence)
    assert choice.joint_accuracy == pytest.approx(joint)
    return deferred


@given(calibrations())
def test_the_cuts_are_those_that_the_gate_can_make(drawn: tuple[Calibration, str]) -> None:
    data, score = drawn
    cuts = possible_cuts(data.confidence, score)
    assert cuts.deferred.tolist() == sorted(every_outcome(data, score))
    assert [by_the_gate(data, threshold)[0] for threshold in cuts.threshold.tolist()] == cuts.deferred.tolist()


@given(calibrations(), st.floats(0.0, 1.0) | st.sampled_from([0.0, 1.0]))
def test_a_ratio_is_the_nearest_that_exists_or_an_answer(drawn: tuple[Calibration, str], ratio: float) -> None:
    (data, score), outcomes = drawn, every_outcome(*drawn)
    wanted = ratio * len(data.confidence)
    nearest = min(abs(deferred - wanted) for deferred in outcomes)
    assert abs(by_the_gate(data, nearest_to_ratio(data, ratio, score))[0] - wanted) == nearest
    try:
        choice = threshold_for_ratio(data, ratio, score)
    except NoThreshold:
        assert wanted > max(outcomes) + 0.5
        return
    deferred = check(choice, data, score)
    assert abs(deferred - wanted) == nearest
    assert bool(choice.note) == (nearest > 0.5)
    assert not choice.note or f"{deferred / len(data.confidence):.4f}" in choice.note


@given(calibrations(), st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.9, 1.0]))
def test_an_accuracy_is_reached_with_the_fewest_deferrals_or_nowhere(
    drawn: tuple[Calibration, str], target: float
) -> None:
    (data, score), outcomes = drawn, every_outcome(*drawn)
    reaching = [deferred for deferred, joint in outcomes.items() if joint >= target]
    if not reaching:
        with pytest.raises(NoThreshold, match=f"the best is {floored(max(outcomes.values()))} "):
            threshold_for_accuracy(data, target, score)
        return
    assert check(threshold_for_accuracy(data, target, score), data, score) == min(reaching)


@given(calibrations(), st.sampled_from([0.0, 0.1, 0.5]))
def test_an_accuracy_loss_is_held_or_nowhere(drawn: tuple[Calibration, str], loss: float) -> None:
    (data, score), outcomes = drawn, every_outcome(*drawn)
    assert data.large_correct is not None
    least = float(data.large_correct.mean()) - loss - 1e-9
    reaching = [deferred for deferred, joint in outcomes.items() if joint >= least]
    if not reaching:
        with pytest.raises(NoThreshold, match="accuracy loss of"):
            threshold_for_accuracy_loss(data, loss, score)
        return
    assert check(threshold_for_accuracy_loss(data, loss, score), data, score) == min(reaching)


@given(calibrations())
def test_a_certificate_tells_what_its_threshold_does(drawn: tuple[Calibration, str]) -> None:
    data, score = drawn
    low, high = SCORE_RANGES[score]
    for certify, target in (
        (certify_joint_accuracy, 0.1),
        (certify_selective_accuracy, 0.1),
        (certify_accuracy_loss, 0.9),
    ):
        try:
            certificate = certify(data, data, target, 0.6, score)
        except NoThreshold:
            continue
        assert low <= certificate.threshold <= high
        deferred, joint = by_the_gate(data, certificate.threshold)
        assert certificate.deferral_ratio == deferred / len(data.confidence)
        if certify is certify_joint_accuracy:
            assert certificate.accuracy == pytest.approx(joint)


@given(calibrations())
def test_the_edges_forecast_says_what_its_gate_does(drawn: tuple[Calibration, str]) -> None:
    data, score = drawn
    expectation = Expectation(data)
    for threshold in (*SCORE_RANGES[score], *(float(value) for value in data.confidence)):
        deferred, joint = by_the_gate(data, threshold)
        assert expectation.deferral_ratio(threshold) == deferred / len(data.confidence)
        assert expectation.joint_accuracy(threshold) == pytest.approx(joint)


def saturated() -> Calibration:
    """120 of 200 at a confidence of 1, twelve of them wrong; a large model that is always right."""
    confidence = np.concatenate([np.ones(120), np.linspace(0.4, 0.99, 80)])
    small = np.concatenate([np.ones(108), np.zeros(12), np.tile([1.0, 0.0], 40)])
    return Calibration(confidence, small, np.ones(200))


def test_what_can_never_be_deferred_is_never_promised() -> None:
    data, stuck = saturated(), "120 of 200 items have the highest max_softmax there is, 1, and can never be deferred"
    for choose, target in (
        (threshold_for_accuracy, 0.95),
        (threshold_for_accuracy_loss, 0.0),
        (threshold_for_ratio, 1.0),
    ):
        with pytest.raises(NoThreshold, match=stuck):
            choose(data, target, "max_softmax")
    with pytest.raises(NoThreshold, match=r"the best is 0.9400 at a deferral ratio of 0.400 \(the small .* 0.7400"):
        threshold_for_accuracy(data, 0.95, "max_softmax")
    with pytest.raises(NoThreshold, match="120 items have the highest score there is"):
        certify_accuracy_loss(data, data, 0.0, 0.95, "max_softmax")
    assert threshold_for_ratio(data, 0.4, "max_softmax").deferral_ratio == 0.4


def test_a_best_below_the_target_is_not_rounded_up_to_it() -> None:
    small = np.ones(100_000)
    small[:6] = 0.0
    data = Calibration(np.full(100_000, 0.5), small, small)
    with pytest.raises(NoThreshold, match=r"the best is 0\.9999 "):
        threshold_for_accuracy(data, 0.99995, "max_softmax")


def test_a_target_that_the_small_model_meets_alone_is_said() -> None:
    data = Calibration(np.linspace(0.1, 0.9, 10), np.ones(10), np.ones(10))
    assert "the small model alone meets it" in threshold_for_accuracy(data, 0.9, "max_softmax").note
