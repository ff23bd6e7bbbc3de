"""Test items of public data sets with their right labels, read from the folder GATEKEEPER_DATA_DIR names."""

import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

VARIABLE = "GATEKEEPER_DATA_DIR"
IDX_HEADER_BYTES = {"images": 16, "labels": 8}


class DataMissing(Exception):
    """The data are not where they should be. The message says where that is."""


def path_of(name: str) -> Path | None:
    """A file or folder in the data folder; None where it is not there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder) / name if folder else None
    return path if path is not None and path.exists() else None


def clinc150() -> tuple[dict[str, str], tuple[str, ...]]:
    """(right label of each in-scope test sentence, the out-of-scope test queries). Raises DataMissing."""
    path = path_of("clinc150/data_full.json")
    if path is None:
        raise DataMissing(f"clinc150 needs {VARIABLE}, a folder that holds clinc150/data_full.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(data["test"]), tuple(text for text, _ in data["oos_test"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataMissing(f"{path} cannot be read: {error!r}") from None


class TestImages(Sequence[bytes]):
    """The test images of Fashion-MNIST as PNG, each encoded when it is first asked for."""

    def __init__(self, pixels: bytes, side: int) -> None:
        self._pixels, self._side = pixels, side
        self._encoded: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._pixels) // self._side**2

    @overload
    def __getitem__(self, position: int) -> bytes: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[bytes]: ...
    def __getitem__(self, position: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        if position not in self._encoded:
            self._encoded[position] = self._encode(position)
        return self._encoded[position]

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))

    def _encode(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(position)
        size = self._side**2
        stream = io.BytesIO()
        pixels = self._pixels[position * size : (position + 1) * size]
        Image.frombytes("L", (self._side, self._side), pixels).save(stream, "PNG")
        return stream.getvalue()


def fashion_mnist(classes: Sequence[str]) -> tuple[TestImages, tuple[str, ...]]:
    """(the test images, the class of each). Raises DataMissing."""
    folder = path_of("fashion-mnist")
    if folder is None:
        raise DataMissing(f"fashion-mnist needs {VARIABLE}, a folder that holds fashion-mnist/t10k-*-ubyte.gz")
    try:
        pixels = _idx(folder / "t10k-images-idx3-ubyte.gz", "images")
        labels = _idx(folder / "t10k-labels-idx1-ubyte.gz", "labels")
        images = TestImages(pixels, 28)
        names = tuple(classes[label] for label in labels)
    except (OSError, EOFError, LookupError) as error:
        raise DataMissing(f"{folder} cannot be read: {error!r}") from None
    if len(images) != len(names):
        raise DataMissing(f"{folder}: {len(images):,} test images and {len(names):,} labels")
    return images, names


def _idx(path: Path, what: str) -> bytes:
    """The payload of an idx file of bytes."""
    return gzip.decompress(path.read_bytes())[IDX_HEADER_BYTES[what] :]
