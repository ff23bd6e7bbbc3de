"""On what scale a bundle's confidences are shown: the ends of an axis, and the buckets of a histogram."""

import math

import numpy as np

from models.bundle import SCORE_RANGES, Calibration
from models.generation import TEXT_SCORE_RANGES

WIDE = 100.0  # logits of a trained classifier, and so its energy, rarely lie further apart
BUCKETS = 20


def shown_range(score: str, calibration: Calibration | None) -> tuple[float, float]:
    """What confidences are shown between: the score's own bounds or, where they say nothing (energy), the data's."""
    bounds = SCORE_RANGES[score]
    if bounds[1] - bounds[0] <= WIDE:
        return bounds
    if calibration is None:
        return max(bounds[0], -WIDE / 2), min(bounds[1], WIDE / 2)
    return math.floor(calibration.confidence.min()), math.ceil(calibration.confidence.max()) + 1


def bucket_bounds(score: str, calibration: Calibration | None) -> list[float]:
    """The upper bounds of the buckets, ascending, the last at the end of the scale.

    Equal parts of the range; of an answer's scores, which crowd at one end of theirs, quantiles of the calibration.
    """
    low, high = shown_range(score, calibration)
    if score not in TEXT_SCORE_RANGES or calibration is None:
        return [low + (high - low) * step / BUCKETS for step in range(1, BUCKETS + 1)]
    quantiles = np.quantile(calibration.confidence, np.arange(1, BUCKETS) / BUCKETS, method="inverted_cdf")
    return [float(bound) for bound in np.unique(np.append(quantiles, high))]
