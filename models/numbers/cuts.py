"""Where a threshold can part the calibration items, by the gate's own rule: `confidence < threshold` is deferred.

Two things that a sorted list would allow do not exist: a cut between equal confidences, and one that no threshold
within the score's range makes. An item at the highest score, such as a confidence of exactly 1, is never deferred.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.bundle import SCORE_RANGES
from models.operating_points import parting

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cuts:
    """Every number of items that some threshold defers, rising, and such a threshold; each (K,), K at least 1."""

    deferred: Ints
    threshold: Floats
    items: int

    def nearest(self, wanted: float) -> int:
        """Which cut defers the number of items nearest to this; the smaller of two that are as near."""
        return int(np.argmin(np.abs(self.deferred - wanted)))


def possible_cuts(confidence: Floats, score: str) -> Cuts:
    """The cuts of these items (N,), N at least 1; a threshold is half-way between the items that it parts."""
    low, high = SCORE_RANGES[score]
    ordered = np.sort(confidence)
    starts = np.append(np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1])), len(ordered))
    below = np.append(-np.inf, ordered[starts[1:] - 1])  # the highest that is deferred, and what must not be:
    above = np.minimum(np.append(ordered[starts[:-1]], np.inf), high)
    possible = (above > below) & (above >= low)
    if not possible.any():  # confidences beyond the range, all on one side: no threshold parts them
        return Cuts(np.array([0 if ordered[0] > high else len(ordered)]), np.array([low]), len(ordered))
    starts, below, above = starts[possible], below[possible], above[possible]
    threshold = np.where(starts == 0, low, parting(np.maximum(below, low), above))
    return Cuts(starts, threshold + 0.0, len(ordered))  # without a minus before a zero


def deferral_gains(confidence: Floats, gain: Floats, cuts: Cuts) -> Floats:
    """The sum of `gain` (N,) over what each cut defers, (K,)."""
    total: Floats = np.append(0.0, np.cumsum(gain[np.argsort(confidence, kind="stable")]))[cuts.deferred]
    return total
