"""What the gate would do at each of many thresholds, counted: the evidence for or against them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.bundle import Calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """At each threshold: how many items are deferred, how many count, and the sum of their correctness; each (K,).

    differing: of a comparison with the large model, whose `correct` is a sum of differences, how many are not 0.
    """

    deferred: Ints
    trials: Ints
    correct: Floats
    differing: Ints | None = None

    def at(self, chosen: Ints) -> "Tally":
        """The tally at some of the thresholds."""
        parts = (self.deferred, self.trials, self.correct, self.differing)
        return Tally(*(None if part is None else part[chosen] for part in parts))  # type: ignore[arg-type]


def joint_tally(data: Calibration, thresholds: Floats) -> Tally:
    """Every item counts: by the small model's answer where accepted, by the large one's where deferred (equation 6)."""
    assert data.large_correct is not None  # certify.py has checked it
    deferred, gained = _sum_deferred(data.confidence, data.large_correct - data.small_correct, thresholds)
    return _tally(deferred, np.full(len(thresholds), len(data.confidence)), data.small_correct.sum() + gained)


def loss_tally(data: Calibration, thresholds: Floats) -> Tally:
    """Every item counts: by the small model's correctness minus the large one's where accepted, by 0 where deferred."""
    assert data.large_correct is not None  # certify.py has checked it
    difference = data.small_correct - data.large_correct
    deferred, below = _sum_deferred(data.confidence, difference, thresholds)
    _, differing_below = _sum_deferred(data.confidence, (difference != 0).astype(np.float64), thresholds)
    differing = np.round((difference != 0).sum() - differing_below).astype(np.int64)
    whole = _tally(deferred, np.full(len(thresholds), len(data.confidence)), difference.sum() - below)
    return replace(whole, differing=differing)


def selective_tally(data: Calibration, thresholds: Floats) -> Tally:
    """The accepted items count, by the small model's answer."""
    deferred, lost = _sum_deferred(data.confidence, data.small_correct, thresholds)
    return _tally(deferred, len(data.confidence) - deferred, data.small_correct.sum() - lost)


def _tally(deferred: Ints, trials: Ints, correct: Floats) -> Tally:
    # The last digits of a sum of graded values depend on the order of the rows.
    return Tally(deferred, trials, np.round(correct, 6))


def _sum_deferred(confidence: Floats, values: Floats, thresholds: Floats) -> tuple[Ints, Floats]:
    """Number of items below each of the rising thresholds, and the sum of their values; each (K,)."""
    bins = np.searchsorted(thresholds, confidence, side="right")  # how many thresholds accept the item
    size = len(thresholds) + 1
    counts, sums = np.bincount(bins, minlength=size), np.bincount(bins, weights=values, minlength=size)
    return counts.cumsum()[:-1], sums.cumsum()[:-1]
