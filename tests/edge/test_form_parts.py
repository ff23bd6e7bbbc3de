"""Files in a form as clients send them: with a filename, with `filename*`, without; and text where a file belongs."""

import io

import httpx
import PIL.Image
import pytest
from support.processes import Service

BOUNDARY = "----a"


def png() -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("L", (28, 28), 200).save(stream, "PNG")
    return stream.getvalue()


def send(edge: Service, disposition: str, content: bytes, more: str = "") -> httpx.Response:
    part = f"--{BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n{more}\r\n".encode()
    body = part + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return httpx.post(f"{edge.url}/v1/classify", content=body, headers=headers, timeout=20.0)


@pytest.mark.parametrize(
    "disposition",
    [
        'name="images"',
        "name=images",
        'name="images"; filename=""',
        'name="image"; filename="blob"',
        "name=\"images\"; filename*=utf-8''sch%C3%B6n.png",
        "name=\"images\"; filename*=UTF-8'en'shirt.png; filename=shirt.png",
        "filename*=utf-8''a.png; name=\"images\"",
        'name="images"; filename="a;b\\".png"',
    ],
)
@pytest.mark.parametrize("more", ["", "content-type: image/png\r\n", "content-type: application/octet-stream\r\n"])
def test_a_file_is_one_whatever_its_name(image_edge: Service, disposition: str, more: str) -> None:
    answer = send(image_edge, disposition, png(), more)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["outputs"]) == 1


@pytest.mark.parametrize("content", [b"shirt.png", "schön.png".encode(), b"", b"x" * 100_000])
def test_text_where_a_file_belongs_is_told(image_edge: Service, content: bytes) -> None:
    """Such as `-F images=shirt.png`, without the @."""
    answer = send(image_edge, 'name="images"', content)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "images: must be a file, not text; with curl: -F images=@FILE"


@pytest.mark.parametrize("disposition", ["", "filename=a.png", 'name="other"; filename="a.png"', 'name="other"'])
def test_a_part_that_belongs_nowhere_is_one_line(image_edge: Service, disposition: str) -> None:
    answer = send(image_edge, disposition, png())
    assert answer.status_code in (400, 422)
    assert "\n" not in answer.json()["detail"]
