"""Datasets of a few dozen sentences or images, written for these tests; the same bytes at every call."""

import csv
import gzip
import io
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

SUBJECTS = {
    "balance": ["balance", "money left", "funds", "savings"],
    "timer": ["timer", "countdown", "stopwatch", "alarm"],
    "weather": ["weather", "rain", "forecast", "sunshine"],
}
FRAMES = [
    "tell me about the {}",
    "what is with my {}",
    "i want to know the {} please",
    "{} now",
    "could you check the {}",
    "how is the {} today",
    "show {}",
    "any news on the {}",
]


def write_tiny_clinc150(directory: Path) -> Path:
    """Returns the data directory that holds clinc150/data_full.json: 3 labels, 96 + 24 + 24 texts."""
    rows = tiny_rows()
    content = {
        "train": rows,
        "val": [[f"so {text}", label] for text, label in rows[::4]],
        "test": [[f"well {text}", label] for text, label in rows[1::4]],
        "oos_train": [],
        "oos_val": [],
        "oos_test": [["do fish dream", "oos"], ["paint it black", "oos"]],
    }
    (directory / "clinc150").mkdir(parents=True)
    (directory / "clinc150" / "data_full.json").write_text(json.dumps(content))
    return directory


def tiny_rows() -> list[tuple[str, str]]:
    """96 (text, label) pairs, 32 of each of 3 labels, label after label."""
    return [(frame.format(noun), label) for label, nouns in SUBJECTS.items() for noun in nouns for frame in FRAMES]


def write_csv(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ("text", "label")) -> Path:
    """A csv file of any rows. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_tiny_csv(path: Path) -> Path:
    """A csv file with text and label, and no splits: `tiny_rows`. Returns its path."""
    return write_csv(path, tiny_rows())


def tiny_images(label: int, count: int, size: int = 28, seed: int = 0) -> NDArray[np.uint8]:
    """(count, size, size): a bar, level for labels 0 to 4 and upright for 5 to 9, at one of five places, with noise.

    Every sixth bar is so faint that it is easily taken for another.
    """
    generator = np.random.default_rng([seed, label])
    images = generator.integers(0, 60, (count, size, size))
    for number, image in enumerate(images):
        start = size // 12 + (label % 5) * size // 6 + generator.integers(0, 2)
        bar = image[start : start + size // 9] if label < 5 else image[:, start : start + size // 9]
        bar += 12 if number % 6 == 5 else generator.integers(120, 190)
    return images.astype(np.uint8)


def write_tiny_images(directory: Path, splits: bool = True) -> Path:
    """RGB images of 28 x 28 as PNG: 3 classes, 30 + 8 each in train/ and test/, or 38 each without splits.

    Returns the directory.
    """
    tints = np.array([[1.0, 0.7, 0.4], [0.4, 1.0, 0.7], [0.7, 0.4, 1.0]])
    for position, name in enumerate(("high", "low", "upright")):
        images = tiny_images((0, 4, 7)[position], 38)
        for number, image in enumerate(images):
            folder = directory / ("train" if number < 30 else "test") / name if splits else directory / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (image[..., None] * tints[number % 3]).astype(np.uint8)  # the tint says nothing of the class
            PIL.Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return directory


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def write_idx(path: Path, values: NDArray[np.uint8]) -> Path:
    """A gzipped idx file of bytes. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))
    return path


def write_tiny_fashion_mnist(directory: Path) -> Path:
    """Returns the data directory that holds fashion-mnist/*.gz: 10 classes, 30 + 8 grey images of 28 x 28 each."""
    for prefix, count, seed in (("train", 30, 0), ("t10k", 8, 1)):
        images = np.stack([tiny_images(label, count, seed=seed) for label in range(10)], axis=1).reshape(-1, 28, 28)
        labels = np.tile(np.arange(10, dtype=np.uint8), count)
        write_idx(directory / "fashion-mnist" / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(directory / "fashion-mnist" / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return directory
