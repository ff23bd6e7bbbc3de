"""Sets of images: MNIST's idx files, a tar.xz archive or a directory with one folder a class."""

import gzip
import lzma
import math
import os
import struct
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from models.data.images import Image, ImageFile, checked, decode, fingerprints, image_file
from models.data.splits import SPLIT_NAMES, Rows
from models.errors import InputError
from models.files import bounded, file_name, open_regular

# The kinds that the edge takes, and TIFF. Windows saves a JPEG as .jfif, some programs as .jpe.
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp"),
    *(".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
}
_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin"}
_SUFFIXES_SHOWN = 5
MOST_BYTES = 1024**3  # of a file unpacked
_UNSIGNED_BYTE = 0x08  # idx: the third byte of the magic number, the type of the values


def read_idx_pair(images: Path, labels: Path, names: tuple[str, ...]) -> Rows:
    """Images (N, H, W) and their labels from two gzipped idx files. names: of the label numbers. Raises InputError."""
    pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise InputError(f"{images} has {len(pixels)} images and {labels} {len(numbers)} labels")
    beyond = np.flatnonzero(numbers >= len(names))
    if len(beyond):
        raise InputError(f"{labels}: item {beyond[0] + 1} has the label {numbers[beyond[0]]} of 0 to {len(names) - 1}")
    return Rows(pixels, [names[number] for number in numbers], fingerprints(pixels))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        with open_regular(path, MOST_BYTES) as packed, gzip.open(packed) as stream:
            content = bounded(stream, MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged, or not a gzip file: {error}") from error
    header = 4 * (1 + dimensions)
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != magic or len(content) < header:
        raise InputError(
            f"{path} is no idx file of {dimensions} dimensions: it begins with {content[:4].hex(' ') or 'nothing'}"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - header != math.prod(shape):
        raise InputError(f"{path}: its header says {shape}, but {len(content) - header} bytes follow")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_tar(path: Path) -> dict[str, Rows]:
    """RGB images of one size from an archive with SPLIT/CLASS/*.jpg, one array (N, H, W, 3) a split, in its order.

    Raises InputError.
    """
    pixels: dict[str, bytearray] = defaultdict(bytearray)
    labels: dict[str, list[str]] = defaultdict(list)
    shape: tuple[int, ...] = ()
    for name, image in _tar_images(path):
        shape = shape or image.shape
        if image.shape != shape:
            raise InputError(f"{path}: {name} is {image.shape}, the images before it are {shape}")
        split, label, _ = name.parts
        pixels[SPLIT_NAMES[split]] += image.tobytes()
        labels[SPLIT_NAMES[split]].append(label)
    given = {}
    for split, buffer in pixels.items():
        array = np.frombuffer(buffer, np.uint8).reshape(-1, *shape)
        given[split] = Rows(array, labels[split], fingerprints(array))
    return given


def _tar_images(path: Path) -> Iterator[tuple[PurePosixPath, Image]]:
    """The images SPLIT/CLASS/NAME of an archive, as it is unpacked."""
    try:
        with lzma.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if len(name.parts) == 3 and name.parts[0] in SPLIT_NAMES and _is_image(name):
                    stream = archive.extractfile(member)
                    content = bounded(stream, MOST_BYTES) if stream else b""
                    yield name, decode(ImageFile(f"{path}: {name}", partial(BytesIO, content)), grey=False)
            while unpacked.read(1 << 20):  # a file cut short can end between two members: only its end tells
                pass
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged, or not a tar.xz archive: {error}") from error


def read_folders(directory: Path) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Images by split, and notes, from DIR/CLASS/*.png or DIR/train/CLASS/*.png, DIR/test/CLASS/*.png, ...

    Every image is decoded once here, so that one that cannot be read is told before anything is trained; after that,
    as they are asked for. Grey where all of a directory are. Raises InputError.
    """
    folders = class_folders(directory)
    by_split: dict[str, Path] = {}
    for folder in folders:
        name = SPLIT_NAMES.get(folder.name.lower())
        if name is None or not class_folders(folder):  # a class can be called train, or test, too
            continue
        if name in by_split:
            raise InputError(f"{directory} has both {by_split[name].name} and {folder.name} for the split {name}")
        by_split[name] = folder
    if by_split and "train" not in by_split:
        raise InputError(f"{directory} has {next(iter(by_split.values())).name}/ but no train/ with a folder a class")
    if not by_split and len(folders) == 1 and len(class_folders(folders[0])) > 1:
        raise InputError(f"{directory} holds one folder alone, {folders[0].name}: give {folders[0]} instead")
    found = {name: _files(folder) for name, folder in (by_split or {"train": directory}).items()}
    others = [folder.name for folder in folders if by_split and folder not in by_split.values()]
    notes = [f"{directory / name} is not read: it is no split" for name in others]
    for folder in by_split.values() or [directory]:
        notes += _unread(folder)
    return rows_of_files(found), tuple(notes)


def class_folders(directory: Path) -> list[Path]:
    """The folders of a directory, but those that are hidden or that a system left there."""
    return sorted(path for path in directory.iterdir() if path.is_dir() and not _is_left_over(path.name))


def has_images(directory: Path) -> bool:
    return any(_is_image(path) for path in _below(directory))


def _files(directory: Path) -> list[tuple[ImageFile, str]]:
    """(image, class) of every image below a directory's folders, sorted by path."""
    found = []
    for folder in class_folders(directory):
        paths = sorted(path for path in _below(folder) if _is_image(path))
        if not paths:
            others = f"; {_counted_suffixes(_below(folder))}" if any(True for _ in _below(folder)) else ""
            raise InputError(f"{folder} holds no images{others}; each folder of {directory} is a class")
        label = _class_name(folder)
        found += [(image_file(path), label) for path in paths]
    if not found:
        loose = any(_is_image(path) for path in directory.iterdir())
        wanted = "put its images into one folder a class" if loose else "a folder for each class, with its images"
        raise InputError(f"{directory} has neither train.csv (.jsonl, .parquet) nor folders of images: {wanted}")
    return found


def _class_name(folder: Path) -> str:
    label = file_name(folder).strip()
    if not label:
        raise InputError(f"{folder}: the name of a class is white space alone; rename the folder")
    return label


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones, those in hidden folders and what a system left there."""

    def refuse(error: OSError) -> None:  # a folder that is closed to us would be a class with too few images
        raise error

    for name, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(folder for folder in folders if not _is_left_over(folder))
        yield from (Path(name, file) for file in files if not _is_left_over(file))


def _is_left_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _unread(directory: Path) -> list[str]:
    """What lies in a directory's class folders, or beside them, and is not read: one note each."""
    notes = []
    loose = sum(_is_image(path) for path in directory.iterdir())
    if loose:
        notes.append(f"{_files_are(loose, 'image')} not read: put each into the folder of its class")
        notes[-1] = f"{directory}: {notes[-1]}"
    others = [path for folder in class_folders(directory) for path in _below(folder) if not _is_image(path)]
    if others:
        notes.append(
            f"{directory}: {_files_are(len(others), 'file')} not read, {_counted_suffixes(others)}: "
            "images are read as PNG, JPEG, WebP, GIF, BMP and TIFF, by their suffix"
        )
    return notes


def _files_are(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count:,} {noun}s are"


def _counted_suffixes(paths: Iterable[Path]) -> str:
    """10 .heic, 5 .avif, 1 without suffix"""
    counts = Counter(path.suffix.lower() if path.is_file() else "no regular file" for path in paths)
    shown = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in counts.most_common(_SUFFIXES_SHOWN)]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more kinds" if more else "")


def _is_image(path: Path | PurePosixPath) -> bool:
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and (not isinstance(path, Path) or path.is_file())


def rows_of_files(found: Mapping[str, list[tuple[ImageFile, str]]]) -> dict[str, Rows]:
    """The rows of (image, label) pairs by split, after each image was decoded once. Raises InputError."""
    everything = [pair for pairs in found.values() for pair in pairs]
    images, keys = checked([file for file, _ in everything])
    rows = Rows(images, [label for _, label in everything], keys)
    given, start = {}, 0
    for name, pairs in found.items():
        given[name] = rows.take(range(start, start + len(pairs)))
        start += len(pairs)
    return given
