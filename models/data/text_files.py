"""The rows of a .csv or a .jsonl file. Both are UTF-8, and are held in memory as a whole."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.data.records import SPLIT_COLUMN, Columns, Opened, Record, example, find
from models.errors import InputError
from models.files import once_each, read_bounded

# Python's limit of 131,072 characters a cell guards against a forgotten quote, which strict parsing finds anyway.
csv.field_size_limit(2**31 - 1)
MOST_BYTES = 4 * 1024**3
_MOST_DIGITS = 300  # of a whole number in JSON that is read as a number; Python refuses those of 4,300
# What a file begins with that is no text in UTF-8.
_OTHER_KINDS = {
    b"\xff\xfe": "is UTF-16",
    b"\xfe\xff": "is UTF-16",
    b"PK\x03\x04": "is a zip archive or a workbook of a spreadsheet",
    b"\x1f\x8b": "is packed by gzip",
    b"PAR1": "is a parquet file",
    b"\xd0\xcf\x11\xe0": "is a workbook of a spreadsheet",
}


def open_csv(path: Path, columns: Columns, default_split: str) -> Opened:
    """Raises InputError, also for a later row when it is read."""
    lines = _csv_lines(path)
    _, header = next(lines)  # a file without a line that is not blank was refused
    names = [name.strip() for name in header]
    found = find(path, names, columns)
    wanted = [None if name is None else names.index(name) for name in found[1:]]

    def records() -> Iterator[Record]:
        for where, cells in lines:
            _check_width(where, cells, names)
            values = [default_split if position is None else cells[position] for position in wanted]
            yield Record(where, *values)

    return Opened(found.kind, records())


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a row begins, as a quoted text can go over several lines, and its cells. Blank lines are none."""
    reader = csv.reader(io.StringIO(_utf8(path), newline=""), strict=True)
    while True:
        where = f"{path}: line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where} is not valid csv: {error}") from None
        if cells is None:
            return
        if cells:
            yield where, cells


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where it stands, cells by the header's names) of each row. Raises InputError."""
    lines = _csv_lines(path)
    _, header = next(lines)
    names = [name.strip() for name in header]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}; rename one")
    for where, cells in lines:
        _check_width(where, cells, names)
        yield where, dict(zip(names, cells, strict=True))


def _check_width(where: str, cells: list[str], names: list[str]) -> None:
    if len(cells) != len(names):
        raise InputError(
            f"{where}: {len(cells)} cells where the header has {len(names)}; "
            "a text with commas must stand in double quotes"
        )


def open_jsonl(path: Path, columns: Columns, default_split: str) -> Opened:
    """Raises InputError, also for a later row when it is read."""
    rows = json_rows(path, example(columns))
    first = next(rows)  # a file without a line that is not blank was refused
    found = find(path, list(first[1]), columns)

    def records() -> Iterator[Record]:
        for where, row in _and(first, rows):
            if (SPLIT_COLUMN in row) != (found.split is not None):
                raise InputError(f"{where}: either every line has {SPLIT_COLUMN!r} or none")
            yield Record(where, row.get(found.input), row.get(found.label), row.get(SPLIT_COLUMN, default_split))

    return Opened(found.kind, records())


def _and(
    first: tuple[str, dict[str, Any]], rows: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield first
    yield from rows


def json_rows(path: Path, like: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the object) of each line. like: a line as it should be, for errors. Raises InputError."""
    # A line end cannot stand inside of a text of JSON, only as an escape.
    lines = _utf8(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line, object_pairs_hook=once_each, parse_int=_whole_number)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and (line.strip() == "{" or line.lstrip().startswith("[")):
                said = f"{where}: an object or a list over several lines; write one object a line, {like}"
                raise InputError(said) from None
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where} is not valid JSON: {reason}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object; each line is one, such as {like}")
        yield where, row


def _whole_number(text: str) -> int | str:
    """A longer one is what it looks like: a text of digits."""
    return int(text) if len(text) <= _MOST_DIGITS else text


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
        kind = next((kind for start, kind in _OTHER_KINDS.items() if content.startswith(start)), None)
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}{f' {kind}:' if kind else ':'} line {line} is not UTF-8; {_advice(path)}") from None
    if not text.strip():
        raise InputError(f"{path} is empty")
    if "\0" in text:
        kind = next((kind for start, kind in _OTHER_KINDS.items() if content.startswith(start)), None)
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}{f' {kind}:' if kind else ':'} line {line} holds a NUL byte; {_advice(path)}")
    return text


def _advice(path: Path) -> str:
    return f"save the file as {path.suffix.lower()} in UTF-8"
