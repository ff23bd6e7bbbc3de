"""Labelled examples of somebody's own: texts from a .csv, .jsonl or .parquet file, or a folder of images by class.

Where a file has a column `split`, or a folder has one named `test`, only the test split is sent.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SPLIT = "split"
TABLES = (".csv", ".jsonl", ".parquet")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
MOST_BYTES = 1024**3

Examples = list[tuple[str | bytes, str]]


class BadData(Exception):
    """They cannot be read. The message is one line, and names the file."""


def read(path: Path, text: str, label: str) -> Examples:
    """(item, its right label), texts or encoded images; at least one. Raises BadData."""
    try:
        if path.is_dir():
            found = _images(path)
        elif not path.exists():
            raise BadData(f"there is no file or folder {path}")
        elif path.suffix.lower() not in TABLES:
            raise BadData(f"{path} is no table: its name must end in {', '.join(TABLES)}")
        elif path.stat().st_size > MOST_BYTES:
            raise BadData(f"{path} has more than a GiB: a sample will do")
        else:
            found = _texts(path, text, label)
    except (OSError, ValueError, csv.Error) as error:  # of pyarrow too; UnicodeDecodeError is a ValueError
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadData(f"{path} cannot be read: {lines[0][:200]}") from None
    if not found:
        raise BadData(f"{path} has no examples")
    return found


def _texts(path: Path, text: str, label: str) -> Examples:
    found: Examples = []
    tested: Examples = []
    for number, row in enumerate(_ROWS[path.suffix.lower()](path), start=1):
        if number == 1 and (missing := [name for name in (text, label) if name not in row]):
            there = ", ".join(str(name)[:40] for name in list(row)[:10])
            raise BadData(
                f"{path} has no column {missing[0]!r}, but {there}: name it with --text-column or --label-column"
            )
        values = row.get(text), row.get(label)
        if any(value is None or not str(value).strip() for value in values):
            raise BadData(f"{path}: row {number}: {text!r} or {label!r} is empty")
        pair = str(values[0]), str(values[1]).strip()
        found.append(pair)
        if str(row.get(SPLIT) or "").strip().lower() == "test":
            tested.append(pair)
    return tested or found


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return iter(reader)


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise BadData(f"{path}: line {number} is no JSON object")
            yield row


def _parquet(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow.parquet  # noqa: PLC0415  half a second, for those who have such a file

    rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_ROWS: dict[str, Any] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _images(folder: Path) -> Examples:
    root = folder / "test" if (folder / "test").is_dir() else folder
    found: Examples = []
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in IMAGES and path.is_file():
            found.append((path.read_bytes(), path.parent.name))
    if not found:
        raise BadData(f"{root} has no images by class: a folder for each label, with images in it")
    return found
