"""Images that cost far more than their bytes, and clients that send many: another's single image is answered.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_images.py -k many
"""

import io
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import PIL.Image
import pytest
from support.faults import Row
from support.processes import Service, spawn_edge, stopping
from support.redis_server import free_port

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

SINGLES = 30
FLOODERS = 8
ROUTE = "/v1/classify"
SMALL = {"route": "small"}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("edge")
    nobody = f"http://127.0.0.1:{free_port()}"
    edge = spawn_edge(directory, nobody, BUNDLE=str(bundles / "fashion-mnist-small"))
    with stopping(edge):
        edge.wait_ready(90.0)
        yield edge


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def run_length_bmp() -> bytes:
    """1 kB that Pillow unpacks in Python, pixel by pixel, to 16 million."""
    palette, data = bytes(1024), b"\1\0\0\0\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 50_000, 320, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + header + palette + data


def profiles_png() -> bytes:
    """1,000 colour profiles of a megabyte each in 1 MB."""
    content = encoded(PIL.Image.new("L", (28, 28), 77), "PNG")
    profile = b"iCCP" + b"icc\0\0" + zlib.compress(bytes(1_000_000), 9)
    part = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    padding = b"prVt" + bytes(600)  # so that parts are not too many for the file's size
    pad = struct.pack(">I", len(padding) - 4) + padding + struct.pack(">I", zlib.crc32(padding))
    return content[:33] + (part + pad) * 1_000 + content[33:]


def many_scans_jpeg() -> bytes:
    content = encoded(PIL.Image.new("L", (4_000, 4_000), 77), "JPEG", progressive=True)
    last, scans = content.rindex(b"\xff\xda"), content.count(b"\xff\xda")
    return content[:last] + content[last:-2] * (65 - scans) + content[-2:]


class Flood:
    """Clients that send one request again and again; `answers` counts what they got."""

    def __init__(self, url: str, files: list[bytes]) -> None:
        self.answers: Counter[int] = Counter()
        self.problems: list[str] = []
        self._url = url
        self._files = [("images", ("a", content)) for content in files]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(FLOODERS)]

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as client:
            while not self._stopping.is_set():
                answer = client.post(ROUTE, files=self._files, data=SMALL)
                self.answers[answer.status_code] += 1
                if answer.status_code == 429 and not answer.headers.get("retry-after", "").isdigit():
                    self.problems.append(answer.text)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()


CASES = {
    "run-length": (lambda: [run_length_bmp()] * 256, {422, 429}, "256 run-length BMPs of 1 kB in each request"),
    "many-scans": (
        lambda: [many_scans_jpeg()] * 200,
        {413, 429},
        "200 JPEGs of 64 scans and 16 million pixels in each",
    ),
    "lossless-webp": (
        lambda: [encoded(PIL.Image.new("RGB", (4_000, 4_000)), "WEBP", lossless=True)] * 256,
        {413, 429},
        "256 lossless WebPs of 16 million pixels, 38 bytes each, in each request",
    ),
    "profiles": (lambda: [profiles_png()] * 6, {200, 429}, "PNGs of 1,000 colour profiles of 1 MB"),
    "transparent": (
        lambda: [encoded(PIL.Image.new("RGBA", (2_000, 2_000), (9, 9, 9, 99)), "PNG")] * 10,
        {200, 429},
        "10 transparent PNGs of 4 million pixels in each request: what is accepted",
    ),
}
WORDS = {413: "413", 422: "422", 429: "429 with Retry-After", 200: "answered"}


@pytest.mark.parametrize("name", CASES)
def test_another_clients_single_image_is_answered(name: str, edge: Service, fault: Row) -> None:
    files, expected, words = CASES[name]
    single = [("images", ("a", encoded(PIL.Image.new("L", (28, 28), 90), "PNG")))]
    flood = Flood(edge.url, files())
    with httpx.Client(base_url=edge.url, timeout=60.0) as client:
        with flood.running():
            answers = [client.post(ROUTE, files=single, data=SMALL) for _ in range(SINGLES)]
        assert client.get("/livez").status_code == 200
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert set(flood.answers) <= expected, flood.answers
    assert flood.problems == []
    fault.count(SINGLES)
    got = " or ".join(WORDS[status] for status in sorted(expected))
    fault.tell(f"{FLOODERS} clients: {words}", f"others nothing; these {got}")
