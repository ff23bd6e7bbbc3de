"""A certified threshold, or one line that says why there is none."""

import math
from dataclasses import dataclass

from models.calibration.measures import LOSS


@dataclass(frozen=True)
class Certificate:
    """A threshold whose accuracy is at least `target` with probability `certainty` over the calibration draws.

    deferral_ratio and accuracy are those of the calibration data, whose rows `items` counts. lower_bound is the
    one-sided confidence bound of the accuracy at this one threshold, for information.
    """

    measure: str
    threshold: float
    deferral_ratio: float
    accuracy: float
    target: float
    certainty: float
    items: int
    method: str
    lower_bound: float


def why_not(first: Certificate, trials: int, stuck: int) -> str:
    """One line: what was tested first, what is certain there, and what would help.

    stuck: calibration items so high in their score that no threshold defers them.
    """
    wanted, easier, always = f"a {first.measure} of {first.target:g}", "a lower target", ""
    if first.measure == LOSS.name:
        wanted, easier = f"an accuracy loss of {0.0 - first.target:g} against the large model", "a larger loss"
        always = "; deferring everything loses nothing"
        if stuck:
            always = f"; {stuck:,} items have the highest score there is and can never be deferred"
    refused = f"no threshold can be certified for {wanted} with certainty {first.certainty:g}"
    if not trials:
        return f"{refused}: at {first.threshold:g}, the most promising, no calibration item is accepted"
    bound = math.floor(first.lower_bound * 1e4) / 1e4
    of = first.measure if always else "it"
    seen = (
        f"{refused}: at {first.threshold:g}, the most promising (deferral ratio {first.deferral_ratio:.3f}), {of} is "
        f"{first.accuracy:.4f} on {trials} calibration items, certainly at least {bound:.4f}"
    )
    if first.accuracy <= first.target:
        return f"{seen}; more items would not help, {easier} or better models would{always}"
    # The distance of the bound shrinks with the root of the number of items.
    factor = ((first.accuracy - first.lower_bound) / (first.accuracy - first.target)) ** 2
    count = int(float(f"{first.items * factor:.1e}"))
    return f"{seen}; with such an accuracy about {count:,} items would be needed{always}"
