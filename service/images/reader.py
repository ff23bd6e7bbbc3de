"""One image as a request holds it -> the array that the model takes. The only file here that knows how images are read.

Formats are those of cameras and screens. Not TIFF, whose tiles may be far larger than the image; not EPS or PDF, which
Pillow gives to another program.
"""

import binascii
import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import PIL.Image

from models.data.images import ImageFile, Limits, TooManyPixels, TooMuchMetadata, UnknownKind, header, picture
from models.data.png import TooManyParts
from models.errors import InputError
from service.errors import InvalidRequest, TooLarge
from service.images.cost import decode_s
from service.images.decoder import Encoded

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_SIDE = 65_535  # JPEG's and GIF's own; each row takes memory of its own, so a column of 16 million is far dearer
# Cameras and programs write up to a dozen scans and one EXIF part; more images in one file have their own.
MAX_JPEG_PARTS = 64
MAX_BMP_COLOURS = 256


class _Parts(BytesIO):
    """The file, for Pillow, which goes through what is not pixels part by part, in Python, and may keep each.

    A part of a photograph or a long remark has hundreds of bytes; a file made of tiny ones is cut short.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads_left = 2_000 + len(content) // 100

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooManyParts("it consists of too many parts")
        return super().read(size)


class ImageReader:
    """Called in any thread. fit: Pillow's image, L or RGB -> what the model's queue shall hold.

    max_seconds: of one image, by its estimate.
    """

    def __init__(self, fit: Callable[[PIL.Image.Image], Any], max_pixels: int, max_seconds: float) -> None:
        self._fit = fit
        self._limits = Limits(max_pixels, MAX_SIDE, FORMATS)
        self._max_seconds = max_seconds
        # Pillow's remarks on metadata; each new text of one would be kept for good.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __call__(self, encoded: Encoded, where: str) -> Any:
        """The image, ready for the model. Raises InvalidRequest or TooLarge, which name it by `where`."""
        content = _content(encoded, where)
        return _refusing(lambda: self._fit(picture(_file(where, content), None, self._limits)), where)

    def seconds(self, encoded: Encoded, where: str) -> float:
        """What that will take, known from the image's header. Raises the same, for what is not to be read at all."""
        content = _content(encoded, where)
        if not content:
            raise InvalidRequest(f"{where}: the image is empty")
        _check_jpeg(content, where)
        _check_bmp(content, where)
        found = _refusing(lambda: header(_file(where, content), self._limits), where)
        if found.in_python:
            raise InvalidRequest(f"{where}: a run-length {found.kind} is not read: save it again, as PNG")
        seconds = decode_s(
            found.kind,
            found.mode,
            pixels=found.width * found.height,
            file_bytes=len(content),
            transparent=found.transparent,
            deep=found.deep,
            scans=content.count(b"\xff\xda") if found.progressive else 0,
        )
        if seconds > self._max_seconds:
            raise TooLarge(
                f"{where}: the image would take {seconds:.1f} s to unpack, and {self._max_seconds:g} s is the most: "
                "send a smaller one"
            )
        return seconds


def _content(encoded: Encoded, where: str) -> bytes:
    return encoded if isinstance(encoded, bytes) else unpack(encoded, where)


def _file(where: str, content: bytes) -> ImageFile:
    return ImageFile(where, partial(_Parts, content))


def _refusing(read: Callable[[], Any], where: str) -> Any:
    """What `read` makes of an image; what cannot be read is the client's to mend."""
    try:
        return read()
    except TooManyPixels as error:
        raise TooLarge(f"{error}: send a smaller one") from None
    except MemoryError:
        raise TooLarge(f"{where}: there is not enough memory to unpack the image: send a smaller one") from None
    except UnknownKind as error:
        raise InvalidRequest(f"{error}: send PNG, JPEG, WebP, GIF or BMP") from None
    except TooMuchMetadata as error:
        raise InvalidRequest(f"{error}: save it again, without metadata") from None
    except InputError as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest(f"{reason}: send the whole file, or save it again") from None


def _check_jpeg(content: bytes, where: str) -> None:
    """A scan of 31 bytes passes over every pixel: 100 kB could keep a thread for minutes, a whole body for hours.

    And Pillow joins EXIF parts one by one, each time copying all before it, and reads tables in Python.
    """
    if content[:3] != b"\xff\xd8\xff":
        return
    if any(content.count(part) > MAX_JPEG_PARTS for part in (b"\xff\xda", b"\xff\xdb", b"Exif\0\0")):
        raise InvalidRequest(
            f"{where}: the JPEG has more than {MAX_JPEG_PARTS} scans, tables or EXIF parts: save it again"
        )


def _check_bmp(content: bytes, where: str) -> None:
    """Pillow looks at each colour of a palette in Python, and 54 bytes can say that there are 65,536."""
    if content[:2] != b"BM" or len(content) < 50:
        return
    bits, colours = int.from_bytes(content[28:30], "little"), int.from_bytes(content[46:50], "little")
    if bits <= 8 and colours > MAX_BMP_COLOURS:
        raise InvalidRequest(f"{where}: the BMP has more than {MAX_BMP_COLOURS} colours in its palette: save it as PNG")


def unpack(text: str, where: str) -> bytes:
    """The bytes of base64, with or without a data URL's prefix; line breaks are fine. Raises InvalidRequest."""
    if text[:5].lower() == "data:":
        kind, comma, text = text.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise InvalidRequest(f"{where}.image: a data URL must begin like data:image/png;base64,")
    try:
        return _bytes(text)
    except ValueError as error:  # binascii.Error is one; the other is a letter that is not ASCII
        if "-" in text or "_" in text:
            raise InvalidRequest(f"{where}.image: use the base64 alphabet with + and /, not - and _") from None
        reason = str(error).lower() if isinstance(error, binascii.Error) else "a letter that is not in its alphabet"
        raise InvalidRequest(f"{where}.image: it cannot be read as base64 ({reason})") from None


def _bytes(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:  # many tools break its lines
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
