"""Arrays that took long to make, kept in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.replacing import write_whole, writing

Arrays = dict[str, NDArray[Any]]


def cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Arrays by name from a file that is there whole or not at all."""
    if not path.is_file():
        arrays = make()

        def write(scratch: Path) -> None:
            with scratch.open("wb") as stream:  # numpy adds its own suffix to a name that lacks it
                np.savez(stream, allow_pickle=False, **arrays)

        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
