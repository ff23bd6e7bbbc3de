"""The threshold for what an operator wants, from a bundle's calibration data. certify.py guarantees one.

gatekeeper calibrate BUNDLE --target-deferral-ratio 0.2
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --write            kept as the bundle's default
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --certainty 0.95   with a guarantee
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from models.bundle import SCORE_RANGES, Calibration
from models.errors import InputError, NoThreshold
from models.numbers.cuts import Cuts, Floats, deferral_gains, possible_cuts

ROUNDING = 1e-9  # two means of the same sum may differ by less


@dataclass(frozen=True)
class Choice:
    """A threshold and what the calibration data expect of it. note: what the one who asked should know, or empty."""

    threshold: float
    deferral_ratio: float
    joint_accuracy: float | None
    note: str = ""


def threshold_for_ratio(calibration: Calibration, ratio: float, score: str) -> Choice:
    """The threshold that defers this share of the calibration items, the nearest that ties allow; a note says so.

    Raises NoThreshold where the share lies beyond what any threshold defers.
    """
    if not 0.0 <= ratio <= 1.0:
        raise InputError(f"--target-deferral-ratio must be in [0, 1], not {ratio:g}")
    cuts = possible_cuts(calibration.confidence, score)
    wanted, least, most = ratio * cuts.items, int(cuts.deferred[0]), int(cuts.deferred[-1])
    if not least - 0.5 <= wanted <= most + 0.5:
        end, reached = ("least", least) if wanted < least else ("most", most)
        raise NoThreshold(
            f"no threshold defers {ratio:g} of the calibration items; the {end} is {reached / cuts.items:.4f}"
            + _stuck(calibration, score)
        )
    place = cuts.nearest(wanted)
    choice = expectation(calibration, float(cuts.threshold[place]))
    if abs(cuts.deferred[place] - wanted) <= 0.5:
        return choice
    return replace(choice, note=_between(cuts, place, ratio))


def nearest_to_ratio(calibration: Calibration, ratio: float, score: str) -> float:
    """The threshold whose deferral ratio is nearest to this, however far that is."""
    cuts = possible_cuts(calibration.confidence, score)
    return float(cuts.threshold[cuts.nearest(ratio * cuts.items)])


def threshold_for_accuracy(calibration: Calibration, accuracy: float, score: str) -> Choice:
    """The threshold that reaches this joint accuracy on the calibration items with the fewest deferrals.

    Raises NoThreshold with the best there is.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise InputError(f"--target-accuracy must be in [0, 1], not {accuracy:g}")
    return _fewest(calibration, accuracy, score, f"a joint accuracy of {accuracy:g}")


def threshold_for_accuracy_loss(calibration: Calibration, loss: float, score: str) -> Choice:
    """The threshold with the fewest deferrals that stays at most `loss` below the large model's own accuracy.

    Whatever is deferred loses nothing; still NoThreshold is possible, where items can never be deferred.
    """
    if not 0.0 <= loss < 1.0:
        raise InputError(f"--target-accuracy-loss must be at least 0 and below 1, not {loss:g}")
    large = 0.0 if calibration.large_correct is None else float(calibration.large_correct.mean())
    wanted = f"an accuracy loss of {loss:g} against the large model"
    return _fewest(calibration, max(large - loss, 0.0), score, wanted)


def expectation(calibration: Calibration, threshold: float) -> Choice:
    """What the calibration data expect of a given threshold."""
    return Choice(threshold, calibration.deferral_ratio(threshold), calibration.joint_accuracy(threshold))


def _fewest(calibration: Calibration, accuracy: float, score: str, wanted: str) -> Choice:
    if calibration.large_correct is None:
        raise InputError("the calibration data do not know the large model: run `gatekeeper calibrate` with --large")
    cuts = possible_cuts(calibration.confidence, score)
    curve = _curve(calibration, cuts)
    reached = np.flatnonzero(curve >= accuracy - ROUNDING)
    if len(reached):
        choice = expectation(calibration, float(cuts.threshold[reached[0]]))
        if choice.deferral_ratio == 0.0:
            alone = f"{calibration.small_correct.mean():.4f} of the calibration items"
            return replace(choice, note=f"the small model alone meets it, right in {alone}: nothing needs deferring")
        return choice
    best, large = int(np.argmax(curve)), calibration.large_correct.mean()
    raise NoThreshold(
        f"no threshold reaches {wanted} on the calibration data; the best is {floored(curve[best])} at a deferral "
        f"ratio of {cuts.deferred[best] / cuts.items:.3f} (the small model alone has "
        f"{floored(calibration.small_correct.mean())}, the large one {floored(large)})"
        + (_stuck(calibration, score) if large >= accuracy - ROUNDING else "")  # else deferring all would not do either
    )


def floored(share: float) -> str:
    """Four digits, never rounded up to a target that was missed."""
    return f"{math.floor(float(share) * 1e4 + 1e-6) / 1e4:.4f}"


def _curve(calibration: Calibration, cuts: Cuts) -> Floats:
    """Joint accuracy at each cut, (K,)."""
    assert calibration.large_correct is not None  # the callers have checked it
    gain = deferral_gains(calibration.confidence, calibration.large_correct - calibration.small_correct, cuts)
    curve: Floats = (calibration.small_correct.sum() + gain) / cuts.items
    return curve


def never_deferred(calibration: Calibration, score: str) -> int:
    """How many items lie so high that no threshold of this score defers them."""
    return int((calibration.confidence >= SCORE_RANGES[score][1]).sum())


def _stuck(calibration: Calibration, score: str) -> str:
    count, high = never_deferred(calibration, score), SCORE_RANGES[score][1]
    if not count:
        return ""
    return (
        f"; {count:,} of {len(calibration.confidence):,} items {'has' if count == 1 else 'have'} the highest {score} "
        f"there is, {high:g}, and can never be deferred"
    )


def _between(cuts: Cuts, place: int, ratio: float) -> str:
    """What to say where equal confidences keep a ratio from being met."""
    after = int(np.searchsorted(cuts.deferred, ratio * cuts.items))
    low, high = cuts.deferred[after - 1], cuts.deferred[after]
    return (
        f"no threshold defers {ratio:g} of the calibration items: {high - low:,} of {cuts.items:,} share one "
        f"confidence. What can be had is {low / cuts.items:.4f} or {high / cuts.items:.4f}; this is the nearer one, "
        f"{cuts.deferred[place] / cuts.items:.4f}"
    )
