"""The p-values behind certified thresholds: against MAPIE, scipy, all outcomes and simulation."""

import numpy as np
import pytest
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binomtest

from models.calibration import p_values
from models.calibration.tallies import Tally

TRIALS = np.repeat([1, 7, 64, 512], 40)
SHARES = np.tile(np.arange(40) / 39, 4)


@pytest.mark.parametrize("target", [0.05, 0.5, 0.9, 0.95, 0.999])
def test_p_values_are_those_of_mapie(target: float) -> None:
    right = np.round(SHARES * TRIALS)
    expected = compute_hoeffding_bentkus_p_value((TRIALS - right) / TRIALS, TRIALS, 1 - target, binary=True)[:, 0]
    # The tail of 0/1 answers is never above Hoeffding's bound: their minimum is the tail.
    assert p_values.binomial_p_value(Tally(TRIALS, TRIALS, right), target) == pytest.approx(expected, rel=1e-6)
    halves = np.round(SHARES * TRIALS * 2) / 2
    expected = compute_hoeffding_bentkus_p_value((TRIALS - halves) / TRIALS, TRIALS, 1 - target)[:, 0]
    assert p_values.hoeffding_bentkus_p_value(Tally(TRIALS, TRIALS, halves), target) == pytest.approx(
        expected, rel=1e-6
    )


def tally_of(differences: np.ndarray) -> Tally:
    zero = np.array([0])
    return Tally(
        zero, np.array([len(differences)]), np.array([differences.sum()]), np.array([np.count_nonzero(differences)])
    )


@pytest.mark.parametrize("loss", [0.0, 0.004, 0.02])
@pytest.mark.parametrize("rate", [0.03, 0.2])
def test_a_paired_p_value_is_small_as_often_as_it_says(loss: float, rate: float) -> None:
    """Differences whose mean is exactly the loss: 1,000 draws; and it is not that by being useless."""
    generator = np.random.default_rng(0)
    chances = [(rate - loss) / 2, 1 - rate, (rate + loss) / 2]
    draws = generator.choice([1.0, 0.0, -1.0], (1_000, 400), p=chances)
    found = np.array([p_values.paired_p_value(tally_of(row), -loss)[0] for row in draws])
    for level in (0.05, 0.1, 0.5):
        assert (found <= level).mean() <= level + 2 * (level * (1 - level) / len(draws)) ** 0.5
    assert (found <= 0.1).mean() > 0.01


def test_a_paired_p_value_is_the_tail_of_the_sum() -> None:
    """At one rate, against all 3^n outcomes."""
    for mean, rate, total in ((-0.1, 0.3, 1), (0.0, 0.5, 2), (-0.3, 0.3, -2), (-0.2, 0.9, 0)):
        sums, chances = np.zeros(1), np.ones(1)
        for _ in range(7):
            sums = np.concatenate([sums + 1, sums, sums - 1])
            chances = np.concatenate([chances * (rate + mean) / 2, chances * (1 - rate), chances * (rate - mean) / 2])
        expected = chances[sums >= total].sum()
        assert p_values.trinomial_tail(total, 7, np.array([rate]), mean) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("correct", "trials"), [(0, 5), (1, 1), (5, 5), (943, 1_000), (1, 300)])
def test_the_lower_bound_is_the_one_of_clopper_and_pearson(correct: int, trials: int) -> None:
    expected = binomtest(correct, trials, alternative="greater").proportion_ci(0.95, "exact").low
    tally = Tally(np.array([0]), np.array([trials]), np.array([float(correct)]))
    assert p_values.lower_bound(p_values.binomial_p_value, tally, 0.95) == pytest.approx(expected, abs=1e-8)
