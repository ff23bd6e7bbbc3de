"""What the large model answers to the items of a split, from one of two sources: its bundle, or a table of its answers.

    gatekeeper calibrate BUNDLE --data mails.csv --large runs/large        asked item by item
    gatekeeper calibrate BUNDLE --data mails.csv --large answers.csv       answers of any model, asked elsewhere

A table (.csv, .jsonl or .parquet) says which item a row is about, by the first of these columns that it has:
    text         the text, character by character as in the data (or the column that --text-column names); for texts
    file         the image's path, or as much of its end as tells it from the others; for images
    split, row   the item's place in select, calibrate or test, counted from 1; for anything
and what the large model made of it, by the first of these:
    large_correct   1 or 0, true or false, or a grade between 0 and 1
    large_label     its answer, one of the labels
    label           the same, in a table that has nothing but answers
Every item needs an answer; rows about other items are left aside; equal rows are one.
"""

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.bundle import Bundle, file_sha256, load_bundle
from models.data.datasets import LabelledDataset, Split
from models.data.records import Columns
from models.data.tables import TABLE_SUFFIXES, is_table, read_table
from models.errors import InputError
from models.files import MIB, open_regular
from models.labels import check_same_labels, places
from models.printing import shown

Floats = NDArray[np.float64]
VALUES = ("large_correct", "large_label", "label")
SPLIT_OF = {"select": "validation"}  # under which name a table's reader keeps a split
MOST_HEAD_BYTES = MIB  # of a table's first line


class LargeAnswers(Protocol):
    """Where the large model's answers come from."""

    @property
    def name(self) -> str:
        """What reports and errors call it."""

    @property
    def digest(self) -> str:
        """What the manifest keeps of it: a gate digest, or `table:` and the file's sha256."""

    def check(self, data: LabelledDataset, splits: Sequence[str]) -> None:
        """Raise InputError where it cannot answer these splits, before anything slow begins."""

    def correct(self, data: LabelledDataset, split: str) -> Floats:
        """The correctness of its answer to each item of the split, in [0, 1], (N,). Raises InputError."""


def open_large(path: Path, columns: Columns | None = None) -> LargeAnswers:
    """The source at this path. columns: how --data names its text and label. Raises InputError."""
    if path.is_dir():
        return LargeBundle(load_bundle(path))
    if str(path) == "oracle":
        raise InputError("--large oracle is for models that write text: give the large model's bundle or its answers")
    if not path.exists():
        raise InputError(f"--large {path} does not exist: it is a bundle's directory, or a table of answers")
    if not is_table(path):
        raise InputError(f"--large {path} is neither a bundle's directory nor a table ({', '.join(TABLE_SUFFIXES)})")
    return LargeTable(path, columns or Columns())


class LargeBundle:
    """The large model itself."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.name, self.digest = bundle.manifest.name, bundle.gate_digest

    def check(self, data: LabelledDataset, splits: Sequence[str]) -> None:  # noqa: ARG002  it can answer any
        manifest = self.bundle.manifest
        if manifest.task != data.task:
            raise InputError(f"{self.name} does {manifest.task}, and {data.name} is {data.task}")
        check_same_labels(f"the large model {self.name}", manifest.labels, data.name, data.labels)

    def correct(self, data: LabelledDataset, split: str) -> Floats:
        from models.inference.answers import answers  # noqa: PLC0415  torch: what reads a table does without it
        from models.inference.classifier import load_classifier  # noqa: PLC0415

        self.check(data, (split,))
        part: Split = getattr(data, split)
        predicted = answers(load_classifier(self.bundle), f"the large model {self.name}", part.inputs, split).label
        wanted = np.array(places(data.labels, self.bundle.manifest.labels))[list(part.labels)]
        right: Floats = (predicted == wanted).astype(np.float64)
        return right


@dataclass(frozen=True)
class _Table:
    """The answers by key, as they stand in the file; of key `row` by (split, row)."""

    key: str
    value: str
    answers: dict[str | tuple[str, str], str]
    rows: int


class LargeTable:
    """A table of its answers."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self._columns = path, columns
        self.name = f"the answers in {path.name}"
        self.digest = f"table:{_sha256(path)}"
        self._table: _Table | None = None

    def check(self, data: LabelledDataset, splits: Sequence[str]) -> None:
        for split in splits:
            self.correct(data, split)

    def correct(self, data: LabelledDataset, split: str) -> Floats:
        part: Split = getattr(data, split)
        table = self._read(data)
        found = [table.answers.get(key) for key in self._keys(table, data, split)]
        missing = [position for position, answer in enumerate(found) if answer is None]
        if missing:
            raise InputError(
                f"{self.path} has no answer for {len(missing):,} of the {len(found):,} {split} items; the first is "
                f"item {missing[0] + 1} ({shown(part.inputs, missing[0])}); items are matched by the column "
                f"{table.key!r}{self._almost(table, part, missing)}"
            )
        given = [answer for answer in found if answer is not None]
        if table.value == "large_correct":
            return grades(self.path, given)
        self._check_labels(given, data.labels)
        return np.array([float(answer == data.labels[label]) for answer, label in zip(given, part.labels, strict=True)])

    def note(self, data: LabelledDataset, splits: Sequence[str]) -> str:
        """One sentence for who asked: what was read, how it was matched, and how much of it is right."""
        table, parts = self._read(data), [(split, self.correct(data, split)) for split in splits]
        used = {key for split in splits for key in self._keys(table, data, split)}
        right = ", ".join(f"{correct.mean():.4f} right on {split}" for split, correct in parts)
        said = (
            f"large model: column {table.value!r} of {self.path.name}, matched by {table.key!r}; "
            f"{len(used):,} of {table.rows:,} rows used, {right}"
        )
        if table.value == "label" and all((correct == 1.0).all() for _, correct in parts):
            said += "; all of them: if 'label' is the truth, name the large model's answer 'large_label'"
        return said

    def _read(self, data: LabelledDataset) -> _Table:
        if self._table is None:
            self._table = self._read_anew(data)
        return self._table

    def _read_anew(self, data: LabelledDataset) -> _Table:
        names = column_names(self.path)
        values = [*VALUES, *([self._columns.label] if self._columns.label not in VALUES else [])]
        value = next((name for name in values if name in names), "label")
        keys = [self._columns.text, "text"] if data.task == "text-classification" else ["file"]
        key = next((name for name in keys if name in names), "row" if {"row", "split"} <= set(names) else keys[0])
        found: dict[str | tuple[str, str], str] = {}
        contradicting: set[str | tuple[str, str]] = set()
        rows = 0
        # A column `split` means something only beside `row`: then the reader keeps the splits apart.
        for split, part in read_table(self.path, Columns(key, value)).given.items():
            rows += len(part)
            for name, answer in zip(part.keys, part.labels, strict=True):
                place: str | tuple[str, str] = (split, name.strip()) if key == "row" else name
                place = _plain_path(name) if key == "file" else place
                if found.setdefault(place, answer) != answer:
                    contradicting.add(place)
        if contradicting:
            first = min(contradicting, key=str)
            raise InputError(
                f"{self.path}: {len(contradicting):,} items have rows that contradict each other, such as "
                f"{first if isinstance(first, str) else ' '.join(first)!r}; keep one answer each"
            )
        return _Table(key, value, found, rows)

    def _keys(self, table: _Table, data: LabelledDataset, split: str) -> list[str | tuple[str, str]]:
        part: Split = getattr(data, split)
        if table.key == "row":
            return [(SPLIT_OF.get(split, split), str(number)) for number in range(1, len(part) + 1)]
        if table.key != "file":
            return [str(text) for text in part.inputs]
        if not hasattr(part.inputs, "files"):
            raise InputError(f"the images of {data.name} have no file names: match {self.path} by 'split' and 'row'")
        keys = [_suffix(file.where, table.answers) for file in part.inputs.files]
        twice = [key for key, count in Counter(key for key in keys if key in table.answers).items() if count > 1]
        if twice:
            raise InputError(
                f"{self.path}: {len(twice):,} names stand for several {split} images, such as {twice[0]!r}; "
                "write the folder too"
            )
        return list(keys)

    def _almost(self, table: _Table, part: Split, missing: Sequence[int]) -> str:
        if table.key in {"row", "file"}:
            return ""
        loose = {" ".join(str(key).split()).casefold() for key in table.answers}
        near = sum(" ".join(str(part.inputs[position]).split()).casefold() in loose for position in missing)
        return f"; {near:,} of them would match but for white space or capitals" if near else ""

    def _check_labels(self, given: Sequence[str], labels: Sequence[str]) -> None:
        foreign = Counter(answer for answer in given if answer not in set(labels))
        if not foreign:
            return
        (first, _), *_ = foreign.most_common(1)
        like = difflib.get_close_matches(first, labels, 1)
        raise InputError(
            f"{self.path}: {sum(foreign.values()):,} of {len(given):,} answers are no label of the data "
            f"({len(foreign):,} kinds, such as {first!r}{f'; did you mean {like[0]!r}?' if like else ''}): write the "
            "label, or give 'large_correct' with 0 for an answer that is none"
        )


def _sha256(path: Path) -> str:
    try:
        open_regular(path, 2**62).close()  # a pipe would be waited for
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"--large {path} cannot be read: {error.strerror}") from error


def grades(path: Path, given: Sequence[str]) -> Floats:
    """The column large_correct as numbers, (N,). Raises InputError."""
    try:
        return np.array([_grade(answer) for answer in given])
    except ValueError as error:
        raise InputError(f"{path}: large_correct holds {error.args[0]!r}, which is not 0, 1 or between") from None


def _grade(answer: str) -> float:
    """Raises ValueError with the answer."""
    named = {"true": 1.0, "false": 0.0}.get(answer.strip().lower())
    try:
        grade = float(answer) if named is None else named
    except ValueError:
        raise ValueError(answer) from None
    if not 0.0 <= grade <= 1.0:
        raise ValueError(answer)
    return grade


def _plain_path(name: str) -> str:
    return str(PurePosixPath(name.strip().replace("\\", "/")))


def _suffix(where: str, known: dict[str | tuple[str, str], str]) -> str:
    """The longest end of an image's path that the table knows; the whole path where it knows none."""
    parts = PurePosixPath(where.replace("\\", "/")).parts
    ends = (str(PurePosixPath(*parts[start:])) for start in range(len(parts)))
    return next((end for end in ends if end in known), where)


def column_names(path: Path) -> Sequence[str]:
    """The columns of a table; none where it cannot be read, which its reader will say."""
    try:
        return list(_names(path))
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return ()


def _names(path: Path) -> Iterator[str]:
    if path.suffix.lower() == ".parquet":
        yield from pq.read_schema(path).names
        return
    with open_regular(path, 2**62) as stream:
        head = stream.read(MOST_HEAD_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
    if path.suffix.lower() == ".csv":
        yield from (name.strip() for name in next(csv.reader(io.StringIO(head, newline="")), []))
    else:
        first = json.loads(head.split("\n", 1)[0])
        yield from first if isinstance(first, dict) else ()
