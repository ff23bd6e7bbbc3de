"""What a policy would do, against counting by hand."""

from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pytest
from scipy.stats import ks_2samp
from support.outcomes import settle

from models.bundle import Calibration
from service.policy.document import Policy
from service.policy.forecast import BINS, Forecast
from service.policy.operating_point import OperatingPoint
from service.telemetry.recent import RecentItems


def point(threshold: float, deferral: Literal["on", "off"] = "on", version: int = 1) -> OperatingPoint:
    """In force, whatever the operator wishes."""
    wished = {"threshold": 0.123, "updated_at": datetime(2026, 1, 1, tzinfo=UTC), "updated_by": "test"}
    policy = Policy.model_validate({"version": version, "gate_digest": "d"} | wished)
    return OperatingPoint(threshold, deferral, version, "controller", policy)


def recent(*confidences: float) -> RecentItems:
    items = RecentItems(size=4)
    for confidence in confidences:
        settle(items.on_settled, (confidence, "accepted"))
    return items


# Sure and right, sure and wrong (the large model too), unsure and wrong, unsure and right (the large model is not).
FOUR = Calibration(np.array([0.9, 0.8, 0.3, 0.2]), np.array([1.0, 0, 0, 1]), np.array([1.0, 0, 1, 0]))


def test_both_policies_stand_side_by_side() -> None:
    found = Forecast(FOUR, recent(0.1, 0.25, 0.5, 0.95)).preview(point(0.25, version=7), point(0.5))
    assert found.version == 7
    assert (found.current.expected_deferral_ratio, found.proposed.expected_deferral_ratio) == (0.25, 0.5)
    assert (found.current.expected_joint_accuracy, found.proposed.expected_joint_accuracy) == (0.25, 0.5)
    assert (found.current.recent_deferral_ratio, found.proposed.recent_deferral_ratio) == (0.25, 0.5)
    assert (found.small_accuracy, found.large_accuracy) == (0.5, 0.5)
    assert (found.calibration_items, found.recent_items) == (4, 4)


def test_a_threshold_accepts_the_item_that_equals_it() -> None:
    """As the gate does: accept iff confidence >= threshold."""
    found = Forecast(FOUR, recent(0.3, 0.2)).outlook(point(0.3))
    assert (found.expected_deferral_ratio, found.recent_deferral_ratio) == (0.25, 0.5)


def test_the_change_of_joint_accuracy_has_an_interval_from_the_items_that_change_sides() -> None:
    change = Forecast(FOUR, recent()).preview(point(0.25), point(0.5)).joint_accuracy_change
    assert change is not None
    differences = np.array([0, 0, 1.0, 0])
    margin = 1.959964 * differences.std() / 2
    assert (change.value, change.low, change.high) == pytest.approx((0.25, 0.25 - margin, 0.25 + margin))
    same = Forecast(FOUR, recent()).preview(point(0.25), point(0.26)).joint_accuracy_change
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_with_deferral_off_nothing_is_deferred_whatever_the_threshold() -> None:
    found = Forecast(FOUR, recent(0.1)).outlook(point(1.0, "off"))
    assert (found.expected_deferral_ratio, found.recent_deferral_ratio, found.expected_joint_accuracy) == (0, 0, 0.5)


@pytest.mark.parametrize("graded", [False, True])
def test_what_is_expected_is_what_the_calibration_data_say(graded: bool) -> None:
    """The quick sums are those of the plain definition, also where confidences are equal."""
    generator = np.random.default_rng(1)
    correct = generator.uniform(size=(2, 500))
    small, large = correct if graded else (correct < 0.8).astype(np.float64)
    data = Calibration(generator.beta(5, 1, 500).round(2), small, large)
    forecast = Forecast(data, recent())
    for threshold in (-np.inf, 0.0, 0.5, *np.unique(data.confidence), 1.0, np.inf):
        found = forecast.outlook(point(min(max(threshold, -9.0), 9.0)))
        assert found.expected_deferral_ratio == data.deferral_ratio(threshold)
        assert found.expected_joint_accuracy == pytest.approx(data.joint_accuracy(threshold), abs=1e-12)
    change = forecast.preview(point(0.9), point(0.4)).joint_accuracy_change
    assert change is not None
    moved = (data.confidence >= 0.4) & (data.confidence < 0.9)
    differences = np.where(moved, small - large, 0.0)
    assert change.value == pytest.approx(differences.mean())
    assert change.high - change.value == pytest.approx(1.959964 * differences.std() / np.sqrt(500))


def test_what_is_not_known_is_null() -> None:
    nothing = Forecast(None, recent()).preview(point(0.5), point(0.6))
    assert nothing.current.model_dump(exclude={"threshold", "deferral"}) == {
        "expected_deferral_ratio": None,
        "expected_joint_accuracy": None,
        "recent_deferral_ratio": None,
    }
    assert (nothing.joint_accuracy_change, nothing.confidence_drift, nothing.large_accuracy) == (None, None, None)
    without_large = Forecast(Calibration(FOUR.confidence, FOUR.small_correct, None), recent()).outlook(point(0.5))
    assert (without_large.expected_deferral_ratio, without_large.expected_joint_accuracy) == (0.5, None)
    alone = Forecast(Calibration(FOUR.confidence, FOUR.small_correct, None), recent())
    assert alone.preview(point(0.5), point(0.6)).small_accuracy == 0.5


def test_the_drift_is_the_two_sample_kolmogorov_smirnov_distance() -> None:
    generator = np.random.default_rng(0)
    expected, seen = generator.beta(5, 1, 300).round(2), generator.beta(2, 1, 200).round(2)  # with ties
    items = RecentItems()
    for confidence in seen:
        settle(items.on_settled, (confidence, "accepted"))
    drift = Forecast(Calibration(expected, expected, None), items).confidence_drift()
    assert drift == pytest.approx(ks_2samp(expected, seen).statistic)


def test_the_histogram_holds_every_item_also_at_the_ends() -> None:
    found = Forecast(FOUR, recent(0.0, 1.0, 0.5)).histogram(0.0, 1.0)
    assert (len(found.recent), sum(found.recent), sum(found.calibration)) == (BINS, 3, 4)
    assert found.recent[0] == found.recent[-1] == 1


def test_what_lies_outside_is_at_the_ends() -> None:
    energy = Calibration(np.array([3.2, 17.9]), np.ones(2), None)
    found = Forecast(energy, recent(25.0)).histogram(3.0, 18.0)
    assert (found.recent[-1], found.calibration[-1], sum(found.calibration)) == (1, 1, 2)
    empty = Forecast(None, recent()).histogram(0.0, 1.0)
    assert sum(empty.recent) == sum(empty.calibration) == 0


def test_recent_items_are_the_last_ones() -> None:
    items = RecentItems(size=2)
    assert np.isnan(items.deferral_ratio())
    settle(items.on_settled, (0.1, "failed"), (0.2, "degraded"))
    settle(items.on_settled, (0.9, "accepted"))
    settle(items.on_settled, (0.5, "accepted"), override="threshold")
    assert (items.ever, items.accepted_ever) == (3, 1), "an override says nothing of the policy"
    assert items.confidences() == [0.2, 0.9]
    assert items.decisions() == {"accepted": 1, "deferred": 0, "degraded": 1, "failed": 0}
    assert (len(items), items.deferral_ratio()) == (2, 0.5)
