"""The bundle: written whole or not at all, read only when every file is what the manifest says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.bundle import (
    CALIBRATION,
    MANIFEST,
    SELECTION,
    Bundle,
    Calibration,
    check_output,
    copy_bundle,
    gate_digest,
    load_bundle,
    rewrite_bundle,
    write_bundle,
    write_calibration,
)
from models.errors import BundleError
from models.inference.classifier import load_classifier

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "task": "text-classification",
    "runtime": "transformers",
    "labels": ["a", "b"],
    "score": "max_softmax",
    "temperature": 1.0,
    "default_threshold": 0.5,
    "dtype": "float32",
    "max_tokens": 16,
}


def write_files(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "tiny", FIELDS, write_files)


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    again = load_bundle(bundle.directory)
    assert again == bundle
    assert again.manifest.labels == ("a", "b")
    assert again.read_calibration() is None


def test_the_committed_text_bundles_keep_their_promises(bundles: Path) -> None:
    small, large = load_bundle(bundles / "clinc150-small"), load_bundle(bundles / "clinc150-large")
    sizes = [sum(path.stat().st_size for path in bundle.directory.iterdir()) for bundle in (small, large)]
    assert sizes[0] <= 4_000_000
    assert sizes[1] <= 1_000_000
    assert small.manifest.metrics["a_S"] >= 0.84
    assert large.manifest.metrics["a_S"] >= 0.945
    assert small.manifest.labels == large.manifest.labels
    calibration = small.read_calibration()
    assert calibration is not None
    assert calibration.large_correct is not None
    assert len(calibration.confidence) == 1_500
    assert 0.05 < calibration.deferral_ratio(small.manifest.default_threshold) < 0.5


def test_the_committed_image_bundles_keep_their_promises(bundles: Path) -> None:
    small, large = (load_bundle(bundles / f"fashion-mnist-{size}") for size in ("small", "large"))
    sizes = [sum(path.stat().st_size for path in bundle.directory.iterdir()) for bundle in (small, large)]
    assert sizes[0] <= 1_000_000
    assert sizes[1] <= 4_000_000
    assert small.manifest.metrics["a_S"] >= 0.9
    assert large.manifest.metrics["a_S"] >= 0.93
    assert small.manifest.labels == large.manifest.labels
    for rows in (small.read_calibration(), small.read_calibration(SELECTION)):
        assert rows is not None
        assert rows.large_correct is not None
        assert len(rows.confidence) == 6_000
    blank = np.zeros((28, 28), np.uint8)
    for bundle in (small, large):
        (prediction,) = load_classifier(bundle).predict([blank])
        assert 0 < prediction.confidence <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["b", "a"]},
        {"score": "margin"},
        {"temperature": 1.5},
        {"max_tokens": 17},
        {"files": {"model.safetensors": "0", "config.json": "1", "tokenizer.json": "2"}},
    ],
)
def test_what_decides_a_confidence_is_in_the_gate_digest(bundle: Bundle, changes: dict[str, Any]) -> None:
    assert gate_digest(bundle.manifest.model_copy(update=changes)) != bundle.gate_digest


@pytest.mark.parametrize("changes", [{"default_threshold": 0.9}, {"metrics": {"a_S": 1.0}}, {"name": "other"}])
def test_what_does_not_is_not(bundle: Bundle, changes: dict[str, Any]) -> None:
    assert gate_digest(bundle.manifest.model_copy(update=changes)) == bundle.gate_digest


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.directory / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2 is unknown"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"labels": ["a"]}, "labels"),
        ({"temperature": 0}, "temperature"),
        ({"runtime": "pickle"}, "runtime"),
        ({"runtime": "head"}, "head.safetensors"),
        ({"surprise": 1}, "surprise"),
        ({"files": {"model.safetensors": "00"}}, "model.safetensors is damaged"),
        ({"files": {"model.safetensors": "00", "../x": "00"}}, "plain file name|damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_name(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message) as refused:
        load_bundle(bundle.directory)
    assert str(bundle.directory) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_and_strange_bundles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(tmp_path / "nothing")
    (bundle.directory / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer.json is missing"):
        load_bundle(bundle.directory)
    (bundle.directory / MANIFEST).write_bytes(b"\xff\xfe{")
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(bundle.directory)


def test_a_failed_write_leaves_the_old_bundle_and_no_litter(bundle: Bundle) -> None:
    def half(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(BundleError, match="No space left"):
        write_bundle(bundle.directory, FIELDS, half)
    assert load_bundle(bundle.directory) == bundle
    assert [path.name for path in bundle.directory.parent.iterdir()] == ["tiny"]


def test_a_copy_is_the_same_bundle_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    assert (copy.gate_digest, copy.manifest) == (bundle.gate_digest, bundle.manifest)
    assert copy_bundle(copy, tmp_path / "copy") == copy
    with pytest.raises(BundleError, match="not a bundle"):
        copy_bundle(bundle, tmp_path)


def test_nothing_but_a_bundle_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        check_output(tmp_path / "precious")
    with pytest.raises(BundleError, match="names the bundle"):
        check_output(tmp_path / "mine, at last")
    with pytest.raises(BundleError, match="is a file"):
        check_output(tmp_path / "precious" / "thesis.txt")


def test_a_card_may_be_edited_and_is_kept(bundle: Bundle) -> None:
    (bundle.directory / "README.md").write_text("by hand")
    again = rewrite_bundle(bundle, {"default_threshold": 0.7}, lambda _: None)
    assert load_bundle(bundle.directory) == again
    assert (bundle.directory / "README.md").read_text() == "by hand"


def test_files_are_readable_by_another_user(bundle: Bundle) -> None:
    assert {path.stat().st_mode & 0o777 for path in bundle.directory.iterdir()} == {0o644}


@pytest.mark.parametrize("large", [np.array([1.0, 0.5, 0.0]), None])
def test_calibration_data_survive_the_file(bundle: Bundle, large: Any) -> None:
    data = Calibration(np.array([0.1, 0.5, 0.9]), np.array([0.0, 1.0, 1.0]), large)
    again = rewrite_bundle(
        bundle, {}, lambda directory: write_calibration(directory / CALIBRATION, data)
    ).read_calibration()
    assert again is not None
    assert again.confidence.tolist() == [0.1, 0.5, 0.9]
    assert (again.large_correct is None) == (large is None)
    assert again.deferral_ratio(0.5) == pytest.approx(1 / 3)
    assert again.joint_accuracy(0.6) == (None if large is None else pytest.approx((1.0 + 0.5 + 1.0) / 3))


def test_calibration_data_without_rows_or_with_nan_are_refused(bundle: Bundle) -> None:
    for values in ([], [0.1, float("nan")]):
        confidence = np.array(values, dtype=np.float64)
        table = pa.table({"confidence": confidence, "small_correct": np.ones(len(values))})
        broken = rewrite_bundle(
            bundle, {}, lambda directory, table=table: pq.write_table(table, directory / CALIBRATION)
        )
        with pytest.raises(BundleError, match=r"calibration.parquet"):
            broken.read_calibration()
