"""What the test items say of a certified threshold, in a sentence.

A certificate is a lower bound on the accuracy over all traffic like the calibration items. What some thousand test
items measure scatters around that accuracy, so that it may lie below the bound though the bound holds. Whether it lies
so far below that chance alone hardly explains it is what the sentence tells.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from models.calibration.measures import JOINT, SELECTIVE
from models.evaluation.report.wording import percent
from models.numbers.predictions import Predictions
from models.operating_points import deferred

SURPRISING = 0.05


def told_by_test(certificate: dict[str, Any], predictions: Predictions, threshold: float) -> str:
    """Empty where the test items have nothing to measure it by. threshold: the gate's, as it was measured."""
    values = _values(certificate["measure"], predictions, ~deferred(predictions.confidence, threshold))
    if certificate["threshold"] != threshold or values is None or not len(values):
        return ""
    name, target, measured = certificate["measure"], certificate["target"], float(values.mean())
    first = f"The certificate promises {name} >= {target:g} for all traffic like the calibration items"
    here = f"these {len(values):,} test items measure {measured:.4f}"
    if measured >= target:
        return f"{first}; {here}, which is in keeping with it."
    chance = _chance(values, target)
    below = f"{first}; {here}, which is less. If the true value were exactly {target:g}, "
    so_low = f"chance alone would put {len(values):,} items this low or lower {_in_words(chance)}"
    if chance >= SURPRISING:
        return f"{below}{so_low}: the two are within chance of each other, and the certificate stands."
    return (
        f"{below}{so_low}: chance hardly explains that. Either the test items are unlike the calibration items, or "
        f"this certificate is among the {percent(1 - certificate['certainty'])} that fail: calibrate anew."
    )


def _values(measure: str, predictions: Predictions, accepted: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """What the certified accuracy is the mean of, an item each; None where these predictions do not know it."""
    small, large = predictions.small_correct, predictions.large_correct
    if measure == SELECTIVE.name:
        return small[accepted]
    if large is None:
        return None
    joint = np.where(accepted, small, large)
    return joint if measure == JOINT.name else joint - large


def _chance(values: NDArray[np.float64], target: float) -> float:
    """P(a mean this low or lower), were the true one `target`: exact where answers are right or wrong."""
    if np.isin(values, (0.0, 1.0)).all():
        return float(binom.cdf(round(values.sum()), len(values), target))
    spread = float(values.std()) / math.sqrt(len(values))
    return float(norm.cdf((values.mean() - target) / spread)) if spread else 0.0


def _in_words(chance: float) -> str:
    return "in fewer than one of 1,000 such tests" if chance < 0.001 else f"in {100 * chance:.2g}\u00a0% of such tests"
