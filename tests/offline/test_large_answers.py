"""--large takes a bundle or a table of answers; what knows the large model is not forgotten by accident."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny import tiny_rows, write_csv, write_tiny_csv, write_tiny_images

from models.bundle import CALIBRATION, SELECTION, load_bundle
from models.calibration.large_answers import LargeTable, open_large
from models.data.datasets import LabelledDataset, load_dataset
from models.data.records import Columns
from models.errors import InputError
from service.cli import main

LABELS = ("balance", "timer", "weather")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_csv(tmp_path_factory.mktemp("data") / "rows.csv")


@pytest.fixture(scope="module")
def data(rows: Path) -> LabelledDataset:
    return load_dataset(str(rows), None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """A small model of these data, calibrated without a large one."""
    path = tmp_path_factory.mktemp("bundle") / "small"
    options = ("--epochs", "2", "--tuning-epochs", "1", "--output", str(path))
    assert main(["tune", "--data", str(rows), *options]) == 0
    assert main(["calibrate", str(path), "--data", str(rows)]) == 0
    return path


def refusal(table: Path, data: LabelledDataset, splits: Sequence[str] = ("select", "calibrate")) -> str:
    with pytest.raises(InputError) as caught:
        open_large(table).check(data, splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answered(wrong: int = 0) -> list[tuple[str, str]]:
    """The large model's answers: the truth, but for the first so many of each label."""
    given = [(text, label) for text, label in tiny_rows()]
    return [
        (text, LABELS[(LABELS.index(label) + 1) % 3] if place % 32 < wrong else label)
        for place, (text, label) in enumerate(given)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["label", "large_label", "large_correct"])
def test_answers_are_matched_to_items_by_text(tmp_path: Path, data: LabelledDataset, suffix: str, column: str) -> None:
    answers = dict(answered(wrong=8))
    truth = dict(tiny_rows())
    values = {
        text: float(answer == truth[text]) if column == "large_correct" else answer for text, answer in answers.items()
    }
    table = {"text": list(values)[::-1], column: list(values.values())[::-1]}
    path = tmp_path / f"answers{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif suffix == ".csv":
        write_csv(path, zip(*table.values(), strict=True), tuple(table))
    else:
        path.write_text(
            "".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in zip(*table.values(), strict=True))
        )
    for split in ("select", "calibrate", "test"):
        part = getattr(data, split)
        expected = [
            float(answers[text] == data.labels[label]) for text, label in zip(part.inputs, part.labels, strict=True)
        ]
        assert 0 < sum(expected) < len(expected)
        assert open_large(path).correct(data, split).tolist() == expected
    assert open_large(path).digest == f"table:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_what_is_matched_is_said_and_a_column_of_truth_is_suspected(tmp_path: Path, data: LabelledDataset) -> None:
    table = open_large(write_csv(tmp_path / "a.csv", answered()))
    assert isinstance(table, LargeTable)
    note = table.note(data, ("calibrate",))
    assert "column 'label' of a.csv, matched by 'text'; 8 of 96 rows used, 1.0000 right on calibrate" in note
    assert "if 'label' is the truth" in note
    # Beside the answer the truth is left aside.
    both = write_csv(
        tmp_path / "b.csv", [(t, label, "timer") for t, label in answered()], ("text", "label", "large_label")
    )
    assert 0 < open_large(both).correct(data, "test").mean() < 1


def test_a_text_column_of_another_name_is_that_of_the_data(tmp_path: Path, data: LabelledDataset) -> None:
    table = write_csv(tmp_path / "a.csv", answered(), ("question", "category"))
    assert open_large(table, Columns("question", "category")).correct(data, "test").all()
    assert "no column 'text'" in refusal(table, data)


def test_rows_are_matched_by_place_where_they_say_so(tmp_path: Path, data: LabelledDataset) -> None:
    rows = [(split, row, "timer") for split in ("calibrate", "select") for row in range(1, 9)]
    table = write_csv(tmp_path / "a.csv", rows[::-1], ("split", "row", "large_label"))
    for split in ("select", "calibrate"):
        truth = [data.labels[label] for label in getattr(data, split).labels]
        assert open_large(table).correct(data, split).tolist() == [float(label == "timer") for label in truth]
    assert "no answer for 19 of the 19 test items" in refusal(table, data, ("test",))


def test_images_are_matched_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    folder = write_tiny_images(tmp_path / "pictures")
    data = load_dataset(str(folder), None)
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.png"))]
    table = write_csv(tmp_path / "a.csv", [(path, path.parent.name) for path in files], ("file", "label"))
    assert open_large(table).correct(data, "calibrate").all()
    names = {path.name: path.parent.name for path in files}
    short = write_csv(tmp_path / "b.csv", list(names.items()), ("file", "label"))
    assert "stand for several select images" in refusal(short, data)
    few = write_csv(tmp_path / "c.csv", [("nowhere.png", "high")], ("file", "label"))
    assert "no answer for 9 of the 9 select items; the first is item 1 (" in refusal(few, data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:40], "no answer for "),
        (
            lambda rows: [(text.upper(), label) for text, label in rows],
            "7 of them would match but for white space or cap",
        ),
        (lambda rows: [*rows, *((text, "timer") for text, _ in rows)], "64 items have rows that contradict each other"),
        (
            lambda rows: [(text, label.title()) for text, label in rows],
            "7 of 7 answers are no label of the data (3 kinds, such as 'Timer'; did you",
        ),
        (lambda rows: [(text, "") for text, _ in rows], "line 2: the column 'label' is empty"),
        (lambda _: [], "has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(
    tmp_path: Path, data: LabelledDataset, change: Callable[[list[tuple[str, str]]], Any], says: str
) -> None:
    assert says in refusal(write_csv(tmp_path / "a.csv", change(answered())), data)


def test_equal_rows_are_one_and_odd_grades_are_told(tmp_path: Path, data: LabelledDataset) -> None:
    assert open_large(write_csv(tmp_path / "a.csv", answered() * 2)).correct(data, "test").all()
    for value in ("maybe", "1.5", "nan", "-1"):
        table = write_csv(tmp_path / "b.csv", [(text, value) for text, _ in answered()], ("text", "large_correct"))
        assert f"large_correct holds {value!r}" in refusal(table, data)
    table = write_csv(tmp_path / "c.csv", [(text, "TRUE") for text, _ in answered()], ("text", "large_correct"))
    assert open_large(table).correct(data, "test").all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "does not exist"),
        ("a.txt", b"text,label\n", "neither a bundle's directory nor a table"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,answer\nx,y\n", "no column 'label'"),
        ("a.csv", b'text,label\n"half', "not valid csv"),
        ("a.parquet", b"PAR1", "damaged, or not a parquet file"),
        ("a.jsonl", b'{"text": "a", "label"', "not valid JSON"),
    ],
)
def test_what_is_no_table_is_one_line(
    tmp_path: Path, data: LabelledDataset, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name, data)


@pytest.mark.slow
def test_a_table_calibrates_and_evaluates_as_the_model_would(
    tmp_path: Path, bundle: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, one = write_csv(tmp_path / "answers.csv", answered(wrong=2)), tmp_path / "one"
    options = ("--large", str(table), "--data", str(rows))
    assert main(["calibrate", str(bundle), *options, "--output", str(one), "--target-deferral-ratio", "0.5"]) == 0
    printed = capsys.readouterr()
    assert "matched by 'text'" in printed.err
    assert "expected joint accuracy  0." in printed.out or "expected joint accuracy  1." in printed.out
    manifest = load_bundle(one).manifest
    assert (manifest.calibrated_with or "").startswith("table:")
    selection = load_bundle(one).read_calibration(SELECTION)
    assert selection is not None
    assert selection.large_correct is not None
    assert main(["evaluate", str(one), *options, "--output", str(tmp_path / "out"), "--write-card"]) == 0
    assert "a_L " in capsys.readouterr().out
    assert "with `the answers in answers.csv` as the large model" in (one / "README.md").read_text()


def test_what_knows_the_large_model_is_not_forgotten_by_accident(
    tmp_path: Path, bundle: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, one = write_csv(tmp_path / "answers.csv", answered(wrong=2)), tmp_path / "one"
    assert main(["calibrate", str(bundle), "--large", str(table), "--data", str(rows), "--output", str(one)]) == 0
    before = load_bundle(one)
    kept = {path.name: path.read_bytes() for path in one.iterdir()}
    capsys.readouterr()
    for again in ((str(one),), (str(bundle), "--output", str(one))):
        assert main(["calibrate", *again, "--data", str(rows)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"knows what the large model answers ({CALIBRATION}, {SELECTION})" in line
        assert "--forget-large" in line
        assert {path.name: path.read_bytes() for path in one.iterdir()} == kept
    assert main(["calibrate", str(one), "--data", str(rows), "--output", str(tmp_path / "two")]) == 0
    assert load_bundle(one) == before
    assert main(["calibrate", str(one), "--data", str(rows), "--forget-large"]) == 0
    rows_now = load_bundle(one).read_calibration()
    assert rows_now is not None
    assert rows_now.large_correct is None


@pytest.mark.parametrize(
    "wrong",
    [
        ("--target-accuracy", "7"),
        ("--target-accuracy-loss", "1"),
        ("--target-deferral-ratio", "nan"),
        ("--target-accuracy", "0.9", "--certainty", "1.5"),
        ("--target-selective-accuracy", "0.9"),
        ("--certainty", "0.9"),
        ("--threads", "0"),
    ],
)
def test_a_wrong_option_is_told_before_the_calibration_data_are_replaced(
    bundle: Path, rows: Path, tmp_path: Path, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path.name: path.read_bytes() for path in bundle.iterdir()}
    table = write_csv(tmp_path / "answers.csv", answered(wrong=2))
    capsys.readouterr()
    assert main(["calibrate", str(bundle), "--data", str(rows), "--large", str(table), *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == kept


def test_a_large_model_that_is_no_better_is_said_with_its_uncertainty(
    tmp_path: Path, bundle: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, one = write_csv(tmp_path / "answers.csv", answered(wrong=32)), tmp_path / "one"
    options = ("--large", str(table), "--data", str(rows))
    for target in ("0.01", "1"):
        code = main(["calibrate", str(bundle), *options, "--output", str(one), "--target-accuracy", target])
        assert code == (0 if target == "0.01" else 3)
        said = capsys.readouterr()
        assert "note: the large model is no better than the small one on these items: 0.0000 against" in said.err
        assert "deferring buys nothing here" in said.err
    assert "the large one 0.0000)" in said.out
    assert main(["evaluate", str(bundle), *options, "--output", str(tmp_path / "out")]) == 0
    assert "deferring buys nothing here" in capsys.readouterr().out
    assert "deferring buys nothing here" in (tmp_path / "out" / "report.html").read_text()
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["large_gain"]["high"] < 0
    assert np.isclose(numbers["large_gain"]["value"], numbers["a_L"]["value"] - numbers["a_S"]["value"])
