"""Which thresholds a certificate tests and in what order, and what is counted at each."""

from contextlib import suppress

import numpy as np
import pytest
from mapie.risk_control.fwer_control import control_fwer

from models.bundle import SCORE_RANGES, Calibration
from models.calibration import search
from models.calibration.certify import certify_joint_accuracy
from models.calibration.tallies import Tally, joint_tally, selective_tally
from models.errors import NoThreshold


def test_a_tally_counts_what_the_gate_would_do() -> None:
    """With ties, with thresholds on a confidence, and at both ends."""
    generator = np.random.default_rng(0)
    data = Calibration(np.round(generator.uniform(size=60), 1), generator.uniform(size=60), generator.uniform(size=60))
    thresholds = np.unique(np.concatenate([data.confidence, [0.0, 0.123, 0.55, 1.0, 1.1]]))
    joint, alone = joint_tally(data, thresholds), selective_tally(data, thresholds)
    for k, threshold in enumerate(thresholds):
        accepted = data.confidence >= threshold
        assert joint.deferred[k] == alone.deferred[k] == (~accepted).sum()
        assert joint.trials[k] == 60
        assert joint.correct[k] / 60 == pytest.approx(data.joint_accuracy(threshold), abs=1e-6)
        assert alone.trials[k] == accepted.sum()
        assert alone.correct[k] == pytest.approx(data.small_correct[accepted].sum(), abs=1e-6)


def test_fixed_sequence_testing_is_that_of_mapie() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = generator.uniform(0, 0.07, generator.integers(1, 8))
        rejected = control_fwer(p_values, 0.05, "fixed_sequence")
        assert search.fixed_sequence(p_values, 0.05) == len(rejected)


def test_the_order_goes_from_the_safest_past_a_dip_to_fewer_deferrals() -> None:
    """A candidate that defers more and looks no safer than another is not tested: nothing could be won by it."""
    correct = np.array([80.0, 91.0, 85.0, 88.0, 91.0, 95.0, 99.0, 97.0])
    tally = Tally(np.arange(8), np.full(8, 100), correct)
    for target in (0.5, 0.9, 1.0):
        assert search.testing_order(tally, target).tolist() == [6, 5, 1, 0]


def test_all_that_look_safest_are_tested_from_most_deferrals_on() -> None:
    tally = Tally(np.arange(6), np.full(6, 100), np.array([80.0, 95.0, 100.0, 100.0, 97.0, 100.0]))
    assert search.testing_order(tally, 0.9).tolist() == [5, 3, 2, 1, 0]


def test_few_items_certify_what_they_can() -> None:
    """48 right answers of 48 prove 0.95 with certainty 0.9; the fewest deferrals that look perfect need not be it."""
    generator = np.random.default_rng(0)
    certified = 0
    for _ in range(20):
        data = []
        for _ in range(2):
            right = generator.uniform(size=48) < 0.75
            confidence = 1.0 / (1.0 + np.exp(-(generator.normal(size=48) + 1.2 * (2.0 * right - 1.0))))
            data.append(Calibration(confidence, right.astype(np.float64), np.ones(48)))
        with suppress(NoThreshold):
            found = certify_joint_accuracy(*data, 0.95, 0.9, "max_softmax")
            assert found.lower_bound >= 0.95
            certified += found.deferral_ratio < 1.0
    assert certified >= 18


def test_a_candidate_that_accepts_nothing_is_never_the_safest() -> None:
    tally = Tally(np.array([0, 5, 10]), np.array([10, 5, 0]), np.array([2.0, 1.0, 0.0]))
    assert 2 not in search.testing_order(tally, 0.9)


@pytest.mark.parametrize("decimals", [1, 3, 17])
@pytest.mark.parametrize("score", ["max_softmax", "negative_entropy", "energy"])
def test_candidates_lie_between_neighbours_and_at_the_ends(decimals: int, score: str) -> None:
    low, high = SCORE_RANGES[score]
    confidence = np.round(np.random.default_rng(0).beta(5, 1, 300), decimals) * (high - max(low, -1.0)) + max(low, -1.0)
    candidates = search.candidate_thresholds(confidence, score)
    assert (candidates[0], candidates[-1]) == (low, high)
    ordered = np.unique(confidence)
    assert np.array_equal(np.searchsorted(ordered, candidates[1:-1]), np.arange(1, len(ordered)))


def test_many_cuts_are_thinned_evenly() -> None:
    confidence = np.sort(np.random.default_rng(0).beta(20, 0.3, 50_000))
    candidates = search.candidate_thresholds(confidence, "max_softmax")
    assert len(candidates) <= search.CANDIDATES + 2
    assert np.diff(np.searchsorted(confidence, candidates)).max() < 2 * len(confidence) / search.CANDIDATES
