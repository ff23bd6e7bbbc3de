"""Parquet files of others: a megabyte of one can hold a value two hundred million times, so its size says nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import InputError
from models.files import open_regular

MOST_VALUES = 10_000_000  # in a column
MOST_TEXT_BYTES = 2 * 1024**3  # in a column, unpacked


def read_parquet(path: Path, choose: Callable[[list[str]], list[str]]) -> Any:
    """The chosen columns of a file as an Arrow table, texts as dictionaries. choose: from the names that are there.

    Raises InputError for more than MOST_VALUES or MOST_TEXT_BYTES before any of it is unpacked, OSError or
    pa.ArrowException for a file that cannot be read.
    """
    open_regular(path, sys.maxsize).close()  # pyarrow would wait for a pipe's other end
    with pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    columns = choose(schema.names)
    check_counts(path, metadata, columns)
    texts = [name for name in columns if _is_text(schema.field(name).type)]
    with pq.ParquetFile(path, read_dictionary=texts, metadata=metadata) as file:
        table = file.read(columns=columns)
    for name in texts:
        size = sum(_text_bytes(chunk) for chunk in table.column(name).chunks)
        if size > MOST_TEXT_BYTES:
            raise InputError(
                f"{path}: the column {name!r} holds {size / 1024**3:,.0f} GiB of text unpacked; "
                f"the most is {MOST_TEXT_BYTES // 1024**3} GiB: divide the file"
            )
    return table


def check_counts(path: Path, metadata: Any, columns: list[str]) -> None:
    values: dict[str, int] = {}  # a list in one row can be as long as the whole file
    for group in range(metadata.num_row_groups):
        for position in range(metadata.num_columns):
            column = metadata.row_group(group).column(position)
            if column.path_in_schema.partition(".")[0] in columns:
                values[column.path_in_schema] = values.get(column.path_in_schema, 0) + column.num_values
    count = max(metadata.num_rows, *values.values(), 0)
    if count > MOST_VALUES:
        raise InputError(f"{path} has {count:,} rows or values in a column; the most is {MOST_VALUES:,}: divide it")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _text_bytes(chunk: Any) -> int:
    if not pa.types.is_dictionary(chunk.type):
        return int(chunk.nbytes)
    counts = pc.value_counts(chunk.indices)
    lengths = pc.binary_length(chunk.dictionary).take(counts.field("values"))
    return pc.sum(pc.multiply(lengths.cast(pa.int64()), counts.field("counts"))).as_py() or 0
