"""What is written takes its place whole or not at all, also when the process is killed or the power fails.

A kill leaves what was there before or what is there now; beside it may lie a scratch of ours, whose name begins with a
dot and can be removed.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.errors import InputError

LOCK = "lock"
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a scratch file beside `path`, which then takes its place. Raises OSError, and what `write` does."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(scratch)
        to_disk(scratch)
        scratch.replace(path)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """A text as UTF-8, whole or not at all. Raises OSError."""
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_whole_bytes(path: Path, content: bytes) -> None:
    """These bytes, whole or not at all. Raises OSError."""
    write_whole(path, lambda scratch: scratch.write_bytes(content))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written inside is told as one line that names `path`. Raises InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def held(work: Path) -> Iterator[None]:
    """One run at a time in a work directory, which is made. Raises InputError where there is another."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / LOCK).open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"another run is at work in {work}: wait for it, or end it") from None
            try:
                yield
            finally:
                tidy(work)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{work} cannot be written: {error.strerror}") from error


def tidy(work: Path) -> None:
    """Remove a work directory with nothing in it but the lock."""
    if all(path.name == LOCK for path in work.glob("*")):
        (work / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            work.rmdir()


def exchange(new: Path, directory: Path) -> None:
    """Put the directory `new` where `directory` is; what was there lies at `new` afterwards, if there was anything.

    One step where the system has one (Linux); elsewhere two renames, between which a kill leaves it at `new`'s parent.
    """
    if not directory.exists():
        new.replace(directory)
    elif not _exchanged(new, directory):
        aside = new.with_name("old")
        directory.replace(aside)
        try:
            new.replace(directory)
        except BaseException:
            aside.replace(directory)
            raise
        aside.replace(new)
    _directory_to_disk(directory.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system has exchanged two paths in one step. Raises OSError where it knows how and may not."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:  # this kernel or this file system does not
        return False
    raise OSError(code, os.strerror(code), str(other))


def tree_to_disk(directory: Path) -> None:
    """Every file of a directory, and its list of names: a rename may otherwise reach the disk before them."""
    for path in directory.iterdir():
        if path.is_file() and not path.is_symlink():
            to_disk(path)
    _directory_to_disk(directory)


def to_disk(path: Path) -> None:
    """A file's content. Raises OSError, for some file systems tell a full disk only here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directory_to_disk(directory: Path) -> None:
    with suppress(OSError):  # a file system that cannot: then it is as safe as it gets
        to_disk(directory)


def linked(path: Path, place: Path) -> None:
    """The same file or directory at a second place, without a copy where the file system allows. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, place, symlinks=True, copy_function=_link)
    else:
        _link(path, place)


def _link(source: os.PathLike[str] | str, place: os.PathLike[str] | str) -> None:
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, place, follow_symlinks=False)
