"""The ordinary bootstrap over items, sorted once: a resample is how often each row occurs, not a new table.

A `Ranking` is the rows in ascending order of confidence. Rows of one confidence form a group, because no threshold
parts them; with integer weights in the place of repeated rows every number of metrics.py is a sum over groups.

More than PLAIN rows are merged before they are drawn: neighbouring groups into at most CELLS cells of equal size (or
GRADED_CELLS), each then one confidence, and the rows of a cell with the same pair of correctness (or with grades in the
same LEVELS of [0, 1]) into one row with a count. How often a merged row occurs in a bootstrap resample is exactly
multinomial. What is lost: the order within a cell, and of grades the 1/(12 LEVELS^2) of variance within a level.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.numbers.predictions import Floats, Ints, is_graded

PLAIN = 20_000
CELLS = 5_000
GRADED_CELLS = 500
LEVELS = 12


@dataclass(frozen=True)
class Groups:
    """Weighted sums over the rows of one confidence, by ascending confidence: (G,). Gains (M,) are descending.

    Whoever adds them up writes (a * b).sum(), not a @ b: a threaded BLAS that waits for a busy core makes of one dot
    product of 20,000 numbers 8 ms instead of 20 us.
    """

    confidence: Floats
    rows: Floats
    small: Floats  # summed correctness
    large: Floats | None
    small_squares: float
    gain: Floats  # large minus small correctness, each value once
    gain_rows: Floats  # rows of that gain
    accepted: int  # the first group at or above the threshold

    @property
    def total(self) -> float:
        return float(self.rows.sum())


@dataclass(frozen=True)
class Ranking:
    """Rows (K,) in ascending order of confidence, row k standing for count[k] items; groups (G,) of one confidence."""

    confidence: Floats  # (G,) divided by the largest magnitude
    start: Ints  # (G,) the first row of each group
    count: Ints  # (K,)
    small: Floats
    large: Floats | None
    gain: Floats  # (M,) descending
    gain_index: Ints  # (K,) which gain is each row's
    accepted: int

    def groups(self, weight: NDArray[np.integer] | None = None) -> Groups:
        """Sums over each group; weight (K,) is how often each row occurs, by default as often as it does."""
        rows = (self.count if weight is None else weight).astype(np.float64)
        small = rows * self.small
        return Groups(
            self.confidence,
            np.add.reduceat(rows, self.start),
            np.add.reduceat(small, self.start),
            None if self.large is None else np.add.reduceat(rows * self.large, self.start),
            float((small * self.small).sum()),
            self.gain,
            np.bincount(self.gain_index, rows, len(self.gain)).astype(np.float64),
            self.accepted,
        )

    def draw(self, generator: np.random.Generator) -> NDArray[np.integer]:
        """How often each row occurs in one bootstrap resample of the items: (K,), summing to their number."""
        total = int(self.count.sum())
        if total == len(self.count):
            return np.bincount(generator.integers(0, total, total), minlength=total)
        drawn: Ints = generator.multinomial(total, self.count / total)
        return drawn

    def merged(self, plain: int = PLAIN) -> "Ranking":
        """The ranking to draw from: itself up to `plain` rows, cells above (see the top of this file)."""
        total = len(self.small)
        if total <= plain:
            return self
        correct = [self.small] if self.large is None else [self.small, self.large]
        levels, cells = (LEVELS, GRADED_CELLS) if any(map(is_graded, correct)) else (2, CELLS)
        first = np.searchsorted(self.start, np.linspace(0, total, cells + 1)[:-1])
        first = np.unique(np.append(first, self.accepted))  # a threshold parts no cell
        first = first[first < len(self.start)]
        start = self.start[first]
        sizes = np.diff(np.append(start, total))
        key = np.repeat(np.arange(len(start)), sizes)
        for values in correct:
            key = key * levels + np.minimum((values * levels).astype(np.int64), levels - 1)
        count = np.bincount(key)
        there = np.flatnonzero(count)
        count_there = count[there]
        small, *large = (np.bincount(key, values)[there] / count_there for values in correct)
        gain, gain_index = _gains(small, large[0] if large else None)
        group_sizes = np.diff(np.append(self.start, total))
        return Ranking(
            np.add.reduceat(self.confidence * group_sizes, first) / sizes,
            np.searchsorted(there // levels ** len(correct), np.arange(len(start))),
            count_there,
            small,
            large[0] if large else None,
            gain,
            gain_index,
            int(np.searchsorted(first, self.accepted)),
        )


def rank(confidence: Floats, small: Floats, large: Floats | None = None, threshold: float = -np.inf) -> Ranking:
    """Sort the items (N,), each a row of its own. The threshold parts what is deferred from what is accepted."""
    order = ascending(confidence, small, large)
    ordered = confidence[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    small, large = small[order], None if large is None else large[order]
    gain, gain_index = _gains(small, large)
    accepted = int(np.searchsorted(ordered[start], threshold))
    count = np.ones(len(order), dtype=np.int64)
    # Only s_o and Pearson's r look at the values, neither at their scale; the squares of 1e308 would overflow.
    scaled = ordered[start] / (np.abs(ordered[[0, -1]]).max() or 1.0)
    return Ranking(scaled, start, count, small, large, gain, gain_index, accepted)


def ascending(confidence: Floats, small: Floats, large: Floats | None = None) -> Ints:
    """The order of a ranking's rows, (N,)."""
    # Where rows are drawn one by one, rows of one confidence need an order that does not come from the table.
    keys = (small, confidence) if large is None else (large, small, confidence)
    return np.lexsort(keys) if len(confidence) <= PLAIN else np.argsort(confidence)


def _gains(small: Floats, large: Floats | None) -> tuple[Floats, Ints]:
    if large is None:
        return np.zeros(1), np.zeros(len(small), dtype=np.int64)
    loss, index = np.unique(small - large, return_inverse=True)
    return -loss, index


def resample(
    draw: Callable[[np.random.Generator], dict[str, float]], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of each number of `draw`, which makes one resample and measures it.

    A number that more than 5 % of the resamples do not have (NaN) has no such interval: (NaN, NaN). Resample i has
    generator i of the seed, whatever the others did.
    """
    seeds = np.random.SeedSequence(seed).spawn(resamples)
    numbers = [draw(np.random.default_rng(child)) for child in seeds]
    intervals = {}
    for name in numbers[0]:
        values = np.array([number[name] for number in numbers])
        values = values[np.isfinite(values)]
        enough = len(values) >= 0.95 * resamples
        low, high = np.quantile(values, [0.025, 0.975]) if enough else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals
