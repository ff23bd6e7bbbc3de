"""Which thresholds are tested, in what order, and where the testing ends.

The order is the Pareto front of Laufer-Goldshtein et al. 2022 (arXiv 2210.07913): from the threshold that looks safest
on the selection data to fewer deferrals, past every candidate that both defers more and looks worse than a later one.
Where several look safest alike, as on few items, all of them are tested, from most deferrals on: to begin with the one
that only just looks so would end the testing before it has begun.
"""

import numpy as np

from models.bundle import SCORE_RANGES
from models.calibration.tallies import Floats, Ints, Tally
from models.operating_points import parting

# Enough for a deferral ratio to the tenth of a percent; 200 lost up to 0.002 of it in simulation.
CANDIDATES = 1_000


def candidate_thresholds(confidence: Floats, score: str) -> Floats:
    """Rising thresholds between neighbouring confidences and at the score's two ends. confidence: selection data (N,).

    At most CANDIDATES cuts, evenly spread over the items; rounded for people where that parts the same items.
    """
    ordered = np.sort(confidence)
    cuts = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1  # items deferred; equal confidences cannot be parted
    if len(cuts) > CANDIDATES:
        nearest = np.searchsorted(cuts, np.linspace(1, len(ordered) - 1, CANDIDATES)).clip(max=len(cuts) - 1)
        cuts = cuts[np.unique(nearest)]
    middle = parting(ordered[cuts - 1], ordered[cuts])
    low, high = SCORE_RANGES[score]
    thresholds: Floats = np.unique(np.concatenate([[low], middle.clip(low, high), [high]]))
    return thresholds


def testing_order(selection: Tally, target: float) -> Ints:
    """Indices of the candidates to test, first to last: the safest on the selection data, then ever fewer deferrals.

    A candidate is left out when one with fewer deferrals looks as safe, but for the safest of all. Safe is the distance
    from the target in standard errors, which, unlike a p-value, neither reaches 0 for many items nor 1 for a curve
    below the target.
    """
    trials = np.maximum(selection.trials, 1)
    spread = trials if selection.differing is None else np.maximum(selection.differing, 1)
    safety = np.where(selection.trials > 0, (selection.correct - trials * target) / np.sqrt(spread), -np.inf)
    best_so_far = np.maximum.accumulate(safety)
    front = np.concatenate([[True], safety[1:] > best_so_far[:-1]]) | (safety >= best_so_far[-1])
    order: Ints = np.flatnonzero(front)[::-1]
    return order


def fixed_sequence(p_values: Floats, level: float) -> int:
    """How many hypotheses are rejected, in their order, before the first that is not."""
    kept = np.flatnonzero(~(p_values <= level))
    return int(kept[0]) if len(kept) else len(p_values)
