"""Texts and labels from a table: .csv, .jsonl or .parquet, one file or a directory with one file a split."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from models.data.splits import SPLIT_NAMES, Rows
from models.errors import InputError
from models.files import once_each, read_bounded
from models.parquet import read_parquet

SPLIT_COLUMN = "split"
# Python's limit of 131,072 characters a cell guards against a forgotten quote, which strict parsing finds anyway.
csv.field_size_limit(2**31 - 1)
MOST_BYTES = 4 * 1024**3  # of a csv or jsonl file, which is held in memory as a whole


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read."""

    text: str = "text"
    label: str = "label"


class _Record(NamedTuple):
    """A row as it stands in the file. `where` is its file and line."""

    where: str
    text: Any
    label: Any
    split: Any


def is_table(path: Path) -> bool:
    return path.suffix.lower() in _READERS


def read_table(path: Path, columns: Columns, default_split: str = "train") -> dict[str, Rows]:
    """The rows of a file by split: all the default's where it has no column `split`. Raises InputError."""
    if columns.text == columns.label:
        raise InputError(f"the text and the label cannot both be the column {columns.text!r}")
    given: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in _READERS[path.suffix.lower()](path, columns, default_split):
        pair = cell(record.text, columns.text, record.where), label_of(record.label, columns.label, record.where)
        given[_split_of(record)].append(pair)
    if not given:
        raise InputError(f"{path} has no rows")
    return {name: _rows(pairs) for name, pairs in given.items()}


def split_files(directory: Path) -> dict[str, Path]:
    """The tables of a directory that are named after a split: train.csv, test.parquet, ... Raises InputError."""
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        name = SPLIT_NAMES.get(path.stem.lower())
        if name is None or not is_table(path):
            continue
        if name in found:
            raise InputError(f"{directory} has both {found[name].name} and {path.name} for the split {name}; keep one")
        found[name] = path
    return found


def read_tables(files: dict[str, Path], columns: Columns) -> dict[str, Rows]:
    """The rows of one file a split. A column `split` may not contradict the file's name. Raises InputError."""
    given: dict[str, Rows] = {}
    for name, path in files.items():
        by_split = read_table(path, columns, default_split=name)
        if strangers := by_split.keys() - {name}:
            raise InputError(f"{path}: its column {SPLIT_COLUMN!r} says {min(strangers)}, its name {name}")
        given |= by_split
    return given


def cell(value: Any, column: str, where: str) -> str:
    """A value of a table as text. Raises InputError where it is empty (null, NaN, white space) or no single value."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # noqa: PLR0124  NaN
        raise InputError(f"{where}: the column {column!r} is empty")
    if isinstance(value, list | dict | bytes):
        raise InputError(f"{where}: the column {column!r} holds a {type(value).__name__}, not a text")
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: the column {column!r} holds half a surrogate pair, which is no text") from None
    return text


def label_of(value: Any, column: str, where: str) -> str:
    """A label as text, without the white space around it: "spam " is no label of its own."""
    return cell(value, column, where).strip()


def _split_of(record: _Record) -> str:
    name = SPLIT_NAMES.get(str(record.split).strip().lower())
    if name is None:
        raise InputError(
            f"{record.where}: the column {SPLIT_COLUMN!r} is {record.split!r}; it can be {', '.join(SPLIT_NAMES)}"
        )
    return name


def _rows(pairs: Sequence[tuple[str, str]]) -> Rows:
    texts = tuple(text for text, _ in pairs)
    return Rows(texts, [label for _, label in pairs], texts)


def _csv_records(path: Path, columns: Columns, default_split: str) -> Iterator[_Record]:
    reader = csv.reader(io.StringIO(_utf8(path), newline=""), strict=True)
    names: list[str] | None = None
    wanted: list[int | None] = []
    while True:
        where = f"{path}: line {reader.line_num + 1}"  # where the row begins: a quoted text can go over several
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where} is not valid csv: {error}") from None
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if names is None:
            names = [name.strip() for name in cells]
            wanted = _find(path, names, columns)
            continue
        if len(cells) != len(names):
            raise InputError(
                f"{where}: {len(cells)} cells where the header has {len(names)}; "
                "a text with commas must stand in double quotes"
            )
        values = [default_split if position is None else cells[position] for position in wanted]
        yield _Record(where, *values)


def _jsonl_records(path: Path, columns: Columns, default_split: str) -> Iterator[_Record]:
    has_split: bool | None = None
    for number, line in enumerate(_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line, object_pairs_hook=once_each)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where} is not valid JSON: {reason}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object; each line is one, such as {_example(columns)}")
        if has_split is None:
            has_split = _find(path, list(row), columns)[2] is not None
        if (SPLIT_COLUMN in row) != has_split:
            raise InputError(f"{where}: either every line has {SPLIT_COLUMN!r} or none")
        yield _Record(where, row.get(columns.text), row.get(columns.label), row.get(SPLIT_COLUMN, default_split))


def _parquet_records(path: Path, columns: Columns, default_split: str) -> Iterator[_Record]:
    has_split = False

    def chosen(names: list[str]) -> list[str]:
        nonlocal has_split
        has_split = _find(path, names, columns)[2] is not None
        return [columns.text, columns.label, *([SPLIT_COLUMN] if has_split else [])]

    try:
        table = read_parquet(path, chosen)
        number = 0
        for batch in table.to_batches(max_chunksize=65_536):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield _Record(f"{path}: row {number}", *(values if has_split else (*values, default_split)))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or not a parquet file: {reason}") from error


_READERS = {
    ".csv": _csv_records,
    ".jsonl": _jsonl_records,
    ".ndjson": _jsonl_records,
    ".json-lines": _jsonl_records,
    ".parquet": _parquet_records,
}
TABLE_SUFFIXES = tuple(_READERS)


def _utf8(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        content = read_bounded(path, MOST_BYTES)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def _find(path: Path, names: list[str], columns: Columns) -> list[int | None]:
    """Where the text, the label and the split are among the names; None: no split. Raises InputError."""
    for name in (columns.text, columns.label):
        if name not in names:
            there = ", ".join(repr(name) for name in names)
            separator = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
            hint = f"; its columns are separated by {separator!r}, which must be commas" if separator else ""
            raise InputError(f"{path} has no column {name!r}; there is {there}{hint}")
    wanted = (columns.text, columns.label, SPLIT_COLUMN)
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}; rename one")
    return [names.index(name) if name in names else None for name in wanted]


def _example(columns: Columns) -> str:
    return json.dumps({columns.text: "good morning", columns.label: "greeting"})
