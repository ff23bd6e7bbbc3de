"""Labelled texts or images from tables: .csv, .jsonl or .parquet, one file, or one or several for each split."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.data.image_sets import rows_of_files
from models.data.images import ImageFile, image_file
from models.data.parquet_files import open_parquet
from models.data.records import FILE_COLUMN, SPLIT_COLUMN, UNLABELLED, Columns, Kind, Opened, Record, cell, label_of
from models.data.splits import SPLIT_NAMES, Rows, Task
from models.data.text_files import csv_rows, json_rows, open_csv, open_jsonl
from models.errors import InputError
from models.parquet import read_parquet

_OPENERS = {
    ".csv": open_csv,
    ".jsonl": open_jsonl,
    ".ndjson": open_jsonl,
    ".json-lines": open_jsonl,
    ".parquet": open_parquet,
}
TABLE_SUFFIXES = tuple(_OPENERS)


@dataclass(frozen=True)
class Table:
    """What tables hold: rows by split; the order of the labels, where the files say it; what their user should know."""

    task: Task
    given: dict[str, Rows]
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Split:
    """The rows of a split while they are read. unlabelled: the first of its rows without a label."""

    inputs: list[Any] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unlabelled: Record | None = None


def is_table(path: Path) -> bool:
    return path.suffix.lower() in _OPENERS


def kind_of(path: Path, columns: Columns) -> Kind:
    """What a table's inputs are, from its header. Raises InputError as `read_tables` does."""
    return _opened(path, columns, "train").kind


def read_table(path: Path, columns: Columns) -> Table:
    """The rows of a file by split: all train where it has no column `split`. Raises InputError."""
    splits: dict[str, _Split] = defaultdict(_Split)
    opened = _read_into(splits, path, columns, "train")
    return _finished(str(path), columns, splits, [opened])


def read_tables(where: str, files: Mapping[str, Sequence[Path]], columns: Columns) -> Table:
    """The rows of the files of each split, in their order. A column `split` may not contradict a file's name.

    where: what an error calls all of them. Raises InputError.
    """
    splits: dict[str, _Split] = defaultdict(_Split)
    opened = []
    for name, paths in files.items():
        for path in paths:
            own: dict[str, _Split] = defaultdict(_Split, {name: splits[name]})
            opened.append(_read_into(own, path, columns, name))
            if strangers := own.keys() - {name}:
                raise InputError(f"{path}: its column {SPLIT_COLUMN!r} says {min(strangers)}, its name {name}")
    first = opened[0]
    for other, path in zip(opened, (path for paths in files.values() for path in paths), strict=True):
        if other.names != first.names or other.kind != first.kind:
            what = "the names of the classes" if other.kind == first.kind else "what its inputs are"
            raise InputError(f"{path} does not agree with the files before it about {what}")
    return _finished(where, columns, splits, opened)


def table_rows(path: Path, like: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where a row stands, its cells by name) of a table whose columns the caller knows. like: a line of its JSON.

    Raises InputError.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from csv_rows(path)
    elif suffix == ".parquet":
        try:
            table = read_parquet(path, lambda names: names)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} is damaged, or not a parquet file: {str(error).splitlines()[0]}") from error
        number = 0
        for batch in table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    else:
        yield from json_rows(path, like)


def _opened(path: Path, columns: Columns, default_split: str) -> Opened:
    if columns.text == columns.label:
        raise InputError(f"the text and the label cannot both be the column {columns.text!r}")
    return _OPENERS[path.suffix.lower()](path, columns, default_split)


def _read_into(splits: dict[str, _Split], path: Path, columns: Columns, default_split: str) -> Opened:
    opened = _opened(path, columns, default_split)
    rows = 0
    for record in opened.records:
        rows += 1
        split = splits[_split_of(record)]
        split.inputs.append(_input(opened.kind, record, columns, path))
        if record.label is None or (opened.names is not None and record.label == UNLABELLED):
            split.unlabelled = split.unlabelled or record
        else:
            split.labels.append(label_of(record.label, columns.label, record.where, opened.names))
    if not rows:
        raise InputError(f"{path} has no rows")
    return opened


def _input(kind: Kind, record: Record, columns: Columns, path: Path) -> Any:
    if kind is Kind.TEXT:
        return cell(record.input, columns.text, record.where)
    if kind is Kind.FILE:
        file = path.parent / cell(record.input, FILE_COLUMN, record.where)
        return ImageFile(f"{record.where}: {file}", image_file(file).open)
    content = record.input if isinstance(record.input, bytes | None) else record.input.get("bytes")
    if content is None:
        name = record.input.get("path") if isinstance(record.input, dict) else None
        if not name:
            raise InputError(f"{record.where}: there is no image")
        return ImageFile(f"{record.where}: {path.parent / name}", image_file(path.parent / name).open)
    return ImageFile(record.where, partial(BytesIO, content))


def _finished(where: str, columns: Columns, splits: Mapping[str, _Split], opened: Iterable[Opened]) -> Table:
    """Splits without any label are left out, as on the hub; elsewhere a row without one is refused."""
    notes = []
    labelled: dict[str, _Split] = {}
    for name, split in splits.items():
        if split.unlabelled is not None:
            if name == "train" or split.labels:
                label_of(split.unlabelled.label, columns.label, split.unlabelled.where, next(iter(opened)).names)
            notes.append(f"{where}: the split {name} is not read, it has no labels")
        else:
            labelled[name] = split
    first = next(iter(opened))
    if first.kind is Kind.TEXT:
        texts = {name: tuple(split.inputs) for name, split in labelled.items()}
        given = {name: Rows(texts[name], split.labels, texts[name]) for name, split in labelled.items()}
        task: Task = "text-classification"
    else:
        task = "image-classification"
        pairs = {name: list(zip(split.inputs, split.labels, strict=True)) for name, split in labelled.items()}
        given = rows_of_files(pairs)
    labels = None if first.names is None else tuple(dict.fromkeys(name.strip() for name in first.names))
    return Table(task, given, labels, tuple(notes))


def _split_of(record: Record) -> str:
    name = SPLIT_NAMES.get(str(record.split).strip().lower())
    if name is None:
        raise InputError(
            f"{record.where}: the column {SPLIT_COLUMN!r} is {record.split!r}; it can be {', '.join(SPLIT_NAMES)}"
        )
    return name
