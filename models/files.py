"""Files that somebody else wrote, read without trust: no more than so many bytes, and never waiting for a writer."""

import errno
import json
import os
import stat
from io import BufferedIOBase
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO

MIB = 1024 * 1024


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also for a folder, a pipe or a device, and for a larger file."""
    with open_regular(path, most_bytes) as stream:
        return bounded(stream, most_bytes)


def open_regular(path: Path, most_bytes: int) -> BinaryIO:
    """A file that is there, regular and no larger, to be read. Raises OSError."""
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= most_bytes:
        return stream
    stream.close()
    if stat.S_ISREG(status.st_mode):
        raise _too_large(most_bytes)
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")


def _without_waiting(path: str, flags: int) -> int:
    """The opening of a pipe would otherwise wait for its other end, for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def bounded(stream: IO[bytes] | BufferedIOBase, most_bytes: int) -> bytes:
    """What is left of a stream. Raises OSError where that is more than most_bytes."""
    content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise _too_large(most_bytes)
    return content


def _too_large(most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most_bytes / MIB:g} MiB")


def file_name(path: PurePath) -> str:
    """The last part of a path as text, whatever the locale took it for: UTF-8, with escapes for what is none."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def read_json(path: Path, most_bytes: int) -> Any:
    """What a JSON file says; a key stands once in an object. Raises OSError, and ValueError for what is no JSON."""
    content = read_bounded(path, most_bytes)
    try:
        return json.loads(content, object_pairs_hook=once_each)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON as a dictionary. Raises ValueError where a key stands twice, and one value would be lost."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands in it twice")
    return row
