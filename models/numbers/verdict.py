"""Whether there is anything to buy: the large model held against the small one on the same items."""

import math

import numpy as np

from models.numbers.predictions import Floats

Z_95 = 1.959964


def verdict(small: float, large: float, difference: tuple[float, float], bought: "tuple[float, float] | None") -> str:
    """One sentence where the large model is not clearly the better one; empty where it is.

    small, large: accuracies on the same items. difference: the 95 % interval of large - small. bought: (what deferring
    gains over the small model at the best threshold, its deferral ratio), None where that is within chance.
    """
    low, high = difference
    if low > 0.0:
        return ""
    seen = f"{large:.4f} against {small:.4f}, a difference of {large - small:+.4f} [{low:+.4f}, {high:+.4f}]"
    if large > small:
        return (
            f"the large model is not clearly better than the small one on these items: {seen}; what deferring buys may "
            "be chance"
        )
    first = f"the large model is no better than the small one on these items: {seen}; deferring buys "
    if bought is None:
        return first + "nothing here"
    gain, ratio = bought
    return (
        f"{first}something only where the two err on different items, {gain:.4f} at best (deferral ratio {ratio:.3f})"
    )


def verdict_of(confidence: Floats, small: Floats, large: Floats) -> str:
    """The same from the items (N,), the interval from the differences' variance."""
    interval = paired_interval(large - small)
    return verdict(float(small.mean()), float(large.mean()), interval, bought(confidence, small, large))


def paired_interval(differences: Floats) -> tuple[float, float]:
    """The 95 % interval of the mean of these differences (N,), by the normal approximation."""
    mean = float(differences.mean())
    margin = Z_95 * math.sqrt(float(differences.var()) / len(differences))
    return mean - margin, mean + margin


def bought(confidence: Floats, small: Floats, large: Floats) -> tuple[float, float] | None:
    """(gain over the small model, deferral ratio) at the best threshold; None where its 95 % interval holds 0."""
    order = np.argsort(confidence, kind="stable")
    gain = (large - small)[order]
    ordered = confidence[order]
    possible = np.append(True, ordered[1:] > ordered[:-1])  # no cut between equal confidences
    summed = np.append(0.0, np.cumsum(gain)[:-1])
    deferred = int(np.argmax(np.where(possible, summed, -np.inf)))
    if summed[deferred] <= 0.0 or paired_interval(np.where(np.arange(len(gain)) < deferred, gain, 0.0))[0] <= 0.0:
        return None
    return float(summed[deferred] / len(gain)), deferred / len(gain)
