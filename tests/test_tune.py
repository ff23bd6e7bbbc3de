"""The whole offline job on a tiny dataset: tune, calibrate, evaluate; the same seed gives the same weights."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import write_tiny_clinc150

from models.bundle import load_bundle
from models.datasets import load_dataset
from models.errors import InputError
from models.tune import Recipe, tune_text_net
from service.cli import main

RECIPE = Recipe(epochs=12, gatekeeper_epochs=3, batch_size=16, vocabulary=200)


def silent(line: str) -> None:
    pass


def gatekeeper(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, run in this process."""
    capsys.readouterr()
    code = main(arguments)
    return code, *capsys.readouterr()


@pytest.mark.timeout(120)
def test_tune_calibrate_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = write_tiny_clinc150(tmp_path / "data")
    data = load_dataset("clinc150", data_dir)
    bundle = tune_text_net(data, RECIPE, tmp_path / "one", silent)
    again = tune_text_net(data, RECIPE, tmp_path / "two", silent)
    other = tune_text_net(data, replace(RECIPE, seed=1, epochs=1), tmp_path / "three", silent)
    assert bundle.gate_digest == again.gate_digest != other.gate_digest
    assert bundle.manifest.training["gatekeeper_select_accuracy"] > 0.5

    common = ("--data", "clinc150", "--data-dir", str(data_dir))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    command = ("calibrate", one, "--large", two, *common, "--target-deferral-ratio", "0.25", "--write")
    code, printed, _ = gatekeeper(capsys, *command)
    assert code == 0
    assert "expected deferral ratio  0.2" in printed
    calibrated = load_bundle(tmp_path / "one")
    assert calibrated.gate_digest != bundle.gate_digest
    assert f"{calibrated.manifest.default_threshold:g}" in printed
    calibration = calibrated.read_calibration()
    assert calibration is not None
    assert len(calibration.confidence) == len(data.calibrate)

    out = tmp_path / "out"
    assert gatekeeper(capsys, "evaluate", one, "--large", two, *common, "--output", str(out), "--write-card")[0] == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert {"a_S", "a_L", "s_d", "s_o", "auroc", "out_of_scope"} <= numbers.keys()
    assert numbers["a_S"].keys() == {"value", "low", "high"}
    table = pq.read_table(out / "predictions.parquet")
    assert table.num_rows == len(data.test)
    assert {"confidence", "small_correct", "large_correct", "margin", "negative_entropy"} <= set(table.column_names)
    correct = table.column("small_correct").to_pylist()
    assert sum(correct) / len(correct) == pytest.approx(numbers["a_S"]["value"])
    final = load_bundle(tmp_path / "one")
    assert final.gate_digest == calibrated.gate_digest
    assert final.manifest.metrics["a_S"] == pytest.approx(numbers["a_S"]["value"], abs=1e-6)
    assert "CC BY 3.0" in (tmp_path / "one" / "README.md").read_text()

    code, _, complaint = gatekeeper(capsys, "calibrate", two, "--target-accuracy", "0.9")
    assert code == 2
    assert "no calibration data" in complaint


def test_splits_are_disjoint_stratified_and_the_same_every_time(tmp_path: Path) -> None:
    data_dir = write_tiny_clinc150(tmp_path)
    data = load_dataset("clinc150", data_dir)
    assert data == load_dataset("clinc150", data_dir)
    assert not set(data.select.texts) & set(data.calibrate.texts)
    assert sorted(data.select.labels) == sorted(data.calibrate.labels)
    assert len(data.select) + len(data.calibrate) == 24
    path = data_dir / "clinc150" / "data_full.json"
    path.write_text(path.read_text().replace("do fish dream", "do fish sleep"))
    assert load_dataset("clinc150", data_dir).content_hash != data.content_hash


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b'{"train": [["a"]]}', b"\xff", b'{"train": 3}'])
def test_a_file_that_is_not_the_dataset_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "data_full.json").write_bytes(content)
    with pytest.raises(InputError, match=r"data_full.json"):
        load_dataset("clinc150", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tune", "--data", "clinc150", "--data-dir", "/nowhere", "--output", "x"), "/nowhere"),
        (("tune", "--data", "mnist", "--output", "x"), "unknown dataset"),
        (("tune", "--data", "clinc150", "--alpha", "1.5", "--output", "x"), "--alpha"),
        (("tune", "--data", "clinc150", "--alpha", "nan", "--output", "x"), "--alpha"),
        (("calibrate", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, printed, complaint = gatekeeper(capsys, *arguments)
    assert code == 2
    assert words in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert printed == ""
