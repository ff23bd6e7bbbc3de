"""What each threshold would do to the test items: the table by deferral ratio and the slider of a report."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.report.wording import with_interval
from models.numbers.predictions import Predictions

STEPS = 200


@dataclass(frozen=True)
class Ladder:
    """What each possible threshold does, from the items in ascending order of confidence."""

    ordered: NDArray[np.float64]  # (N,)
    small: NDArray[np.float64]  # (N + 1,) correct answers of the small model among the k lowest
    large: NDArray[np.float64] | None

    @classmethod
    def of(cls, predictions: Predictions) -> "Ladder":
        order = np.argsort(predictions.confidence)
        large = predictions.large_correct
        return cls(
            predictions.confidence[order],
            np.append(0.0, np.cumsum(predictions.small_correct[order])),
            None if large is None else np.append(0.0, np.cumsum(large[order])),
        )

    def step(self, threshold: float) -> tuple[str, float, float | None, float | None]:
        """The threshold in digits, deferral ratio, joint accuracy and accuracy of the accepted; None: unknown."""
        rows, deferred = len(self.ordered), int(np.searchsorted(self.ordered, threshold))
        accepted = float(self.small[-1] - self.small[deferred])
        joint = None if self.large is None else float(self.large[deferred] + accepted) / rows
        return repr(threshold), deferred / rows, joint, accepted / (rows - deferred) if deferred < rows else None

    def threshold(self, ratio: float) -> float:
        """The threshold that defers this share of the items, or the nearest that equal confidences allow.

        Half-way between the last deferred and the first accepted confidence, in as few digits as part the same items.
        """
        wanted = min(round(ratio * len(self.ordered)), len(self.ordered) - 1)
        ends = [int(np.searchsorted(self.ordered, self.ordered[wanted], side)) for side in ("left", "right")]
        first = min((end for end in ends if end < len(self.ordered)), key=lambda end: abs(end - wanted))
        above = float(self.ordered[first])
        below = float(self.ordered[first - 1]) if first else 0.0 if above > 0 else 2 * above - 1.0
        shorter = (float(f"{(below + above) / 2:.{digits}g}") for digits in range(1, 17))
        return next((value for value in shorter if below < value <= above), above)


def ratio_table(numbers: dict[str, Any], ladder: Ladder) -> dict[str, Any]:
    """What to set for a wanted deferral ratio."""
    head, rows = ["deferral ratio", "threshold", "joint accuracy"], []
    if ladder.large is None:
        head[2] = "accuracy of the accepted"
    for twentieths in range(1, 11):
        ratio = twentieths / 20
        threshold, deferred, _, accepted = ladder.step(ladder.threshold(ratio))
        if abs(deferred - ratio) > max(0.005, 1 / numbers["rows"]):
            threshold = "none"  # equal confidences, which no threshold parts
        entry = numbers.get(f"joint_accuracy_at_{ratio:g}")
        accuracy = with_interval(entry) if entry else "" if accepted is None else f"{accepted:.3f}"
        rows.append([f"{ratio:g}", threshold, accuracy])
    return {"head": head, "rows": rows, "none": any(row[1] == "none" for row in rows)}


def slider_steps(ladder: Ladder, threshold: float, frame: dict[str, list[float]]) -> dict[str, Any]:
    """What the slider reads: some STEPS thresholds with what they do, and which of them is the bundle's."""
    thresholds = sorted({ladder.threshold(ratio) for ratio in np.linspace(0.0, 1.0, STEPS)} | {threshold})
    points = [ladder.step(value) for value in thresholds]
    rounded = [[point[0], *(None if value is None else round(value, 5) for value in point[1:])] for point in points]
    return {"points": rounded, "start": thresholds.index(threshold), "frame": frame}
