"""The threshold for what an operator wants, from a bundle's calibration data. certify.py guarantees one.

gatekeeper calibrate BUNDLE --target-deferral-ratio 0.2
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --write            kept as the bundle's default
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --certainty 0.95   with a guarantee
"""

from dataclasses import dataclass

import numpy as np

from models.bundle import SCORE_RANGES, Calibration
from models.errors import InputError, NoThreshold
from models.metrics import deferral_curve


@dataclass(frozen=True)
class Choice:
    """A threshold and what the calibration data expect of it."""

    threshold: float
    deferral_ratio: float
    joint_accuracy: float | None


def threshold_for_ratio(calibration: Calibration, ratio: float, score: str) -> Choice:
    """The threshold that defers this share of the calibration items (the nearest that ties allow)."""
    if not 0.0 <= ratio <= 1.0:
        raise InputError(f"--target-deferral-ratio must be in [0, 1], not {ratio:g}")
    return _choice(calibration, round(ratio * len(calibration.confidence)), score)


def threshold_for_accuracy(calibration: Calibration, accuracy: float, score: str) -> Choice:
    """The threshold that reaches this joint accuracy on the calibration items with the fewest deferrals.

    Raises NoThreshold with the best there is.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise InputError(f"--target-accuracy must be in [0, 1], not {accuracy:g}")
    if calibration.large_correct is None:
        raise InputError("the calibration data do not know the large model: run `gatekeeper calibrate` with --large")
    curve = deferral_curve(calibration.confidence, calibration.small_correct, calibration.large_correct)
    ordered = np.sort(calibration.confidence)
    # A threshold cannot part two equal confidences: only cuts between different ones exist.
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    reached = np.flatnonzero((curve >= accuracy) & possible)
    if not len(reached):
        best = int(np.argmax(np.where(possible, curve, -1.0)))
        raise NoThreshold(
            f"no threshold reaches a joint accuracy of {accuracy:g} on the calibration data; "
            f"the best is {curve[best]:.4f} at a deferral ratio of {best / len(ordered):.3f}"
        )
    return _choice(calibration, int(reached[0]), score)


def threshold_for_accuracy_loss(calibration: Calibration, loss: float, score: str) -> Choice:
    """The threshold with the fewest deferrals that stays at most `loss` below the large model's own accuracy.

    A choice always exists: whatever is deferred loses nothing.
    """
    if not 0.0 <= loss < 1.0:
        raise InputError(f"--target-accuracy-loss must be at least 0 and below 1, not {loss:g}")
    if calibration.large_correct is None:
        raise InputError("the calibration data do not know the large model: run `gatekeeper calibrate` with --large")
    least = float(calibration.large_correct.mean()) - loss - 1e-9  # two means of the same sum may differ in rounding
    return threshold_for_accuracy(calibration, max(least, 0.0), score)


def expectation(calibration: Calibration, threshold: float) -> Choice:
    """What the calibration data expect of a given threshold."""
    return Choice(threshold, calibration.deferral_ratio(threshold), calibration.joint_accuracy(threshold))


def _choice(calibration: Calibration, deferred: int, score: str) -> Choice:
    """A threshold half-way between the last deferred and the first accepted confidence."""
    ordered = np.sort(calibration.confidence)
    low, high = SCORE_RANGES[score]
    below = ordered[deferred - 1] if deferred > 0 else low
    above = ordered[deferred] if deferred < len(ordered) else high
    threshold = float(below + above) / 2 if deferred > 0 else low
    # Rounded for people where it parts the same items.
    rounded = round(threshold, 4)
    return expectation(calibration, rounded if below < rounded <= above else threshold)
