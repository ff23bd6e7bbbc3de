"""What a threshold does to items, and two lists of the same labels."""

from pathlib import Path

import numpy as np
import pytest

from models.bundle import Calibration
from models.errors import InputError
from models.labels import check_same_labels, places
from models.operating_points import deferral_ratio, deferred, joint_accuracy, joint_correct, parting
from models.replacing import writing

CONFIDENCE = np.array([0.2, 0.5, 0.9, 1.0])
SMALL, LARGE = np.array([0.0, 1.0, 0.5, 1.0]), np.array([1.0, 0.0, 1.0, 0.0])


def test_an_item_at_the_threshold_is_accepted() -> None:
    assert deferred(CONFIDENCE, 0.5).tolist() == [True, False, False, False]
    assert deferred(CONFIDENCE, 1.0).tolist() == [True, True, True, False]
    assert deferral_ratio(CONFIDENCE, 0.9) == 0.5


def test_what_is_deferred_counts_by_the_large_models_answer() -> None:
    assert joint_correct(0.9, CONFIDENCE, SMALL, LARGE).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert joint_accuracy(0.9, CONFIDENCE, SMALL, LARGE) == 0.625
    calibration = Calibration(CONFIDENCE, SMALL, LARGE)
    assert (calibration.deferral_ratio(0.9), calibration.joint_accuracy(0.9)) == (0.5, 0.625)


def test_a_parting_threshold_is_round_only_where_it_parts_the_same_items() -> None:
    below = np.array([0.1, 0.50001, np.nextafter(0.7, 0.0)])
    above = np.array([0.3, 0.50002, 0.7])
    found = parting(below, above)
    assert found[0] == 0.2
    assert found[2] == 0.7
    assert ((below < found) & (found <= above)).all()


def test_labels_are_aligned_by_their_names() -> None:
    assert places(("b", "a", "c"), ("a", "b", "c")) == [1, 0, 2]
    check_same_labels("large", ("a", "b"), "data", ("b", "a"))
    with pytest.raises(InputError, match=r"labels of large are not those of data \(2 differ, such as 'a'\)"):
        check_same_labels("large", ("a", "b"), "data", ("b", "c"))


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"there/x cannot be written: No such file or directory"),
        writing(tmp_path / "there" / "x"),
    ):
        (tmp_path / "there" / "x").write_text("")
