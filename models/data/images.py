"""Images as uint8 arrays: one encoded file decoded, and a sequence of files that is decoded as it is read."""

import hashlib
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageFile
from numpy.typing import NDArray

from models.data import png
from models.errors import InputError
from models.files import open_regular

T = TypeVar("T")
Image = NDArray[np.uint8]  # (H, W) grey or (H, W, 3) RGB
# No photograph that a small model is tuned on is larger; a few kilobytes can unpack to gigabytes.
MAX_PIXELS = 64_000_000
STRIP_PIXELS = 256 * 1024  # worked on at once where a whole copy would take a quarter of a gigabyte


@dataclass(frozen=True)
class Limits:
    """What is opened at all. formats: Pillow's names of them, None for every one that it knows."""

    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_PIXELS
    formats: tuple[str, ...] | None = None


ANY_FORMAT = Limits()

# What Pillow's decoders raise for a file that is damaged, or no image at all.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
    AssertionError,  # a palette image without its palette, for one
    AttributeError,
    ArithmeticError,
)
_BROKEN_SHOWN = 3
_EMPTY = "nothing"
# What Pillow says of a PNG's texts, those among them that may tell which way up it is.
_TOO_MUCH_TEXT = ("Decompressed data too large", "Too much memory used in text chunks")
_STARTS = {png.MAGIC: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF"}
MOST_EXIF_ENTRIES = 1_000  # cameras write some dozens
_TURNED = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_GREY_BANDS = {"1", "L", "I", "A"}  # the A of LA: transparency


@dataclass(frozen=True)
class ImageFile:
    """One encoded image. `where` is what an error calls it: a path, or a row of a hub dataset."""

    where: str
    open: Callable[[], BinaryIO]


class ImageFiles(Sequence[Image]):
    """Encoded images, each decoded when it is asked for: to (H, W) where `grey`, else to (H, W, 3)."""

    def __init__(self, files: Sequence[ImageFile], grey: bool) -> None:
        self.files = files
        self.grey = grey

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, position: int) -> Image: ...
    @overload
    def __getitem__(self, position: slice) -> "ImageFiles": ...
    def __getitem__(self, position: int | slice) -> "Image | ImageFiles":
        if isinstance(position, slice):
            return ImageFiles(self.files[position], self.grey)
        return decode(self.files[position], self.grey)

    def take(self, positions: Sequence[int]) -> "ImageFiles":
        return ImageFiles([self.files[position] for position in positions], self.grey)


class TooManyPixels(InputError):
    """An image beyond its limit: known from its header, nothing was unpacked."""


class UnknownKind(InputError):
    """No image, or one of a kind that is not opened."""


class TooMuchMetadata(InputError):
    """An image whose pixels may be well, beside more metadata than is looked at."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is unpacked. kind and mode: Pillow's names, as PNG and RGB.

    deep: 16 bits a band. in_python: Pillow has no faster decoder for it.
    """

    kind: str
    mode: str
    width: int
    height: int
    transparent: bool
    deep: bool
    progressive: bool
    in_python: bool


def decode(file: ImageFile, grey: bool) -> Image:
    """The image, uint8: (H, W) where `grey`, else (H, W, 3). Turned as its EXIF says; what is transparent is white.

    Raises InputError where it cannot be read or has more than MAX_PIXELS.
    """
    return np.array(picture(file, grey))


def picture(file: ImageFile, grey: bool | None, limits: Limits = ANY_FORMAT) -> PIL.Image.Image:
    """The same as Pillow's image, L where `grey`, else RGB: for what shrinks it first, an array is two copies more.

    grey None: where the file holds no colour. Of several frames, the first. Raises InputError where it cannot be read,
    TooManyPixels above the limit.
    """
    with _opened(file, limits) as opened:
        image: PIL.Image.Image = opened
        if grey is None:
            grey = set(image.getbands()) <= _GREY_BANDS
        image = _upright(image)
        mode = "L" if grey else "RGB"
        if image.mode == mode and not image.has_transparency_data:
            return image
        return _in_strips(image, mode)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turned as its EXIF says. Not by ImageOps.exif_transpose, which writes the whole EXIF anew, in Python."""
    image.load()
    if _exif_entries(image.info) > MOST_EXIF_ENTRIES:
        return image
    method = _TURNED.get(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _exif_entries(info: Mapping[Any, Any]) -> int:
    """How many Pillow would look at one by one; as many as can be where that cannot be told."""
    exif = info.get("exif")
    if exif is None and isinstance(profile := info.get("Raw profile type exif"), str):
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return MOST_EXIF_ENTRIES + 1
    if not isinstance(exif, bytes):
        return 0
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return MOST_EXIF_ENTRIES + 1 if exif else 0
    try:
        return int(struct.unpack_from(f"{order}H", exif, struct.unpack_from(f"{order}I", exif, 4)[0])[0])
    except struct.error:
        return MOST_EXIF_ENTRIES + 1


def _in_strips(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """The image in that mode: whole copies of it on the way would be three more, and keep other threads waiting."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _plain(image, mode)
    whole = PIL.Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_plain(image.crop(box), mode), box)
    return whole


def _plain(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """Of 8 bits, in front of white, in that mode."""
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion cuts at 255 instead of scaling
        image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def header(file: ImageFile, limits: Limits = ANY_FORMAT) -> Header:
    """What the file says of its image. Raises what `picture` does for one that is not opened."""
    with _opened(file, limits) as image:
        return Header(
            kind=image.format or "",
            mode=image.mode,
            width=image.width,
            height=image.height,
            transparent=image.has_transparency_data,
            deep=image.mode.startswith("I") or any("16" in str(tile.args) for tile in image.tile),
            progressive="progressive" in image.info,
            in_python=any(tile.codec_name in PIL.Image.DECODERS for tile in image.tile),
        )


def is_grey(file: ImageFile) -> bool:
    """Whether the file holds no colour, from its header alone. Raises InputError as `decode` does."""
    with _opened(file) as image:
        return set(image.getbands()) <= _GREY_BANDS


def checked(files: Sequence[ImageFile]) -> tuple[ImageFiles, tuple[str, ...]]:
    """The files as one sequence, with their fingerprints. Every file is decoded once: all can be read afterwards.

    Grey where every file is, else RGB throughout. Raises InputError for the first file that cannot be read; it names
    the others that cannot, after a look at all: leaving them out is for the user to decide.
    """
    broken: list[tuple[ImageFile, InputError]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, which nobody reads here
        grey = all(_each(files, is_grey, broken))
        left = {id(file) for file, _ in broken}
        rest = [file for file in files if id(file) not in left]
        keys = _each(rest, lambda file: fingerprints([decode(file, grey)])[0], broken)
    if broken:
        _, error = broken[0]
        more = ", ".join(file.where for file, _ in broken[1 : 1 + _BROKEN_SHOWN])
        count = len(broken) - 1
        others = f"; {count:,} more cannot be: {more}{' ...' * (count > _BROKEN_SHOWN)}" if count else ""
        raise InputError(f"{error}{others}; mend {'them' if count else 'it'}, or take {'them' if count else 'it'} out")
    return ImageFiles(files, grey), tuple(keys)


def _each(
    files: Sequence[ImageFile], look: Callable[[ImageFile], T], broken: list[tuple[ImageFile, InputError]]
) -> list[T]:
    """What is seen in each file; those that cannot be read are added to the broken ones."""
    found = []
    for file in files:
        try:
            found.append(look(file))
        except InputError as error:
            broken.append((file, error))
    return found


def fingerprints(images: Sequence[Image] | NDArray[np.uint8]) -> tuple[str, ...]:
    """One sha256 an image, over its shape and its pixels."""
    return tuple(hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest() for image in images)


@contextmanager
def _opened(file: ImageFile, limits: Limits = ANY_FORMAT) -> Iterator[PIL.ImageFile.ImageFile]:
    """The image with its header read; what fails until it is closed is told by the file's name."""
    try:
        with file.open() as stream, PIL.Image.open(_pixels_alone(stream), formats=limits.formats) as image:
            _check_size(image, limits.max_pixels)
            _check_sides(file, image, limits.max_side)
            yield image
    except TooManyPixels:
        raise
    except png.TooManyParts as error:
        raise TooMuchMetadata(f"{file.where}: the image cannot be read: {error}") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise TooManyPixels(f"{file.where}: the image has more than {_pixels(limits.max_pixels)}") from None
    except PIL.UnidentifiedImageError:
        known = _kind_by_its_start(file)
        if known == _EMPTY:
            raise InputError(f"{file.where}: the image is empty") from None
        if known is not None and (limits.formats is None or known in limits.formats):
            raise InputError(f"{file.where}: the image cannot be read: the {known} is damaged or cut short") from None
        raise UnknownKind(f"{file.where} is not an image of a kind that can be read") from None
    except _UNREADABLE as error:
        if str(error).startswith(_TOO_MUCH_TEXT):
            said = "its metadata unpack to more than a megabyte"
            raise TooMuchMetadata(f"{file.where}: the image cannot be read: {said}") from None
        raise InputError(f"{file.where}: the image cannot be read: {str(error) or 'it is damaged'}") from error


def _kind_by_its_start(file: ImageFile) -> str | None:
    """The kind that a file says it is of, though it cannot be opened as one."""
    with suppress(OSError, ValueError), file.open() as stream:
        start = stream.read(12)
        if not start:
            return _EMPTY
        if start[:4] == b"RIFF" and start[8:] == b"WEBP":
            return "WEBP"
        return next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None)
    return None


def _pixels_alone(stream: BinaryIO) -> BinaryIO:
    is_png = stream.read(len(png.MAGIC)) == png.MAGIC
    stream.seek(0)
    return BytesIO(png.without_metadata(stream.read())) if is_png else stream


def _check_size(image: PIL.Image.Image, max_pixels: int) -> None:
    if not image.width or not image.height:
        raise ValueError("it has no pixels")
    if image.width * image.height > max_pixels:
        raise PIL.Image.DecompressionBombError


def _check_sides(file: ImageFile, image: PIL.Image.Image, max_side: int) -> None:
    if max(image.size) > max_side:
        raise TooManyPixels(f"{file.where}: the image has a side of more than {max_side:,} pixels")


def _pixels(count: int) -> str:
    return f"{count // 1_000_000} million pixels" if count % 1_000_000 == 0 else f"{count:,} pixels"


def image_file(path: Path) -> ImageFile:
    return ImageFile(str(path), partial(_open, path))  # not a lambda: it can be sent to another process


def _open(path: Path) -> BinaryIO:
    return open_regular(path, sys.maxsize)  # a table can name a pipe, whose other end nobody opens
