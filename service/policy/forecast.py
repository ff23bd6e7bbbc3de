"""What would happen: a policy, told by the calibration data and by recent traffic. Pure: no I/O, no model."""

import math
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.policy.operating_point import OperatingPoint
from service.telemetry.recent import RecentItems

BINS = 40
Z_95 = 1.959964
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


class CalibrationData(Protocol):
    """Columns (N,), one row per item of the calibrate split; models.bundle.Calibration is one."""

    @property
    def confidence(self) -> NDArray[np.float64]: ...
    @property
    def small_correct(self) -> NDArray[np.float64]: ...
    @property
    def large_correct(self) -> NDArray[np.float64] | None: ...


class Outlook(BaseModel):
    """What to expect under one policy; null where the data do not know."""

    threshold: float
    deferral: str
    expected_deferral_ratio: float | None = Field(description="on the calibration data")
    expected_joint_accuracy: float | None = Field(description="of the cascade, on the calibration data")
    recent_deferral_ratio: float | None = Field(description="had it decided the last 1,000 items without an override")


class Change(BaseModel):
    """A difference with its 95 % interval, from the items that change sides; rough where these are few."""

    value: float
    low: float
    high: float


class Preview(BaseModel):
    """The policy in force beside the one that was asked about. Nothing has been changed."""

    version: int = Field(description="of the policy in force")
    current: Outlook
    proposed: Outlook
    joint_accuracy_change: Change | None
    small_accuracy: float | None = Field(description="nothing deferred, on the calibration data")
    large_accuracy: float | None = Field(description="everything deferred, on the calibration data")
    calibration_items: int
    recent_items: int
    confidence_drift: float | None = Field(
        description="largest gap between the cumulative shares of recent and calibration confidences (Kolmogorov-"
        "Smirnov), 0 to 1: the larger, the less the calibration data say about this traffic"
    )


class Histogram(BaseModel):
    """Items by confidence, in equal bins from low to high."""

    low: float
    high: float
    recent: list[int]
    calibration: list[int]


class Expectation:
    """The calibration data in the order of their confidence, so that a million rows answer in microseconds."""

    def __init__(self, data: CalibrationData) -> None:
        order = np.argsort(data.confidence)
        self.confidence = data.confidence[order]
        self.items = len(order)
        self._small = float(data.small_correct.sum())
        self._gain: NDArray[np.float64] | None = None
        if data.large_correct is not None:
            gain = data.large_correct[order] - data.small_correct[order]
            # (N + 1,) what deferring the k least confident items has gained, and the squares of it
            self._gain = np.concatenate([[0.0], np.cumsum(gain)])
            self._gain_squared = np.concatenate([[0.0], np.cumsum(gain**2)])

    @property
    def small_accuracy(self) -> float:
        """With nothing deferred."""
        return self._small / self.items

    def deferral_ratio(self, threshold: float) -> float:
        """The share of items below the threshold."""
        return self._deferred(threshold) / self.items

    def joint_accuracy(self, threshold: float) -> float | None:
        """The cascade's accuracy; None where the large model's answers are unknown."""
        if self._gain is None:
            return None
        return (self._small + float(self._gain[self._deferred(threshold)])) / self.items

    def change(self, before: float, after: float) -> Change | None:
        """The difference in joint accuracy between two thresholds: that of the items between them."""
        if self._gain is None:
            return None
        low, high = sorted((self._deferred(before), self._deferred(after)))
        mean = float(self._gain[high] - self._gain[low]) / self.items * (1 if after >= before else -1)
        variance = float(self._gain_squared[high] - self._gain_squared[low]) / self.items - mean**2
        margin = Z_95 * math.sqrt(max(variance, 0.0) / self.items)
        return Change(value=mean, low=mean - margin, high=mean + margin)

    def _deferred(self, threshold: float) -> int:
        return int(np.searchsorted(self.confidence, threshold, side="left"))


class Forecast:
    """Answers for one bundle and the traffic that its edge has lately seen."""

    def __init__(self, calibration: CalibrationData | None, recent: RecentItems) -> None:
        self._expectation = None if calibration is None else Expectation(calibration)
        self._recent = recent

    def outlook(self, point: OperatingPoint) -> Outlook:
        """What to expect while the gate stands there."""
        expectation, threshold = self._expectation, _effective_threshold(point)
        recent = self._recent_confidences()
        return Outlook(
            threshold=point.threshold,
            deferral=point.deferral,
            expected_deferral_ratio=None if expectation is None else expectation.deferral_ratio(threshold),
            expected_joint_accuracy=None if expectation is None else expectation.joint_accuracy(threshold),
            recent_deferral_ratio=float((recent < threshold).mean()) if len(recent) else None,
        )

    def preview(self, current: OperatingPoint, proposed: OperatingPoint) -> Preview:
        """Both side by side."""
        expectation = self._expectation
        return Preview(
            version=current.policy_version,
            current=self.outlook(current),
            proposed=self.outlook(proposed),
            joint_accuracy_change=None
            if expectation is None
            else expectation.change(_effective_threshold(current), _effective_threshold(proposed)),
            small_accuracy=None if expectation is None else expectation.small_accuracy,
            large_accuracy=None if expectation is None else expectation.joint_accuracy(math.inf),
            calibration_items=0 if expectation is None else expectation.items,
            recent_items=len(self._recent),
            confidence_drift=self.confidence_drift(),
        )

    def confidence_drift(self) -> float | None:
        """The Kolmogorov-Smirnov distance between recent and calibration confidences."""
        recent = self._recent_confidences()
        if self._expectation is None or not len(recent):
            return None
        expected = self._expectation.confidence
        # Between two recent items only the expected share grows: the largest gap is just before or at one of them.
        gaps = [
            np.searchsorted(recent, recent, side) / len(recent)
            - np.searchsorted(expected, recent, side) / len(expected)
            for side in SIDES
        ]
        return float(np.abs(gaps).max())

    def histogram(self, low: float, high: float) -> Histogram:
        """Recent and calibration confidences in equal bins; what lies outside is in the first and the last."""
        recent = self._recent_confidences()
        expected = np.array([]) if self._expectation is None else self._expectation.confidence
        edges = np.linspace(low, high, BINS + 1)
        counts = [_counts(np.clip(side, low, high), edges) for side in (recent, expected)]
        return Histogram(low=low, high=high, recent=counts[0], calibration=counts[1])

    def _recent_confidences(self) -> NDArray[np.float64]:
        """In ascending order."""
        return np.sort(np.array(self._recent.confidences(), dtype=np.float64))


def _counts(ordered: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    """Items in each bin; the last one holds its upper edge too."""
    ranks = np.searchsorted(ordered, edges, side="left")
    ranks[-1] = np.searchsorted(ordered, edges[-1], side="right")
    counts: list[int] = np.diff(ranks).tolist()
    return counts


def _effective_threshold(point: OperatingPoint) -> float:
    """With deferral off the gate accepts everything."""
    return point.threshold if point.deferral == "on" else -math.inf
