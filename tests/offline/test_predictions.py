"""Tables of predictions: ours come back as they were, others' are read or refused in one line."""

import subprocess
import sys
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from models.errors import InputError
from models.numbers.predictions import SCORE_NAMES, Predictions, read_predictions, write_predictions

GOOD: dict[str, list[Any]] = {"confidence": [0.9, 0.4, 0.7], "small_correct": [1, 0, 1], "large_correct": [1, 1, 0]}


def written(directory: Path, suffix: str, columns: dict[str, Any]) -> Path:
    path = directory / f"table{suffix}"
    table = pa.table(columns)
    if suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def predictions(count: int = 500) -> Predictions:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(size=count)
    return Predictions(
        confidence,
        (generator.uniform(size=count) < 0.8).astype(np.float64),
        (generator.uniform(size=count) < 0.9).astype(np.float64),
        {name: factor * confidence for factor, name in enumerate(SCORE_NAMES, start=1)},
        ("zebra", "apple", "never seen", 'a "quoted", name'),
        generator.integers(0, 2, count) * 3,
        generator.integers(0, 2, count),
        items=[f"item {row}" for row in range(count)],
    )


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_equal(found: Predictions, expected: Predictions) -> None:
    for field in fields(Predictions):
        values, wanted = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(wanted, dict):
            assert list(values) == list(wanted)
            values, wanted = np.array(list(values.values())), np.array(list(wanted.values()))
        np.testing.assert_array_equal(values, wanted, err_msg=field.name)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Classes keep their order, also those that no row has. The inputs are not written."""
    path = tmp_path / "new" / "predictions.parquet"
    write_predictions(path, predictions())
    assert_equal(read_predictions(path), replace(predictions(), items=None))
    assert names_in(path.parent) == ["predictions.parquet"]
    names = pq.read_table(path).column("label").to_pylist()
    assert set(names) == {"zebra", 'a "quoted", name'}


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    bare = Predictions(np.array([0.5, -3.0]), np.array([0.25, 1.0]), None, {})
    write_predictions(tmp_path / "p.parquet", bare)
    assert_equal(read_predictions(tmp_path / "p.parquet"), bare)
    assert bare.graded


def test_a_parquet_of_ours_survives_as_csv(tmp_path: Path) -> None:
    """The classes are then those that occur, sorted."""
    write_predictions(tmp_path / "p.parquet", predictions())
    table = pq.read_table(tmp_path / "p.parquet")
    pacsv.write_csv(table, tmp_path / "p.csv")
    found, expected = read_predictions(tmp_path / "p.csv"), predictions()
    assert found.classes == ('a "quoted", name', "apple", "zebra")
    assert expected.classes is not None
    assert found.label is not None
    assert [found.classes[code] for code in found.label] == table.column("label").to_pylist()
    np.testing.assert_array_equal(found.scores["energy"], expected.scores["energy"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".CSV"])
@pytest.mark.parametrize("small", [[True, False, True], [1, 0, 1], [1.0, 0.0, 1.0]])
def test_correctness_is_bool_or_number(tmp_path: Path, suffix: str, small: list[Any]) -> None:
    path = written(tmp_path, suffix.lower(), GOOD | {"small_correct": small, "note": ["x", None, "y"]})
    found = read_predictions(path.rename(path.with_suffix(suffix)))
    assert found.small_correct.dtype == np.float64
    assert found.small_correct.tolist() == [1.0, 0.0, 1.0]
    assert not found.graded
    assert (found.scores, found.classes, found.label, found.items) == ({}, None, None, None)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_grades_labels_scores_and_texts_of_others_are_read(tmp_path: Path, suffix: str) -> None:
    extra = {
        "small_correct": [0.2, 0.0, 1.0],
        "margin": [0.1, 0.2, 0.3],
        "label": ["b", "a", "b"],
        "text": ["two\nlines", 'a "quote"', "plain"],
    }
    found = read_predictions(written(tmp_path, suffix, GOOD | extra))
    assert found.graded
    assert found.classes == ("a", "b")
    assert found.label is not None
    assert found.label.tolist() == [1, 0, 1]
    assert found.prediction is None
    assert found.scores["margin"].tolist() == [0.1, 0.2, 0.3]
    assert found.items is not None
    assert list(found.items) == extra["text"]
    assert list(found.items[1:]) == extra["text"][1:]


def test_types_that_other_tools_write_are_read(tmp_path: Path) -> None:
    """Narrow floats, decimals, dictionaries of numbers, numbers as text, labels as numbers or pandas' categories."""
    columns = {
        "confidence": pa.array([0.5, 0.25], pa.float16()),
        "small_correct": pa.array(["1", " 0"]),
        "large_correct": pa.array([1, 0]).dictionary_encode(),
        "energy": pa.array([Decimal(2), Decimal(3)], pa.decimal128(12, 2)),
        "label": [7, 12],
        "prediction": pa.array(["12", "7"]).dictionary_encode(),
    }
    found = read_predictions(written(tmp_path, ".parquet", columns))
    assert found.confidence.tolist() == [0.5, 0.25]
    assert found.small_correct.tolist() == found.large_correct.tolist() == [1.0, 0.0]
    assert found.scores["energy"].tolist() == [2.0, 3.0]
    assert found.classes == ("12", "7")
    assert found.label.tolist() == [1, 0]
    assert found.prediction.tolist() == [0, 1]


def test_a_csv_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """A byte order mark, CRLF, blanks in the header."""
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffconfidence, small_correct\r\n0.5,TRUE\r\n0.25,FALSE\r\n".encode())
    assert read_predictions(path).small_correct.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_large_correct_without_a_value_is_unknown(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, GOOD | {"large_correct": pa.nulls(3), "label": pa.nulls(3), "text": pa.nulls(3)})
    found = read_predictions(path)
    assert (found.large_correct, found.label, found.classes, found.items) == (None, None, None, None)


def test_answers_in_words_are_not_classes(tmp_path: Path) -> None:
    count = 10_001
    columns = {"confidence": [0.5] * count, "small_correct": [1] * count, "prediction": [f"w{i}" for i in range(count)]}
    found = read_predictions(written(tmp_path, ".parquet", columns))
    assert (found.classes, found.prediction) == (None, None)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": [0.9, float("nan"), float("nan")]}, "confidence is missing .* in row 2 and in 1 more"),
        ({"confidence": [0.9, 0.1, float("inf")]}, "confidence .* not a finite number in row 3 "),
        ({"confidence": [None, 0.1, 0.2]}, "confidence is missing .* in row 1 "),
        ({"confidence": pa.nulls(3)}, "confidence is missing .* in row 1 and in 2 more"),
        ({"energy": [1.0, float("-inf"), 2.0]}, "energy .* in row 2 "),
        ({"small_correct": [1, 2, 0]}, r"small_correct is outside \[0, 1\] in row 2 "),
        ({"small_correct": [1.0, 0.0, -0.5]}, "small_correct is outside .* in row 3 "),
        ({"small_correct": [True, None, False]}, "small_correct is missing in row 2 "),
        ({"large_correct": [1, 1, None]}, "large_correct is missing in row 3 "),
        ({"large_correct": [1.5, 1, 0]}, "large_correct is outside .* in row 1 "),
        ({"confidence": ["0.9", "0.8", "high"]}, "confidence holds 'high' in row 3, which is not a number"),
        ({"small_correct": ["yes", "no", "yes"]}, "small_correct holds 'yes' in row 1, which is not a number"),
        ({"label": ["a", None, "b"], "prediction": ["a", "a", "a"]}, "label is missing in row 2 "),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_row(
    tmp_path: Path, suffix: str, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, suffix, GOOD | change)
    with pytest.raises(InputError, match=message) as raised:
        read_predictions(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"confidence": [0.5], "correct": [1]}, "no column small_correct; there is: confidence, correct"),
        ({"g": [0.5]}, "no column confidence and no column small_correct; there is: g"),
        ({f"c{number}": [1] for number in range(50)}, r"there is: c0, c1, .*c19, \.\.\.$"),
        ({"confidence": pa.array([], pa.float64()), "small_correct": pa.array([], pa.float64())}, "no rows"),
    ],
)
def test_a_table_without_what_is_needed_is_refused(
    tmp_path: Path, suffix: str, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_predictions(written(tmp_path, suffix, columns))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    table = pa.Table.from_arrays([pa.array([1.0])] * 4, ["confidence", "small_correct", "small_correct", "other"])
    pq.write_table(table, path) if suffix == ".parquet" else pacsv.write_csv(table, path)
    with pytest.raises(InputError, match="the column small_correct is there 2 times"):
        read_predictions(path)
    renamed = table.rename_columns(["confidence", "small_correct", "other", "other"])
    pq.write_table(renamed, path) if suffix == ".parquet" else pacsv.write_csv(renamed, path)
    assert len(read_predictions(path).confidence) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.csv", b"", "cannot be read as csv"),
        ("a.csv", b"\n\n", "a.csv"),
        ("a.csv", b"confidence,small_correct\n0.5\n", "cannot be read as csv"),
        ("a.csv", b"confidence;small_correct\n0.5;1\n", "there is: confidence;small_correct"),
        ("a.csv", b"confidence,small_correct\n", "no rows"),
        ("a.csv", bytes(range(128, 256)), "a.csv"),
        ("a.json", b"{}", "a .parquet or a .csv file, not .json"),
        ("a", b"", "not a file without suffix"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_predictions(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        read_predictions(tmp_path / "folder.csv")


def test_a_column_of_something_else_is_refused(tmp_path: Path) -> None:
    for column in ("confidence", "text", "label"):
        path = written(tmp_path, ".parquet", GOOD | {column: [[1], [2], [3]]})
        with pytest.raises(InputError, match=f"{column} does not hold"):
            read_predictions(path)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_predictions(tmp_path / "file" / "p.parquet", predictions(3))
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_predictions(tmp_path / "p.parquet", predictions(3))
    assert names_in(tmp_path) == ["file", "p.parquet"]


def test_a_full_disk_is_one_line_and_the_earlier_file_stays(tmp_path: Path) -> None:
    """Under a limit on the size of files, which the system enforces as it does a full disk."""
    path = tmp_path / "p.parquet"
    write_predictions(path, predictions(3))
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; sys.path[:0] = ['tests', 'tests/offline']\n"
        "from test_predictions import predictions; from models.numbers.predictions import write_predictions\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: write_predictions(Path(sys.argv[1]), predictions(50_000))\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
        "print(sorted(name for name in sys.modules if name in {'torch', 'transformers'}))"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.splitlines() == [f"InputError {path} cannot be written: File too large", "[]"]
    assert names_in(tmp_path) == ["p.parquet"]
    assert path.read_bytes() == before


def test_rows_that_do_not_fit_together_are_refused() -> None:
    half, ones = np.array([0.5, 0.5]), np.ones(2)
    for arguments in (
        {"small_correct": np.ones(3)},
        {"large_correct": np.ones(1)},
        {"scores": {"margin": np.ones(5)}},
        {"label": np.array([0, 1])},
        {"classes": ("a", "b"), "prediction": np.array([0, 2])},
        {"items": ["one"]},
    ):
        with pytest.raises(InputError):
            Predictions(
                **({"confidence": half, "small_correct": ones, "large_correct": ones, "scores": {}} | arguments)
            )


def test_the_scores_are_those_of_the_gate() -> None:
    from models.inference.confidence import SCORES
    from models.inference.generation.traces import SCORES as TEXT_SCORES

    assert (*SCORES, *TEXT_SCORES, "quantile_rule") == SCORE_NAMES
