"""A PNG without what its pixels do not need: profiles, texts, times.

Pillow unpacks all of these before it looks at a pixel, and refuses a file for the size of its colour profile. A
kilobyte of profile unpacks to a megabyte, and a file may hold ten thousand.
"""

import re
import struct


class TooManyParts(ValueError):
    """A file of many tiny parts, each of which is work by itself; or of metadata that unpack to megabytes."""


MAGIC = b"\x89PNG\r\n\x1a\n"
MIN_CHUNKS = 500
CHUNK_BYTES = 500  # programs write pixels by the kilobytes; each chunk is work by itself
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"IEND"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TURNING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"exif\0")  # texts that may say which way up it is
_NAME = re.compile(rb"\w{4}")


def without_metadata(content: bytes) -> bytes:
    """The same image; of each part that tells which way up it is, the first. Damaged parts stay as they are.

    Raises TooManyParts for a file of many tiny ones.
    """
    kept: list[bytes] = []
    turning: set[bytes] = set()
    start, position, chunks, end = 0, 8, 0, len(content)
    most = MIN_CHUNKS + end // CHUNK_BYTES
    while position < end:
        chunks += 1
        if chunks > most:
            raise TooManyParts("it consists of too many chunks")
        name = content[position + 4 : position + 8]
        if not _NAME.fullmatch(name):
            break
        following = position + 12 + struct.unpack_from(">I", content, position)[0]
        if name not in _PIXELS:
            purpose = _purpose(name, content, position + 8)
            if purpose is None or purpose in turning:
                kept.append(content[start:position])
                start = following
            else:
                turning.add(purpose)
        position = following
    return b"".join([*kept, content[start:]]) if kept else content


def _purpose(name: bytes, content: bytes, start: int) -> bytes | None:
    """What a chunk besides the pixels is needed for, if it is."""
    if name == b"eXIf":
        return name
    if name in _TEXTS:
        return next((keyword for keyword in _TURNING if content.startswith(keyword, start)), None)
    return None
