"""The axis of a confidence, which often crowds at one end."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.special import logit

from models.numbers.predictions import Floats

LETTER = 0.0235  # of the axis, for a digit of a label


@dataclass(frozen=True)
class ConfidenceAxis:
    """Linear, or log-odds where most of it crowds at the upper end of [0, 1] or [-1, 0]."""

    low: float
    high: float
    shift: float | None  # what makes a probability of the confidence; None: a linear axis

    @classmethod
    def of(cls, confidence: Floats, threshold: float) -> "ConfidenceAxis":
        lowest, highest = float(confidence.min()), float(confidence.max())
        shift = 0.0 if lowest >= 0 and highest <= 1 else 1.0 if lowest >= -1 and highest <= 0 else None
        if shift is not None and np.mean(confidence + shift > 0.9) < 0.5:
            shift = None
        scale = cls(-np.inf, np.inf, shift)
        # The last half percent would take half the axis, and a point at 1.0 all of it.
        low, high = np.quantile(scale.place(confidence), [0.001, 0.995])
        cut = float(scale.place(np.array([threshold]))[0])
        low, high = min(float(low), cut), max(float(high), cut)
        margin = 0.04 * (high - low) or max(0.5, 0.1 * abs(high))
        return cls(low - margin, high + margin, shift)

    @property
    def note(self) -> str:
        return "" if self.shift is None else ", log-odds scale"

    def place(self, confidence: Floats) -> Floats:
        """Where on the axis; what lies outside of it is at its ends."""
        place = confidence if self.shift is None else logit(np.clip(confidence + self.shift, 1e-6, 1 - 1e-6))
        clipped: Floats = np.clip(place, self.low, self.high)
        return clipped

    def ticks(self, axes: Axes) -> None:
        """Round confidences, no two labels closer than they are wide."""
        if self.shift is None:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            return
        tails = 10.0 ** -np.arange(1, 7)
        chances = np.concatenate([tails[::-1], [0.5], 1 - tails])
        places, names = [], []
        free = np.inf
        for chance in chances[::-1]:
            place, name = float(logit(chance)), f"{chance - self.shift:.9g}"
            half = len(name) / 2 * LETTER * (self.high - self.low)
            if self.low <= place <= self.high and place + half < free:
                places.append(place)
                names.append(name)
                free = place - half
        axes.set_xticks(places, names)
