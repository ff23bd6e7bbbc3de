"""The scale on which confidences are shown."""

import numpy as np
import pytest

from models.bundle import Calibration
from models.scale import bucket_bounds, shown_range


def calibration(confidence: list[float]) -> Calibration:
    return Calibration(np.array(confidence), np.ones(len(confidence)), None)


def test_labels_have_twenty_equal_buckets_whatever_the_calibration() -> None:
    expected = [step / 20 for step in range(1, 21)]
    for known in (None, calibration([0.9, 0.99])):
        assert bucket_bounds("max_softmax", known) == pytest.approx(expected)
    assert bucket_bounds("energy", None)[-1] == 50.0
    assert shown_range("energy", calibration([3.2, 7.9])) == (3, 9)


def test_an_answers_scores_have_buckets_of_equal_counts() -> None:
    crowded = [-0.001 * place for place in range(190)] + [-5.0 - place for place in range(10)]
    known = calibration(crowded)
    bounds = bucket_bounds("negative_predictive_entropy", known)
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == 0.0
    counts = np.diff([0.0, *known.shares_up_to(bounds)])
    assert counts.max() < 0.06  # equal parts of the range would hold 0.95 in one
    assert bucket_bounds("sum_log_prob", calibration([-3.0] * 50)) == [-3.0, -2.0]
    assert bucket_bounds("sum_log_prob", None)[-1] == 0.0
