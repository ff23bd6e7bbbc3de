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

from models.data.images import ImageFile, Limits, TooManyPixels, picture
from models.errors import InputError
from service.decoding import Encoded
from service.errors import InvalidRequest, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Cameras and programs write up to a dozen scans and one EXIF part; more images in one file have their own.
MAX_JPEG_PARTS = 64


class ImageReader:
    """Called in any thread. fit: Pillow's image, L or RGB -> what the model's queue shall hold."""

    def __init__(self, fit: Callable[[PIL.Image.Image], Any], max_pixels: int) -> None:
        self._fit = fit
        self._limits = Limits(max_pixels, FORMATS)
        # Pillow's remarks on metadata; each new text of one would be kept for good.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __call__(self, encoded: Encoded, where: str) -> Any:
        """The image, ready for the model. Raises InvalidRequest or TooLarge, which name it by `where`."""
        content = encoded if isinstance(encoded, bytes) else unpack(encoded, where)
        if not content:
            raise InvalidRequest(f"{where}: the image is empty")
        _check_jpeg(content, where)
        try:
            return self._fit(picture(ImageFile(where, partial(BytesIO, content)), None, self._limits))
        except TooManyPixels as error:
            raise TooLarge(f"{error}: send a smaller one") from None
        except MemoryError:
            raise TooLarge(f"{where}: there is not enough memory to unpack the image: send a smaller one") from None
        except InputError as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidRequest(f"{reason}: send PNG, JPEG, WebP, GIF or BMP") from None


def _check_jpeg(content: bytes, where: str) -> None:
    """A scan of 31 bytes passes over every pixel: 100 kB could keep a thread for minutes, a whole body for hours.

    And Pillow joins EXIF parts one by one, each time copying all before it.
    """
    if content[:3] != b"\xff\xd8\xff":
        return
    if content.count(b"\xff\xda") > MAX_JPEG_PARTS or content.count(b"Exif\0\0") > MAX_JPEG_PARTS:
        raise InvalidRequest(f"{where}: the JPEG has more than {MAX_JPEG_PARTS} scans or EXIF parts: save it again")


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
