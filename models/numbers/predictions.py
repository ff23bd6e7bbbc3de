"""What a cascade answered on a test set, one row an item: the table that every number and picture is drawn from.

`gatekeeper evaluate` writes it as predictions.parquet; a .parquet or .csv from elsewhere with the columns `confidence`
and `small_correct` is read the same way.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.bundle import SCORE_RANGES
from models.data.splits import Inputs
from models.errors import InputError
from models.files import open_regular
from models.parquet import MOST_VALUES, read_parquet
from models.replacing import write_whole

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REQUIRED = ("confidence", "small_correct")
SCORE_NAMES = tuple(SCORE_RANGES)
CLASS_COLUMNS = ("label", "prediction")
COLUMNS = (*REQUIRED, "large_correct", *SCORE_NAMES, *CLASS_COLUMNS, "text")
# More names than this are answers in words, not classes: no picture of the deferred classes can be drawn of them.
MOST_CLASSES = 10_000
MOST_CSV_BYTES = 4 * 1024**3
LARGEST = 1e100  # a confidence beyond it has no variance, and no place on an axis, in double precision
CLASSES_KEY = b"gatekeeper.classes"


@dataclass(frozen=True)
class Answers:
    """What a model that writes text said to each of N prompts. reference: the answer that training teaches.

    tokens: how many the answer has, (N,). entropy: of each of them, in nats; for the report only.
    """

    prompt_id: tuple[str, ...]
    answer: tuple[str, ...]
    reference: tuple[str, ...]
    tokens: Ints
    entropy: tuple[Floats, ...]


@dataclass(frozen=True)
class Predictions:
    """One row per test item, each array (N,). Correctness is in [0, 1]: 0/1 for classification, graded for
    generated answers. Raises InputError that names the row where a value cannot be.
    """

    confidence: Floats  # the score g(x) that the gate compares; higher is surer
    small_correct: Floats
    large_correct: Floats | None  # None where unknown
    scores: dict[str, Floats]  # confidence under every score by name, see SCORE_NAMES
    classes: tuple[str, ...] | None = None  # label names that `label` and `prediction` index
    label: Ints | None = None  # expected class
    prediction: Ints | None = None  # the small model's class
    items: Inputs | None = None  # the inputs, for the report only; never written
    answers: Answers | None = None  # of a model that writes text

    def __post_init__(self) -> None:
        count = len(self.confidence)
        if not count:
            raise InputError("there are no rows")
        for name, values in {"confidence": self.confidence, **self.scores}.items():
            _refuse(~np.isfinite(values), count, f"{name} is missing or not a finite number")
        for name, correct in {"small_correct": self.small_correct, "large_correct": self.large_correct}.items():
            if correct is not None:
                _refuse(np.isnan(correct), count, f"{name} is missing")
                _refuse((correct < 0.0) | (correct > 1.0), count, f"{name} is outside [0, 1]")
        for name, codes in {"label": self.label, "prediction": self.prediction}.items():
            if codes is not None:
                _refuse((codes < 0) | (codes >= len(self.classes or ())), count, f"{name} is not one of the classes")
        if self.items is not None and len(self.items) != count:
            raise InputError(f"there are {count} rows but {len(self.items)} items")

    @property
    def graded(self) -> bool:
        """Whether any correctness, of the small or the large model, is neither 0 nor 1."""
        return is_graded(self.small_correct) or (self.large_correct is not None and is_graded(self.large_correct))


def is_graded(correct: Floats) -> bool:
    """Whether any correctness is neither 0 nor 1."""
    return bool(((correct != 0.0) & (correct != 1.0)).any())


def _refuse(bad: NDArray[np.bool_], count: int, what: str) -> None:
    if len(bad) != count:
        raise InputError(f"{what.split(maxsplit=1)[0]} has {len(bad)} rows, confidence has {count}")
    if bad.any():
        others = int(bad.sum()) - 1
        more = f" and in {others} more" if others else ""
        raise InputError(f"{what} in row {int(bad.argmax()) + 1}{more} (the first row is 1)")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the rows as Parquet: a whole file or none. Classes are written by name. Raises InputError."""
    columns: dict[str, Any] = {
        "confidence": predictions.confidence,
        "small_correct": predictions.small_correct,
        "large_correct": predictions.large_correct,
        **predictions.scores,
    }
    names = pa.array(predictions.classes or (), pa.string())
    for name, codes in {"label": predictions.label, "prediction": predictions.prediction}.items():
        columns[name] = None if codes is None else pa.DictionaryArray.from_arrays(codes.astype(np.int32), names)
    if predictions.answers is not None:
        columns |= {name: getattr(predictions.answers, name) for name in ("prompt_id", "answer", "reference", "tokens")}
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    if predictions.classes is not None:
        table = table.replace_schema_metadata({CLASSES_KEY: json.dumps(predictions.classes)})
    repeated = [name for name in table.column_names if name.endswith("_correct") or name in CLASS_COLUMNS]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda scratch: pq.write_table(table, scratch, use_dictionary=repeated))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{path} cannot be written: {reason}") from error


def read_predictions(path: Path) -> Predictions:
    """Read a table of predictions, .parquet or .csv with a header, ours or from elsewhere.

    Columns: confidence, small_correct; optional large_correct, label, prediction, text and those of SCORE_NAMES;
    others are ignored. Correctness is bool, 0/1 or a grade in [0, 1]; a large_correct without any value is unknown.
    Raises InputError in one line that names the file, the column and the row.
    """
    table = _read_table(path)
    try:
        columns = {name: _numbers(table, name) for name in (*REQUIRED, "large_correct", *SCORE_NAMES)}
        large, classes = columns["large_correct"], _classes(table)
        texts = _strings(table, "text")
        confidence, small = columns["confidence"], columns["small_correct"]
        assert confidence is not None
        assert small is not None
        for name in ("confidence", *SCORE_NAMES):
            if (values := columns[name]) is not None:
                beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
                _refuse(beyond, len(values), f"{name} is beyond {LARGEST:g}")
        return Predictions(
            confidence,
            small,
            None if large is None or np.isnan(large).all() else large,
            {name: values for name in SCORE_NAMES if (values := columns[name]) is not None},
            classes,
            _codes(table, "label", classes),
            _codes(table, "prediction", classes),
            None if texts is None else _Texts(texts),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_table(path: Path) -> Any:
    """The known columns as an Arrow table."""
    suffix = path.suffix.lower()
    if suffix not in {".parquet", ".csv"}:
        raise InputError(f"{path}: predictions are a .parquet or a .csv file, not {suffix or 'a file without suffix'}")
    if not path.is_file():
        there = "is a directory, not a file" if path.is_dir() else "is no regular file" if path.exists() else ""
        raise InputError(f"{path} {there or 'does not exist'}")
    try:
        return _read_csv(path) if suffix == ".csv" else read_parquet(path, lambda names: _known(path, names))
    except (OSError, pa.ArrowException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as {suffix[1:]}: {reason}") from error


def _read_csv(path: Path) -> Any:
    with open_regular(path, MOST_CSV_BYTES) as stream:
        # A quoted text may hold a line break.
        table = pacsv.read_csv(stream, parse_options=pacsv.ParseOptions(newlines_in_values=True))
    if len(table) > MOST_VALUES:
        raise InputError(f"{path} has {len(table):,} rows; the most is {MOST_VALUES:,}: divide it")
    table = table.rename_columns([name.strip() for name in table.column_names])
    return table.select(_known(path, table.column_names))


def _known(path: Path, present: list[str]) -> list[str]:
    """The columns to read; refuses a table that lacks one or has one twice."""
    missing = [name for name in REQUIRED if name not in present]
    if missing:
        there = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
        raise InputError(f"{path}: no column {' and no column '.join(missing)}; there is: {there or 'no column'}")
    twice = [name for name in COLUMNS if present.count(name) > 1]
    if twice:
        raise InputError(f"{path}: the column {twice[0]} is there {present.count(twice[0])} times; keep one")
    return [name for name in COLUMNS if name in present]


def _numbers(table: Any, name: str) -> Floats | None:
    """A column as floats, a missing value as NaN; None where there is no such column."""
    if name not in table.column_names:
        return None
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.utf8_trim_whitespace(column)
        # A whole number beyond 2**53 is rounded, as everywhere.
        numbers: Floats = column.cast(pa.float64(), safe=not pa.types.is_integer(column.type)).to_numpy()
    except pa.ArrowException as error:
        for row, value in enumerate(column, start=1):
            if _is_no_number(value.as_py()):
                raise InputError(f"{name} holds {value.as_py()!r} in row {row}, which is not a number") from error
        raise InputError(f"{name} does not hold numbers but {column.type}") from error
    return numbers


def _is_no_number(value: object) -> bool:
    try:
        return isinstance(value, str) and float(value) is None
    except ValueError:
        return True


def _strings(table: Any, name: str) -> Any:
    """A column of text, or of anything that has a name, as Arrow strings; None where it is absent or empty."""
    if name not in table.column_names or table.column(name).null_count == len(table):
        return None
    try:
        return table.column(name).cast(pa.string())
    except pa.ArrowException as error:
        if pa.types.is_binary(table.column(name).type):  # what pyarrow makes of a csv's bytes that are no UTF-8
            raise InputError(f"{name} is not UTF-8: save the file as UTF-8") from error
        raise InputError(f"{name} does not hold text but {table.column(name).type}") from error


def _classes(table: Any) -> tuple[str, ...] | None:
    """All class names in our own order, or sorted for a table from elsewhere; None where there are no classes."""
    columns = [column for name in CLASS_COLUMNS if (column := _strings(table, name)) is not None]
    if not columns:
        return None
    present = {name for column in columns for name in pc.unique(column).to_pylist() if name is not None}
    ours = _own_classes(table.schema.metadata or {})
    if present <= set(ours):
        return ours
    return tuple(sorted(present)) if len(present) <= MOST_CLASSES else None


def _own_classes(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The classes in the order that write_predictions wrote; none where it was not that."""
    try:
        names = json.loads(metadata.get(CLASSES_KEY, b"[]"))
    except (ValueError, RecursionError):
        return ()
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if fits else ()


def _codes(table: Any, name: str, classes: tuple[str, ...] | None) -> Ints | None:
    column = _strings(table, name)
    if column is None or classes is None:
        return None
    # An empty cell of a csv is an empty text.
    _refuse(pc.equal(pc.coalesce(column, ""), "").to_numpy(), len(table), f"{name} is missing")
    codes: Ints = pc.index_in(column, value_set=pa.array(classes)).to_numpy().astype(np.int64)
    return codes


class _Texts(Sequence[str]):
    """A column of texts that becomes Python strings where it is looked at: a report shows a dozen of a million."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_Texts": ...
    def __getitem__(self, index: int | slice) -> "str | _Texts":
        if isinstance(index, slice):
            return _Texts(self._column.take(np.arange(len(self))[index]))
        return self._column[int(index)].as_py() or ""
