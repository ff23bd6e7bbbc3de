"""What would happen: a policy, told by the calibration data and by recent traffic. Pure: no I/O, no model."""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.metrics import RecentItems
from service.policy import Policy

BINS = 40
Z_95 = 1.959964


class CalibrationData(Protocol):
    """One row per item of the calibrate split; models.bundle.Calibration is one."""

    @property
    def confidence(self) -> NDArray[np.float64]: ...
    def deferral_ratio(self, threshold: float) -> float: ...
    def joint_accuracy(self, threshold: float) -> float | None: ...
    def joint_correct(self, threshold: float) -> NDArray[np.float64] | None: ...


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


class Forecast:
    """Answers for one bundle and the traffic that its edge has lately seen."""

    def __init__(self, calibration: CalibrationData | None, recent: RecentItems) -> None:
        self._calibration = calibration
        self._recent = recent

    def outlook(self, policy: Policy) -> Outlook:
        """What to expect under this policy."""
        calibration, threshold = self._calibration, _in_force(policy)
        confidences = self._recent_confidences()
        return Outlook(
            threshold=policy.threshold,
            deferral=policy.deferral,
            expected_deferral_ratio=None if calibration is None else calibration.deferral_ratio(threshold),
            expected_joint_accuracy=None if calibration is None else calibration.joint_accuracy(threshold),
            recent_deferral_ratio=float((confidences < threshold).mean()) if len(confidences) else None,
        )

    def preview(self, current: Policy, proposed: Policy) -> Preview:
        """Both policies side by side."""
        calibration = self._calibration
        return Preview(
            version=current.version,
            current=self.outlook(current),
            proposed=self.outlook(proposed),
            joint_accuracy_change=self._change(_in_force(current), _in_force(proposed)),
            small_accuracy=None if calibration is None else calibration.joint_accuracy(-math.inf),
            large_accuracy=None if calibration is None else calibration.joint_accuracy(math.inf),
            calibration_items=0 if calibration is None else len(calibration.confidence),
            recent_items=len(self._recent),
            confidence_drift=self.confidence_drift(),
        )

    def confidence_drift(self) -> float | None:
        """The Kolmogorov-Smirnov distance between recent and calibration confidences."""
        recent = np.sort(self._recent_confidences())
        if self._calibration is None or not len(recent):
            return None
        expected = np.sort(self._calibration.confidence)
        at = np.concatenate([recent, expected])
        shares = [np.searchsorted(side, at, side="right") / len(side) for side in (recent, expected)]
        return float(np.abs(shares[0] - shares[1]).max())

    def histogram(self, low: float, high: float) -> Histogram:
        """Recent and calibration confidences in equal bins; of an unbounded score from its least to its greatest."""
        recent = self._recent_confidences()
        expected = np.array([]) if self._calibration is None else self._calibration.confidence
        if high - low > 1_000 and (seen := np.concatenate([recent, expected])).size:  # energy has no range of its own
            low, high = math.floor(seen.min()), math.ceil(seen.max()) + 1
        counts = [np.histogram(side, BINS, (low, high))[0].tolist() for side in (recent, expected)]
        return Histogram(low=low, high=high, recent=counts[0], calibration=counts[1])

    def _recent_confidences(self) -> NDArray[np.float64]:
        return np.array(self._recent.confidences(), dtype=np.float64)

    def _change(self, current: float, proposed: float) -> Change | None:
        before, after = (
            None if self._calibration is None else self._calibration.joint_correct(threshold)
            for threshold in (current, proposed)
        )
        if before is None or after is None:
            return None
        differences = after - before
        value = float(differences.mean())
        margin = Z_95 * float(differences.std()) / math.sqrt(len(differences))
        return Change(value=value, low=value - margin, high=value + margin)


def _in_force(policy: Policy) -> float:
    """The threshold that the gate works with: with deferral off it accepts everything."""
    return policy.threshold if policy.deferral == "on" else -math.inf
