"""The rows of a .parquet file: texts or images, and the names of the classes where the file carries them."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.records import Columns, Kind, Opened, Record, find
from models.errors import InputError
from models.files import open_regular
from models.parquet import check_counts, read_parquet

T = TypeVar("T")
# Of the encoded images of a table, which are held in memory: a folder of images is read file by file.
MOST_IMAGE_BYTES = 2 * 1024**3
_ROWS = 65_536
LABELLED_BY = b"gatekeeper.labelled_by"
_IMAGE_ROWS = 16  # unpacked at once: a few kilobytes can hold the same photograph a million times


def open_parquet(path: Path, columns: Columns, default_split: str) -> Opened:
    """Raises InputError, also for what is found when a row is read."""
    return _refusing(path, lambda: _open(path, columns, default_split))


def labelled_by(path: Path) -> str | None:
    """The LLM whose labels they are, where `gatekeeper label` has made the table; None: it is not known."""
    try:
        open_regular(path, sys.maxsize).close()  # pyarrow would wait for a pipe's other end
        said = (pq.read_schema(path).metadata or {}).get(LABELLED_BY)
    except (OSError, pa.ArrowException):  # it is told when its rows are read
        return None
    return None if said is None else said.decode("utf-8", "replace")


def _open(path: Path, columns: Columns, default_split: str) -> Opened:
    open_regular(path, sys.maxsize).close()  # pyarrow would wait for a pipe's other end
    schema = pq.read_schema(path)
    found = find(path, schema.names, columns)
    wanted = [name for name in found[1:] if name is not None]
    kind = found.kind
    if _holds_images(schema.field(found.input)):
        kind = Kind.ENCODED
    elif kind is Kind.ENCODED:
        kind = Kind.FILE  # texts in the column `image` can only name files
    batches = (_image_batches if kind is Kind.ENCODED else _text_batches)(path, wanted)

    def records() -> Iterator[Record]:
        number = 0
        while (batch := _refusing(path, lambda: next(batches, None))) is not None:
            for values in zip(*batch, strict=True):
                number += 1
                yield Record(f"{path}: row {number}", *(values if found.split else (*values, default_split)))

    return Opened(kind, records(), class_names(schema, found.label))


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column of class numbers, as the library `datasets` writes them into a file; None: it has none."""
    if not pa.types.is_integer(schema.field(column).type):
        return None
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):  # what others wrote there
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _holds_images(column: Any) -> bool:
    """A struct of bytes and path, as the library `datasets` writes images; or their bytes alone, if called no text."""
    kind = column.type
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(position).name for position in range(kind.num_fields)}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and column.name != Columns().text


def _text_batches(path: Path, columns: list[str]) -> Iterator[list[list[Any]]]:
    for batch in read_parquet(path, lambda _: columns).to_batches(max_chunksize=_ROWS):
        yield [batch.column(name).to_pylist() for name in columns]


def _image_batches(path: Path, columns: list[str]) -> Iterator[list[list[Any]]]:
    size = 0
    with pq.ParquetFile(path) as file:
        check_counts(path, file.metadata, columns)
        for batch in file.iter_batches(batch_size=_IMAGE_ROWS, columns=columns):
            size += batch.column(columns[0]).nbytes
            if size > MOST_IMAGE_BYTES:
                raise InputError(
                    f"{path} holds more than {MOST_IMAGE_BYTES // 1024**3} GiB of images, which are held in memory: "
                    "save them as files, one folder a class"
                )
            yield [batch.column(name).to_pylist() for name in columns]


def _refusing(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or not a parquet file: {reason}") from error
