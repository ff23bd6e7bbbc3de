"""Files that somebody else wrote, read without trust: no more than so many bytes, and never waiting for a writer."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MIB = 1024 * 1024


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also for a folder, a pipe or a device, and for a larger file."""
    with open_regular(path) as stream:
        return bounded(stream, most_bytes)


def open_regular(path: Path) -> BinaryIO:
    """A file that is there and regular, to be read. Raises OSError."""
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")
    return stream


def _without_waiting(path: str, flags: int) -> int:
    """The opening of a pipe would otherwise wait for its other end, for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def bounded(stream: BinaryIO, most_bytes: int) -> bytes:
    """What is left of a stream. Raises OSError where that is more than most_bytes."""
    content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes / MIB:g} MiB")
    return content
