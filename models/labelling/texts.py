"""The texts that an LLM is to label, and the labels that it may give."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.data.records import cell
from models.data.tables import TABLE_SUFFIXES, is_table, table_rows
from models.errors import InputError
from models.files import MIB, read_bounded


class Texts(NamedTuple):
    """Each text once, in the order of the file. human: the labels that people gave, where the file has them."""

    texts: Sequence[str]
    human: Sequence[str] | None


def read_texts(path: Path, text_column: str, label_column: str | None) -> Texts:
    """A .csv, .jsonl or .parquet file. label_column: of human labels; None: there are none. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file() or not is_table(path):
        raise InputError(f"{path} is no {', '.join(TABLE_SUFFIXES)} file with texts")
    found: dict[str, str] = {}
    for where, row in table_rows(path, '{"text": "..."}'):
        if text_column not in row:
            raise InputError(f"{where} has no column {text_column!r}; there is {', '.join(row)}: give --text-column")
        if label_column is not None and label_column not in row:
            raise InputError(f"{where} has no column {label_column!r}; there is {', '.join(row)}")
        human = "" if label_column is None else cell(row[label_column], label_column, where)
        found.setdefault(cell(row[text_column], text_column, where), human)
    if not found:
        raise InputError(f"{path} has no rows")
    return Texts(tuple(found), None if label_column is None else tuple(found.values()))


def read_labels(path: Path) -> tuple[str, ...]:
    """A text file of labels, a line each, or the labels of a bundle. Raises InputError."""
    if path.is_dir():
        from models.bundle import load_bundle  # noqa: PLC0415  only where a bundle is named

        labels = load_bundle(path).manifest.labels
        if not labels:
            raise InputError(f"{path} writes text and has no labels")
        return labels
    try:
        lines = read_bounded(path, MIB).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    labels = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(labels) < 2:
        raise InputError(f"{path} has {len(labels)} labels: a line each, two or more")
    return labels
