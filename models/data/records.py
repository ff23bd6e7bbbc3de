"""A row of a table: what it says, where it stands, and how its values become an input and a label."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import InputError

SPLIT_COLUMN = "split"
IMAGE_COLUMN = "image"  # the hub's name of a column that holds encoded images
FILE_COLUMN = "file_name"  # the hub's name of a column that names image files, relative to the table
UNLABELLED = -1  # the hub's mark for test splits whose labels are kept secret
MOST_LABEL_CHARS = 10_000  # the most that the edge takes from a large model
_LIKE_FILE_COLUMN = {"file", "filename", "file name", "image", "image_path", "img", "path"}


class Kind(Enum):
    """What the inputs of a table are."""

    TEXT = "text"
    FILE = "the name of an image's file"
    ENCODED = "an image's bytes"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read."""

    text: str = "text"
    label: str = "label"


class Record(NamedTuple):
    """A row as it stands in the file. `where` is its file and line."""

    where: str
    input: Any
    label: Any
    split: Any


@dataclass(frozen=True)
class Opened:
    """A table whose columns were found. names: of the classes, where the file carries them; labels are numbers then."""

    kind: Kind
    records: Iterator[Record]
    names: tuple[str, ...] | None = None


class Found(NamedTuple):
    """Which columns are read, by name; split None: there is no such column."""

    kind: Kind
    input: str
    label: str
    split: str | None


def find(path: Path, names: Sequence[str], columns: Columns) -> Found:
    """The columns that are read, among the names that are there. Raises InputError."""
    kind, wanted = Kind.TEXT, columns.text
    if columns.text == FILE_COLUMN or (columns.text not in names and FILE_COLUMN in names):
        kind, wanted = Kind.FILE, FILE_COLUMN
    elif columns.text not in names and IMAGE_COLUMN in names and path.suffix.lower() == ".parquet":
        kind, wanted = Kind.ENCODED, IMAGE_COLUMN
    if wanted == columns.label:
        raise InputError(f"the {kind.value} and the label cannot both be the column {wanted!r}")
    for name, option in ((wanted, "--text-column"), (columns.label, "--label-column")):
        if name not in names:
            raise InputError(
                f"{path} has no column {name!r}; {_there_is(names, option, path.suffix.lower() == '.csv')}"
            )
    for name in (wanted, columns.label, SPLIT_COLUMN):
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}; rename one")
    return Found(kind, wanted, columns.label, SPLIT_COLUMN if SPLIT_COLUMN in names else None)


def _there_is(names: Sequence[str], option: str, is_csv: bool) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:20]) + (f" and {len(names) - 20} more" * (len(names) > 20))
    separator = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    if separator:
        return f"there is {shown}; its columns are separated by {separator!r}, which must be commas"
    if option == "--text-column" and (like := [name for name in names if name.lower() in _LIKE_FILE_COLUMN]):
        return f"there is {shown}; if {like[0]!r} names image files, call it {FILE_COLUMN!r}"
    if set(names) & {"prompt", "messages", "question"}:
        return f"there is {shown}; prompts need a column 'answer' beside them"
    first = ", and the first line holds the names" if is_csv else ""
    return f"there is {shown}; {option} names another{first}"


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


def label_of(value: Any, column: str, where: str, names: Sequence[str] | None = None) -> str:
    """A label as text, without the white space around it: "spam " is no label of its own. names: of the numbers."""
    if isinstance(value, list):
        raise InputError(f"{where}: the column {column!r} holds a list; an item has one label, not several")
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            unlabelled = f"; {UNLABELLED} stands for no label: take the row out" if value == UNLABELLED else ""
            raise InputError(f"{where} has the label {value} of 0 to {len(names) - 1}{unlabelled}")
        value = names[value]
    label = cell(value, column, where).strip()
    if len(label) > MOST_LABEL_CHARS:
        raise InputError(
            f"{where}: the column {column!r} holds {len(label):,} characters, and a label has {MOST_LABEL_CHARS:,} at "
            "most; --label-column names another column"
        )
    return label


def example(columns: Columns) -> str:
    return json.dumps({columns.text: "good morning", columns.label: "greeting"})
