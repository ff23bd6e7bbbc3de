"""The directory of what is half done, OUTPUT.work: one run at a time in it, and nothing left of it at the end."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.replacing import LOCK, held
from models.training.stage import world


def remove_work(work: Path) -> None:
    """Remove checkpoints and weights of stages, nothing that is not ours; then the directory, if that empties it."""
    if world()[0] != 0:
        return
    for pattern in ("first-*", "second-*", "soft-*.npy", ".soft-*.partial", LOCK):
        for path in work.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """One run at a time in a work directory. Raises InputError where there is another."""
    if world()[0] != 0:  # the processes of one run share it
        yield
        return
    with held(work):
        yield


def key_of(document: Any) -> str:
    """What a directory is called by: twelve hex digits of all that shapes what lies in it."""
    content = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
