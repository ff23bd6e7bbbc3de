"""Whether a probability is right as often as it says: expected calibration error and the bins of its picture."""

from dataclasses import dataclass

import numpy as np

from models.numbers.bootstrap import resample
from models.numbers.predictions import Floats, Ints

BINS = 15
PARTS = 64  # of a bin, in each of which the bootstrap takes all probabilities for one


@dataclass(frozen=True)
class Reliability:
    """Mean probability, accuracy and number of rows of each bin, (B,); a bin without rows has 0 for all three."""

    edges: Floats  # (B + 1,)
    probability: Floats
    accuracy: Floats
    count: Ints


def reliability(probability: Floats, small_correct: Floats) -> Reliability:
    """The bins of [0, 1]: [low, high), the last with its end. probability (N,) in [0, 1], small_correct (N,) 0 or 1."""
    index = _part(probability) // PARTS
    count = np.bincount(index, minlength=BINS)
    probabilities, correct = (np.bincount(index, values, BINS) for values in (probability, small_correct))
    filled = np.maximum(count, 1)
    return Reliability(np.linspace(0.0, 1.0, BINS + 1), probabilities / filled, correct / filled, count)


def calibration_error(probability: Floats, small_correct: Floats) -> float:
    """ECE (Guo et al. 2017): mean gap of probability and accuracy over 15 equal bins of [0, 1], weighted by rows."""
    gap = np.bincount(_part(probability) // PARTS, small_correct - probability, BINS)
    return float(np.abs(gap).sum() / len(probability))


def calibration_error_interval(
    probability: Floats, small_correct: Floats, resamples: int, seed: int
) -> tuple[float, float]:
    """The mirrored (basic) 95 % bootstrap interval of the ECE.

    Noise adds to this error, in the sample and once more in a resample; mirrored at the value the interval undoes
    that, where percentiles hold next to none of the small true errors. Rows of one outcome in one part of a bin are
    drawn as one: multinomial, as in bootstrap.py.
    """
    key = _part(probability) * 2 + small_correct.astype(np.int64)
    counts = np.bincount(key)
    there = np.flatnonzero(counts)
    total, count = len(key), counts[there]
    gap = there % 2 - np.bincount(key, probability)[there] / count

    def draw(generator: np.random.Generator) -> dict[str, float]:
        drawn = generator.multinomial(total, count / total)
        return {"ece": float(np.abs(np.bincount(there // 2 // PARTS, drawn * gap)).sum() / total)}

    low, high = resample(draw, resamples, seed)["ece"]
    value = calibration_error(probability, small_correct)
    return max(2.0 * value - high, 0.0), max(2.0 * value - low, 0.0)


def _part(probability: Floats) -> Ints:
    """Which part of which bin."""
    index: Ints = np.minimum((probability * BINS * PARTS).astype(np.int64), BINS * PARTS - 1)
    return index
