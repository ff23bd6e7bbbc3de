"""Images through the running pair of Fashion-MNIST bundles: base64 and files, and every bad image with its answer.

One file because all ask the same pair for images, and the hostile images are made for several of them.
"""

import base64
import io
import json
import re
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.answers import problem
from support.processes import TOKEN, Service, eventually
from support.tiny import tiny_images, write_tiny_fashion_mnist, write_tiny_images

from models.bundle import load_bundle
from models.data.datasets import load_dataset
from models.data.images import ImageFile, decode
from models.evaluation.parity import _batches
from models.inference.classifier import Classifier, load_classifier
from service.api.documents import ClassifyResponse
from service.cli import main
from service.commands.up import _example

ROUTE = "/v1/classify"


@pytest.fixture
def http(image_edge: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=image_edge.url, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="module")
def small(bundles: Path) -> Classifier:
    return load_classifier(load_bundle(bundles / "fashion-mnist-small"))


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(PIL.Image.fromarray(pixels))


def item(content: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(content).decode()}


def outputs(response: httpx.Response) -> list[dict[str, object]]:
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content)
    found: list[dict[str, object]] = response.json()["outputs"]
    return found


def refused(response: httpx.Response, status: int) -> str:
    """The detail of a problem of that status."""
    return problem(response, status).detail


PIXELS = np.concatenate([tiny_images(label, 20) for label in range(10)])
FILE = png(PIXELS[0])


@pytest.mark.slow
def test_online_is_offline_to_the_last_bit(http: httpx.Client, small: Classifier) -> None:
    """PNG loses nothing, and the same arithmetic runs on both sides: in the same batches, the same floats."""
    for start in range(0, len(PIXELS), 32):
        batch = PIXELS[start : start + 32]
        expected = small.predict(list(batch))
        answered = outputs(http.post(ROUTE, json={"inputs": [item(png(image)) for image in batch]}))
        assert [output["confidence"] for output in answered] == [prediction.confidence for prediction in expected]
        names = [small.labels[prediction.label] for prediction in expected]
        assert [output["small"]["label"] for output in answered] == names  # type: ignore[index]


def test_files_in_a_form_are_answered_as_base64_is(http: httpx.Client) -> None:
    contents = [png(PIXELS[number]) for number in (3, 77, 140)]
    parameters = {"top_k": 3, "threshold": 0.9}
    expected = outputs(http.post(ROUTE, json={"inputs": list(map(item, contents)), "parameters": parameters}))
    assert len(expected[0]["top"]) == 3  # type: ignore[arg-type]
    files = [("images", (f"{number}.png", content)) for number, content in enumerate(contents)]
    fields = {"top_k": "3", "threshold": "0.9"}
    assert outputs(http.post(ROUTE, files=files, data=fields)) == expected
    assert outputs(http.post(ROUTE, files=files, data={"parameters": json.dumps(parameters)})) == expected
    assert outputs(http.post(ROUTE, files={"image": contents[0]}))[0]["small"] == expected[0]["small"]


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(FILE).decode(),
        base64.encodebytes(FILE).decode(),
        "data:image/png;base64," + base64.b64encode(FILE).decode(),
        "DATA:;BASE64," + base64.encodebytes(FILE).decode().replace("\n", "\r\n"),
    ],
)
def test_base64_as_tools_write_it(http: httpx.Client, text: str) -> None:
    """Alone or in a list, with line breaks, as a data URL; the large model takes what the edge takes."""
    alone = outputs(http.post(ROUTE, json={"inputs": {"image": text}}))
    assert outputs(http.post(ROUTE, json={"inputs": [{"image": text}]})) == alone
    assert alone == outputs(http.post(ROUTE, json={"inputs": item(FILE)}))
    (forced,) = outputs(http.post(ROUTE, json={"inputs": {"image": text}, "parameters": {"route": "large"}}))
    assert forced["decision"] == "deferred"


def test_only_what_is_deferred_travels_to_the_large_model(http: httpx.Client, image_large: Service) -> None:
    def items() -> float:
        lines = httpx.get(f"{image_large.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("gatekeeper_items_total{"))

    confidences = [output["confidence"] for output in outputs(http.post(ROUTE, files=files(PIXELS[:9])))]
    threshold = sorted(confidences)[3]  # type: ignore[type-var]
    before = items()
    answered = outputs(http.post(ROUTE, files=files(PIXELS[:9]), data={"threshold": str(threshold)}))
    deferred = [number for number, output in enumerate(answered) if output["decision"] == "deferred"]
    assert deferred == [number for number, confidence in enumerate(confidences) if confidence < threshold]  # type: ignore[operator]
    assert len(deferred) == 3
    assert items() - before == 3
    with httpx.Client(base_url=image_large.url) as large:
        direct = outputs(large.post(ROUTE, json={"inputs": [item(png(PIXELS[number])) for number in deferred]}))
    assert [output["score"] for output in direct] == [answered[number]["score"] for number in deferred]
    assert {output["answered_by"] for output in direct} == {"large"}


def files(pixels: np.ndarray) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("x.png", png(image))) for image in pixels]


def turned() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(colour((90, 60)), "JPEG", exif=exif)


def colour(size: tuple[int, int]) -> PIL.Image.Image:
    generator = np.random.default_rng(1)
    return PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize(size)


KINDS = {
    "grey, the model's size": encoded(colour((28, 28)).convert("L")),
    "grey, larger": encoded(colour((280, 280)).convert("L")),
    "one pixel": encoded(colour((1, 1))),
    "wide": encoded(colour((900, 3))),
    "colour": encoded(colour((28, 28))),
    "transparent": encoded(colour((40, 40)).convert("RGBA")),
    "half transparent": encoded(PIL.Image.new("RGBA", (30, 30), (10, 200, 30, 90))),
    "grey with transparency": encoded(colour((40, 40)).convert("LA")),
    "a palette": encoded(colour((40, 40)).convert("P")),
    "black and white": encoded(colour((40, 40)).convert("1")),
    "16 bits": encoded(PIL.Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)),
    "turned by its EXIF": turned(),
    "JPEG": encoded(colour((300, 200)), "JPEG"),
    "JPEG in CMYK": encoded(colour((30, 20)).convert("CMYK"), "JPEG"),
    "JPEG of many passes": encoded(colour((300, 200)), "JPEG", progressive=True),
    "WebP": encoded(colour((30, 20)), "WEBP"),
    "GIF of four frames": encoded(
        colour((30, 20)), "GIF", save_all=True, append_images=[colour((30, 20)).rotate(angle) for angle in (9, 99, 180)]
    ),
    "BMP": encoded(colour((30, 20)), "BMP"),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_image_of_any_kind_is_what_the_job_reads(http: httpx.Client, small: Classifier, name: str) -> None:
    file = ImageFile(name, lambda: io.BytesIO(KINDS[name]))
    expected = {small.predict([decode(file, grey)])[0].confidence for grey in (False, True)}
    (output,) = outputs(http.post(ROUTE, json={"inputs": item(KINDS[name])}))
    assert output["confidence"] in expected


def test_exif_turns_and_only_the_first_frame_counts(http: httpx.Client) -> None:
    contents = [KINDS["turned by its EXIF"], KINDS["GIF of four frames"], encoded(colour((30, 20)), "GIF")]
    first, animated, still = outputs(http.post(ROUTE, json={"inputs": list(map(item, contents))}))
    with PIL.Image.open(io.BytesIO(contents[0])) as image:
        upright = png(np.asarray(image.transpose(PIL.Image.Transpose.ROTATE_270)))
    assert first["confidence"] == outputs(http.post(ROUTE, json={"inputs": [item(upright)] * 3}))[0]["confidence"]
    assert animated["confidence"] == still["confidence"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """A grey PNG of side x side zeros, of which 16 MB are there."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(16_100_000), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def webp_bomb() -> bytes:
    return encoded(PIL.Image.new("L", (12_000, 12_000)), "WEBP", lossless=True, method=0, quality=0)


def gif_bomb() -> bytes:
    content = encoded(colour((9, 9)), "GIF")
    return content[:6] + struct.pack("<HH", 65535, 65535) + content[10:]


def text_bomb() -> bytes:
    """A PNG whose compressed texts unpack to 256 MB."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4_000_000), 9))
    return FILE[:33] + text * 64 + FILE[33:]


def jpeg_of_scans(count: int) -> bytes:
    content = encoded(PIL.Image.new("L", (40, 40), 77), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def jpeg_of_exif_parts(count: int) -> bytes:
    content = encoded(PIL.Image.new("L", (40, 40), 77), "JPEG")
    return content[:2] + (b"\xff\xe1\0\x0aExif\0\0aa") * count + content[2:]


def jpeg_of(part: bytes, count: int) -> bytes:
    content = encoded(PIL.Image.new("L", (40, 40), 77), "JPEG")
    return content[:2] + part * count + content[2:]


def slow_jpeg() -> bytes:
    """16 million pixels in four colours, and 64 scans that pass over them: more than a second, from 250 kB."""
    content = encoded(PIL.Image.new("CMYK", (4_000, 4_000), (7, 77, 200, 9)), "JPEG", progressive=True)
    last, scans = content.rindex(b"\xff\xda"), content.count(b"\xff\xda")
    return content[:last] + content[last:-2] * (65 - scans) + content[-2:]


def gif_of_remarks(count: int) -> bytes:
    content = encoded(colour((9, 9)), "GIF")
    start = 13 + (6 << (content[10] & 7))
    return content[:start] + b"!\xfe" + b"\1a" * count + b"\0" + content[start:]


def png_with(chunks: bytes) -> bytes:
    return FILE[:33] + chunks + FILE[33:]


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bmp(width: int, height: int, data: bytes, compression: int = 1, bits: int = 8, colours: int = 0) -> bytes:
    palette = bytes(4 << bits)
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def damaged(content: bytes) -> bytes:
    wrong = bytearray(content)
    wrong[-20] ^= 0xFF
    return bytes(wrong)


BAD_IMAGES = {
    "16 MB of pixels in 16 kB": (png_bomb(4_001), 413, "more than 16 million pixels"),
    "144 million pixels of WebP": (webp_bomb(), 413, "more than 16 million pixels"),
    "GIF whose screen is huge": (gif_bomb(), 413, "million pixels"),
    "BMP that says it is huge": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0, 0, 0, 0, 0, 0),
        413,
        "million pixels",
    ),
    "JPEG of many scans": (jpeg_of_scans(100), 422, "more than 64 scans"),
    "JPEG of many EXIF parts": (jpeg_of_exif_parts(100), 422, "EXIF parts"),
    "JPEG of many tables": (jpeg_of(b"\xff\xdb\0\x43" + bytes(65), 100), 422, "tables"),
    "JPEG of many small parts": (jpeg_of(b"\xff\xe3\0\2", 10_000), 422, "too many parts"),
    "JPEG of junk": (jpeg_of(b"\xff\0" + bytes(4_000), 10), 422, "too many parts"),
    "GIF of many small parts": (gif_of_remarks(5_000), 422, "too many parts"),
    "PNG of many small parts": (png_with(chunk(b"teXt", b"") * 5_000), 422, "too many chunks"),
    "BMP whose palette is made up": (bmp(9, 9, b"", compression=0, colours=65_536), 422, "256 colours"),
    "run-length BMP, padded in Python": (bmp(4_000, 4_000, b"\1\0\0\0" * 4_000), 422, "save it again, as PNG"),
    "run-length BMP of 4 bits": (bmp(4_000, 4_000, b"\xff\x12" * 63_000, 2, 4), 422, "save it again, as PNG"),
    "run-length BMP, well made": (bmp(9, 9, b"\x09\0\0\0" * 9), 422, "save it again, as PNG"),
    "one pixel wide, 16 million high": (png_header(1, 16_000_000), 413, "a side of more than 65,535 pixels"),
    "JPEG that takes long": (slow_jpeg(), 413, "to unpack, and 1 s is the most"),
    "empty": (b"", 422, "empty"),
    "one byte": (b"\x89", 422, "kind"),
    "text": (b"hello", 422, "kind"),
    "half a PNG": (FILE[: len(FILE) // 2], 422, "cannot be read"),
    "half a JPEG": (KINDS["JPEG"][: len(KINDS["JPEG"]) // 2], 422, "cannot be read"),
    "wrong checksum": (damaged(FILE), 422, "cannot be read"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 422, "PNG, JPEG, WebP, GIF or BMP"),
    "PDF": (encoded(colour((9, 9)), "PDF"), 422, "PNG, JPEG, WebP, GIF or BMP"),
    "EPS": (encoded(colour((9, 9)), "EPS"), 422, "PNG, JPEG, WebP, GIF or BMP"),
    "TIFF": (encoded(colour((9, 9)), "TIFF"), 422, "PNG, JPEG, WebP, GIF or BMP"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused_by_its_place(http: httpx.Client, name: str) -> None:
    content, status, words = BAD_IMAGES[name]
    body = {"inputs": [item(FILE), {"image": item(content)["image"] or "data:;base64,"}]}
    detail = refused(http.post(ROUTE, json=body), status)
    assert detail.startswith("inputs.1")
    assert words in detail
    sent = [("images", ("good.png", FILE)), ("images", ("bad", content))]
    assert refused(http.post(ROUTE, files=sent), status).startswith("inputs.1")


WHAT_TO_DO = {
    "half a PNG": "send the whole file, or save it again",
    "half a JPEG": "send the whole file, or save it again",
    "wrong checksum": "send the whole file, or save it again",
    "PNG of many small parts": "save it again, without metadata",
    "JPEG of many small parts": "save it again, without metadata",
    "GIF of many small parts": "save it again, without metadata",
    "TIFF": "send PNG, JPEG, WebP, GIF or BMP",
    "text": "send PNG, JPEG, WebP, GIF or BMP",
    "the beginning of a PNG": "send the whole file, or save it again",
    "the beginning of a JPEG": "send the whole file, or save it again",
    "a PNG with a megabyte of XMP": "save it again, without metadata",
}


@pytest.mark.parametrize("name", WHAT_TO_DO)
def test_a_refused_image_is_told_what_helps_with_it(http: httpx.Client, name: str) -> None:
    """Nobody who sent a PNG is asked for a PNG, and metadata are blamed only where they are the reason."""
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1_200_000), 9)
    more = {
        "the beginning of a PNG": FILE[:40],
        "the beginning of a JPEG": KINDS["JPEG"][:40],
        "a PNG with a megabyte of XMP": png_with(chunk(b"iTXt", xmp)),
    }
    content = more[name] if name in more else BAD_IMAGES[name][0]
    detail = refused(http.post(ROUTE, json={"inputs": item(content)}), 422)
    assert detail.endswith(f": {WHAT_TO_DO[name]}")
    assert "PngImagePlugin" not in detail


def test_bombs_cost_no_memory(http: httpx.Client, image_edge: Service) -> None:
    def peak_mib() -> float:
        status = Path(f"/proc/{image_edge.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    outputs(http.post(ROUTE, json={"inputs": item(encoded(colour((4_000, 4_000)), "JPEG"))}))  # the most there is
    before = peak_mib()
    for content in (png_bomb(50_000), webp_bomb(), png_header(1, 16_000_000), bmp(16_000_000, 1, b"\1\0\0\0\0\1")):
        assert http.post(ROUTE, files={"images": content}).status_code in (413, 422)
    transparent = encoded(PIL.Image.new("RGBA", (4_000, 4_000), (10, 200, 30, 90)), "PNG")
    outputs(http.post(ROUTE, files=[("images", transparent), ("images", text_bomb())]))
    assert peak_mib() - before < 100


@pytest.mark.parametrize("kind", ["profile", "texts"])
def test_what_a_png_says_besides_its_pixels_is_not_unpacked(http: httpx.Client, kind: str) -> None:
    """A megabyte of profile is what some cameras and programs write; ten thousand of them took 20 s."""
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_200_000), 9))
    content = png_with(profile) if kind == "profile" else text_bomb()
    plain, other = outputs(http.post(ROUTE, files=[("images", FILE), ("images", content)]))
    assert other == plain


GOOD = item(FILE)
BAD_BODIES = {
    "a text": ({"inputs": "hello"}, "this model takes images"),
    "texts": ({"inputs": ["hello"]}, "this model takes images"),
    "a number": ({"inputs": 3}, "this model takes images"),
    "nothing": ({"inputs": None}, "this model takes images"),
    "no items": ({"inputs": []}, "at least 1 item"),
    "a list in a list": ({"inputs": [[GOOD]]}, "inputs.0: "),
    "a number as image": ({"inputs": [GOOD, {"image": 3}]}, "inputs.1.image: "),
    "an empty image": ({"inputs": {"image": ""}}, "inputs.image: "),
    "another field": ({"inputs": {**GOOD, "url": "http://127.0.0.1/"}}, "inputs.url: "),
    "a URL": ({"inputs": {"image": "http://127.0.0.1/a.png"}}, "inputs.0.image: it cannot be read as base64"),
    "no base64 at all": ({"inputs": {"image": "!!!"}}, "inputs.0.image: it cannot be read as base64"),
    "half of base64": ({"inputs": {"image": "abcde"}}, "inputs.0.image: it cannot be read as base64"),
    "not ASCII": ({"inputs": [GOOD, {"image": "ü"}]}, "inputs.1.image: it cannot be read as base64"),
    "the other alphabet": ({"inputs": {"image": "_-" + GOOD["image"]}}, "the base64 alphabet with + and /"),
    "a data URL without base64": ({"inputs": {"image": "data:image/png,abc"}}, "data:image/png;base64,"),
    "an unknown parameter": ({"inputs": GOOD, "parameters": {"k": 1}}, "parameters.k: "),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_json_is_refused_with_a_problem(http: httpx.Client, name: str) -> None:
    body, words = BAD_BODIES[name]
    assert words in refused(http.post(ROUTE, json=body), 422)


def part(name: str, content: str, filename: str | None = None) -> str:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{content}\r\n'


END = "--b--\r\n"
BAD_FORMS = {
    "empty": ("", 400, "cannot be read"),
    "no form": ("hello", 400, "cannot be read"),
    "cut in the middle": (part("images", "x", "a") + part("images", "x", "b"), 400, "last boundary is missing"),
    "a part without a name": ("--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, 400, '"name" must'),
    "nothing in it": (END, 422, "-F images=@FILE"),
    "no file": (part("top_k", "1") + END, 422, "-F images=@FILE"),
    "text for a file": (part("images", "shirt.png") + END, 422, "-F images=@FILE"),
    "a file elsewhere": (part("picture", "x", "a") + END, 422, "'picture' holds a file"),
    "an empty file": (part("images", "", "a") + END, 422, "inputs.0: the image is empty"),
    "an unknown field": (part("images", "x", "a") + part("topk", "1") + END, 422, "parameters.topk"),
    "a wrong value": (part("images", "x", "a") + part("top_k", "many") + END, 422, "parameters.top_k"),
    "not finite": (part("images", "x", "a") + part("threshold", "nan") + END, 422, "parameters.threshold"),
    "out of range": (part("images", "x", "a") + part("threshold", "2") + END, 422, "parameters.threshold"),
    "a field twice": (part("images", "x", "a") + part("top_k", "1") * 2 + END, 422, "'top_k' is there twice"),
    "parameters twice": (part("images", "x", "a") + part("parameters", "{}") + part("top_k", "1") + END, 422, "both"),
    "parameters not JSON": (part("images", "x", "a") + part("parameters", "{") + END, 422, "parameters: Invalid JSON"),
    "257 files": (part("images", "x", "a") * 257 + END, 413, "256"),
    "fifty fields": ("".join(part(f"field{number}", "x") for number in range(50)) + END, 400, "Too many fields"),
    "a long field": (part("parameters", "x" * 100_000) + END, 400, "64KB"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_is_refused_with_a_problem(http: httpx.Client, name: str) -> None:
    body, status, words = BAD_FORMS[name]
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert words in refused(http.post(ROUTE, content=body.encode(), headers=headers), status)


ONE_FILE = part("images", "FILE", "a") + part("top_k", "3") + END
FORM_HEADERS = {
    "utf-8": (b"; boundary=b; charset=utf-8", 200),
    "UTF-8 in quotes": (b'; charset="UTF-8"; boundary="b"', 200),
    "utf8": (b"; boundary=b; charset=utf8", 200),
    "ASCII": (b"; boundary=b; charset=us-ascii", 200),
    "an extended charset, which forms have not": (b"; boundary=b; charset*=nonsense''idna", 200),
    "many parameters": (b"; a=b" * 2_000 + b"; boundary=b", 200),
    **{
        f"charset {name!r}": (b"; boundary=b; charset=" + name, 415)
        for name in (b"idna", b"punycode", b"rot13", b"undefined", b"unicode_escape", b"utf-7", b"utf-16", b"nonsense")
    },
    "an empty charset": (b"; boundary=b; charset=", 415),
    "a charset of bytes": (b"; boundary=b; charset=\xff", 415),
    "a charset of 10 kB": (b"; boundary=b; charset=" + b"a" * 10_000, 415),
    "no boundary": (b"", 400),
    "an empty boundary": (b"; boundary=", 400),
    "a boundary of two quotes": (b'; boundary=""', 400),
    "an extended boundary": (b"; boundary*=nonsense''b", 400),
    "another boundary": (b"; boundary=c", 400),
    "a boundary of bytes": (b"; boundary=\xff", 400),
    "a boundary of 71 letters": (b"; boundary=" + b"b" * 71, 400),
    "a boundary of 10 kB": (b"; boundary=" + b"b" * 10_000, 400),
    "quotes without end": (b'; a="' + b'\\"' * 5_000 + b"; boundary=b", 400),
}


@pytest.mark.parametrize("name", FORM_HEADERS)
def test_a_form_is_read_as_utf_8_or_refused(http: httpx.Client, name: str) -> None:
    parameters, status = FORM_HEADERS[name]
    headers = {b"content-type": b"multipart/form-data" + parameters}
    answer = http.post(ROUTE, content=ONE_FILE.encode().replace(b"FILE", FILE), headers=headers)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert len(refused(answer, status)) < 120


@pytest.mark.parametrize("charset", [b"idna", b"punycode", b"utf-8"])
def test_a_form_where_texts_are_taken_is_no_fault_of_ours(client: httpx.Client, charset: bytes) -> None:
    headers = {b"content-type": b"multipart/form-data; boundary=b; charset=" + charset}
    answer = client.post(ROUTE, content=part("top_k", "a-" + "9" * 60_000) + END, headers=headers)
    assert answer.status_code in (400, 422), answer.text


DISPOSITION = "--b\r\nContent-Disposition: form-data"
ODD_PARTS = {
    "a header of 1 MB": f'{DISPOSITION}; name="images"; filename="{"a" * 1_000_000}"\r\n\r\nx\r\n',
    "a header of 100,000 parameters": f'{DISPOSITION}; name="images"{"; a=b" * 100_000}\r\n\r\nx\r\n',
    "100,000 headers": "--b\r\n" + "a: b\r\n" * 100_000 + "\r\n\r\nx\r\n",
    "a header that is none": "--b\r\nüü\r\n\r\nx\r\n",
    "no disposition": "--b\r\na: b\r\n\r\nx\r\n",
    "an extended name": f"{DISPOSITION}; name*=nonsense''images; filename*=idna''a\r\n\r\nx\r\n",
    "a name in pieces": f"{DISPOSITION}; name*0=ima; name*1=ges\r\n\r\nx\r\n",
    "a form in a form": f'{DISPOSITION}; name="images"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n',
    "the field for a charset": part("images", "x", "a") + part("_charset_", "idna"),
    "50,000 empty files": part("images", "", "") * 50_000,
    "50,000 empty fields": part("", "") * 50_000,
    "a file's name of another system": part("images", "", "C:\\..\\..\\a\0"),
}


@pytest.mark.parametrize("name", ODD_PARTS)
def test_an_odd_part_is_refused_in_few_words(http: httpx.Client, name: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = http.post(ROUTE, content=(ODD_PARTS[name] + END).encode(), headers=headers)
    assert answer.status_code in (400, 413, 422), answer.text
    refused(answer, answer.status_code)
    assert len(answer.content) < 2_000


def test_the_limits_of_a_body_hold_for_forms_too(http: httpx.Client) -> None:
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert "boundary" in refused(http.post(ROUTE, content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    assert "16,777,216" in refused(http.post(ROUTE, content=bytes(17 * 1024 * 1024), headers=form), 413)
    megabyte = b"x" * 1024 * 1024

    def endless() -> Iterator[bytes]:
        yield part("images", "", "a")[:-2].encode()
        for _ in range(40):
            yield megabyte

    assert "16,777,216" in refused(http.post(ROUTE, content=endless(), headers=form), 413)
    # 13 MB of files fit into a body, but not their base64 into one to the large model.
    assert "of base64" in refused(http.post(ROUTE, files=[("images", megabyte)] * 13), 413)
    assert "256" in refused(http.post(ROUTE, json={"inputs": [GOOD] * 257}), 413)
    assert len(outputs(http.post(ROUTE, json={"inputs": [GOOD] * 256}))) == 256


def test_an_image_as_long_as_a_body_may_be_can_be_sent_on(http: httpx.Client) -> None:
    """Its call to the large model has another frame, and must not be too long for that."""
    frame = '{"inputs":{"image":"%s"},"parameters":{"route":"large"}}'
    pixels = encoded(colour((28, 28)), "PNG")
    room = (16 * 1024 * 1024 - len(frame % "")) // 4 * 3 - len(pixels) - 12
    text = struct.pack(">I", room) + b"tEXt" + bytes(room + 4)  # left out before the image is read
    body = frame % base64.b64encode(pixels[:33] + text + pixels[33:]).decode()
    assert 16 * 1024 * 1024 - 8 <= len(body) <= 16 * 1024 * 1024
    (output,) = outputs(http.post(ROUTE, content=body.encode()))
    assert (output["decision"], output["reason"]) == ("deferred", "forced")


def test_an_own_deadline_holds_for_decoding(http: httpx.Client) -> None:
    photo = item(encoded(colour((4_000, 3_000)), "JPEG"))
    response = http.post(ROUTE, json={"inputs": [photo] * 30}, headers={"x-request-timeout-ms": "50"})
    assert "deadline" in refused(response, 504)


def test_what_a_client_that_left_has_sent_is_not_decoded(http: httpx.Client, image_edge: Service) -> None:
    """All of them would take far longer than it takes to notice."""

    def gone() -> float:
        found = re.findall(r'gatekeeper_rejected_total\{.*reason="client-gone".*\} (.+)', http.get("/metrics").text)
        return float(found[0]) if found else 0.0

    before = gone()
    photo = item(encoded(PIL.Image.new("RGB", (4_000, 3_000), "teal"), "JPEG"))
    body = json.dumps({"inputs": [photo] * 60}).encode()
    assert len(body) < 16 * 1024 * 1024
    with socket.create_connection(("127.0.0.1", image_edge.port)) as connection:
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
    eventually(lambda: gone() == before + 1, "the client that left is noticed")
    assert len(outputs(http.post(ROUTE, json={"inputs": GOOD}))) == 1


@given(content=st.one_of(st.binary(max_size=300), st.integers(0, len(FILE) - 1).map(lambda cut: FILE[:cut])))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_bytes_are_more_than_a_bad_request(http: httpx.Client, content: bytes) -> None:
    assert http.post(ROUTE, files={"images": content}).status_code in (200, 413, 422)
    assert http.post(ROUTE, content=content, headers={"content-type": "application/json"}).status_code in (400, 422)
    for start in (b"", b"--b\r\n", part("images", "", "a").encode()):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert http.post(ROUTE, content=start + content, headers=headers).status_code in (400, 413, 422)


def test_the_service_says_that_it_takes_images(http: httpx.Client, image_edge: Service, image_large: Service) -> None:
    (served,) = http.get("/v1/models").json()["data"]
    assert (served["id"], served["task"]) == ("fashion-mnist-small", "image-classification")
    content = http.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    with httpx.Client(base_url=image_large.url) as large:
        assert "this model takes images" in refused(large.post(ROUTE, json={"inputs": "hello"}), 422)
    state = http.get("/admin/v1/status", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert state["remote"]["labels_match"] is True


def test_the_first_command_that_up_prints_works(image_edge: Service, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "shirt.png").write_bytes(FILE)
    command = f"curl -s {image_edge.url}{ROUTE} {_example(bundles / 'fashion-mnist-small', guarded=False)}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=30, check=True)
    assert len(ClassifyResponse.model_validate_json(done.stdout).outputs) == 1


def test_the_demo_says_that_it_has_no_images(image_edge: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--url", image_edge.url]) == 2
    complaint = capsys.readouterr().err
    assert "fashion-mnist-small" in complaint
    assert "-F images=@FILE" in complaint


def test_the_job_finds_its_own_decisions_in_the_service(
    tmp_path: Path, bundles: Path, image_edge: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_fashion_mnist(tmp_path)
    size = [str(bundles / f"fashion-mnist-{name}") for name in ("small", "large")]
    options = ["--data", "fashion-mnist", "--data-dir", str(tmp_path), "--endpoint", image_edge.url]
    assert main(["evaluate", size[0], "--large", size[1], *options, "--thresholds", "0.5,0.9"]) == 0
    assert "80 items a threshold" in capsys.readouterr().out


def test_the_job_sends_files_as_they_are_and_arrays_as_png(tmp_path: Path) -> None:
    data = load_dataset(str(write_tiny_images(tmp_path)), None)
    batches = list(_batches(data, 10))
    assert [len(batch) for batch in batches] == [10, 10, 4]
    sent = base64.b64decode(batches[0][0]["image"])  # type: ignore[index]
    assert sent in {path.read_bytes() for path in tmp_path.glob("test/*/*.png")}
