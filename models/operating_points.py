"""What a threshold does to items: the gate's rule, by which every number of a threshold is computed.

`confidence < threshold` is deferred (equation 6: accept iff g(x) >= tau).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def deferred(confidence: Floats, threshold: float) -> NDArray[np.bool_]:
    """Which of the items (N,) the gate defers."""
    found: NDArray[np.bool_] = confidence < threshold
    return found


def deferral_ratio(confidence: Floats, threshold: float) -> float:
    """The share of the items that the gate defers."""
    return float(deferred(confidence, threshold).mean())


def joint_correct(threshold: float, confidence: Floats, small_correct: Floats, large_correct: Floats) -> Floats:
    """The correctness of the cascade's answer to each item (N,): the large model's where the gate defers."""
    found: Floats = np.where(deferred(confidence, threshold), large_correct, small_correct)
    return found


def joint_accuracy(threshold: float, confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """Accuracy of the cascade at a threshold."""
    return float(joint_correct(threshold, confidence, small_correct, large_correct).mean())


def parting(below: Floats, above: Floats) -> Floats:
    """Thresholds with below < threshold <= above: half-way, rounded for people where that parts the same items."""
    middle = below / 2 + above / 2
    middle = np.where(middle > below, middle, above)  # between two neighbouring numbers there is no third
    rounded = np.round(middle, 4)
    chosen: Floats = np.where((below < rounded) & (rounded <= above), rounded, middle)
    return chosen
