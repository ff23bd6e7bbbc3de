"""What is left out of a PNG, and that its pixels and its way up stay as they were."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from models.data.images import ImageFile, decode
from models.data.png import without_metadata
from models.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
TURN = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def saved(pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_chunks(chunks: bytes, *, behind: bool = False) -> bytes:
    content = saved()
    at = len(content) - 12 if behind else 33
    return content[:at] + chunks + content[at:]


def read(content: bytes) -> np.ndarray:
    return decode(ImageFile("a.png", lambda: io.BytesIO(content)), grey=False)


def test_what_has_no_metadata_is_the_same_object() -> None:
    content = saved()
    assert without_metadata(content) is content


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_200_000))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_000_000))) * 50,
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4_000_000))) * 20,
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(4_000_000))),
        chunk(b"tEXt", b"transparency\0\0") + chunk(b"tIME", bytes(7)) + chunk(b"prVt", b"a"),
    ],
    ids=["a large profile", "many profiles", "texts", "an international text", "odd ones"],
)
@pytest.mark.parametrize("behind", [False, True])
def test_metadata_are_left_out(chunks: bytes, behind: bool) -> None:
    content = with_chunks(chunks, behind=behind)
    assert without_metadata(content) == saved()
    assert (read(content) == PIXELS).all()


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURN),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURN)),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    ],
    ids=["XMP", "XMP, compressed", "EXIF"],
)
@pytest.mark.parametrize("behind", [False, True])
def test_which_way_up_it_is_stays(chunks: bytes, behind: bool) -> None:
    content = with_chunks(chunks + chunk(b"tEXt", b"a\0b"), behind=behind)
    with PIL.Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(PIL.ImageOps.exif_transpose(image))
    assert expected.shape == (30, 20, 3)
    assert (read(content) == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pixels_of_every_kind_stay(mode: str) -> None:
    image = PIL.Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": 3} if mode in ("L", "P") else {}))
    assert without_metadata(buffer.getvalue()) == buffer.getvalue()


def test_an_animation_keeps_its_first_frame() -> None:
    content = saved(save_all=True, append_images=[PIL.Image.fromarray(PIXELS[::-1].copy())])
    assert b"acTL" in content
    assert without_metadata(content) == content
    assert (read(content) == PIXELS).all()


def test_many_tiny_chunks_are_refused() -> None:
    with pytest.raises(InputError, match="too many chunks"):
        read(with_chunks(chunk(b"tEXt", b"") * 5_000))


@pytest.mark.parametrize("cut", [9, 20, 40, 60, -20, -5])
def test_half_a_file_is_refused_as_before_or_read(cut: int) -> None:
    content = saved()[:cut]
    assert without_metadata(content) == content
    if cut < 0:
        return
    with pytest.raises(InputError):
        read(content)


def test_a_large_image_is_made_plain_in_strips_as_it_is_in_one() -> None:
    """More than one strip, and a last one that is shorter."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (700, 900, 4)).astype(np.uint8)
    over_white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", (900, 700), "white"), PIL.Image.fromarray(pixels))
    assert (read(saved(pixels)) == np.asarray(over_white.convert("RGB"))).all()
    deep = generator.integers(0, 65_536, (700, 900)).astype(np.uint16)
    grey = decode(ImageFile("a.png", lambda: io.BytesIO(saved(deep))), grey=True)
    assert (grey == deep >> 8).all()
