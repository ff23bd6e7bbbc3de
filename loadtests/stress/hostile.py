"""Requests that deserve a refusal, by kind: bytes in, and no answer but a refusal or a right one is right.

Deterministic by a seed. Nothing here knows the service: names come from its own OpenAPI document.
"""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 32 * 1024
MANY_PARTS = 20_000
ACCEPTED = "the most that is accepted"


@dataclass(frozen=True)
class Surface:
    """What a service shows of itself: (method, path) of every route, and the names in its documents."""

    routes: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    max_body_bytes: int

    @classmethod
    def of(cls, document: Mapping[str, Any], max_body_bytes: int) -> "Surface":
        """From an OpenAPI document."""
        routes = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
        schemas = document.get("components", {}).get("schemas", {}).values()
        names = {name for schema in schemas for name in schema.get("properties", {})}
        return cls(tuple(routes), tuple(sorted(names)), max_body_bytes)


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """One on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "host: fuzz", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


Kind = Callable[[Surface, Mapping[str, str], random.Random], Iterator[bytes]]


def schema_shaped(surface: Surface, headers: Mapping[str, str], chance: random.Random) -> Iterator[bytes]:
    """Documents of the right names and the wrong values, to every route by every method."""
    for method, path in surface.routes:
        for _ in range(20):
            body = json.dumps(_value(surface.names, chance, 4), ensure_ascii=chance.random() < 0.5)
            kind = chance.choice(("application/json", "text/plain", "application/merge-patch+json", "x"))
            named = {**headers, "content-type": kind}
            yield request(chance.choice((method, method, "POST", "PUT")), path, named, body.encode("utf-8", "replace"))


def byte_shaped(surface: Surface, headers: Mapping[str, str], chance: random.Random) -> Iterator[bytes]:
    """Right requests with bytes turned, cut, repeated and put in, heads included."""
    for method, path in surface.routes:
        right = request(method, path, {**headers, "content-type": "application/json"}, b'{"inputs":["a","b"]}')
        for _ in range(20):
            wrong = bytearray(right)
            for _ in range(chance.randint(1, 8)):
                place = chance.randrange(len(wrong))
                end = place + chance.randint(0, 12)
                wrong[place:end] = chance.choice(
                    (b"", bytes(wrong[place:end]) * 3, chance.randbytes(6), b"\r\n", b"\0")
                )
            yield bytes(wrong)


def long_heads(surface: Surface, headers: Mapping[str, str], _: random.Random) -> Iterator[bytes]:
    """Heads of as many lines, and lines as long, as pass, and a little more."""
    for method, path in surface.routes:
        for size in (HEAD_BYTES - 1_024, HEAD_BYTES + 1_024):
            yield request(method, path, {**headers, **{f"a{number}": "" for number in range(size // 10)}})
            yield request(method, path, {**headers, "x-request-id": "a" * size})
            yield request(method, f"{path}?{'a=1&' * (size // 4)}", headers)
            yield request(method, f"{path}/{'%ff' * (size // 3)}", headers)


def many_values(surface: Surface, headers: Mapping[str, str], _: random.Random) -> Iterator[bytes]:
    """As many values as a body holds, of each kind, where items, fields, parameters and images belong."""
    room = surface.max_body_bytes - 64
    values = (b"0", b"[]", b'""', b"{}", b"null", b'"a"', b"1e9", b'{"image":""}', b"[[]]")
    bodies = [b'{"inputs":[' + _many(value, room) + b"]}" for value in values]
    bodies += [b"[" + _many(value, room) + b"]" for value in values]
    bodies += [b"{" + _many(b'"a":0', room) + b"}", b'{"inputs":"a","parameters":{' + _many(b'"b":[]', room) + b"}}"]
    bodies += [b'{"inputs":' + b"[" * (room // 2) + b"]" * (room // 2 - 10) + b"}", b'{"a":' * (room // 5)]
    for body in bodies:
        yield request("POST", "/v1/classify", {**headers, "content-type": "application/json"}, body)


def long_values(surface: Surface, headers: Mapping[str, str], chance: random.Random) -> Iterator[bytes]:
    """One value as long as a body."""
    room = surface.max_body_bytes - 64
    texts = (b"a" * room, b'\\"' * (room // 2), b"\\u0041" * (room // 6), "é中🦆".encode() * (room // 9), b"\\" * room)
    bodies = [b'{"inputs":["' + text + b'"]}' for text in texts] + [b'{"inputs":"' + texts[1]]
    bodies += [b'{"inputs":' + b"9" * room + b"}", b'{"inputs":0.' + b"1" * (room - 2) + b"}", b" " * room]
    bodies += [b'{"' + b"n" * room + b'":1}', b'{"inputs":{"image":"' + b"QUFB" * (room // 4) + b'"}}']
    bodies += [chance.randbytes(room), b"\xff" * room, b"\0" * room]
    for body in bodies:
        yield request("POST", "/v1/classify", {**headers, "content-type": "application/json"}, body)


def forms(_: Surface, headers: Mapping[str, str], chance: random.Random) -> Iterator[bytes]:
    """Forms that are none, of too many parts, and with files that are no images."""
    part = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n%b\r\n'
    field = b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    bodies = [part % b"", part % chance.randbytes(100_000) * 8, (part % b"x") * MANY_PARTS, b"--b\r\n" * 100_000]
    bodies += [field % (b"parameters", b'{"a":[' + _many(b"0", 60_000) + b"]}"), (field % (b"a", b"b")) * MANY_PARTS]
    bodies += [field % (b"n" * 60_000, b""), b"--b\r\n" + b"a: b\r\n" * 50_000 + b"\r\n", b"x" * 1_000_000]
    for body in bodies:
        for kind in (
            "multipart/form-data; boundary=b",
            "multipart/form-data; boundary=b; charset=idna",
            "multipart/form-data",
        ):
            yield request("POST", "/v1/classify", {**headers, "content-type": kind}, body + b"--b--\r\n")


def most_accepted(surface: Surface, headers: Mapping[str, str], _: random.Random) -> Iterator[bytes]:
    """What a service accepts at its limits: many texts that are slow to tokenise, many labels, large images."""
    texts = ("x" * 99 + " ") * 82, "\uac00" * 8_192, "🦆" * 8_192, "!" * 8_192, "a word " * 1_170, "a" * 65_536
    for text in texts:
        items = min(256, (surface.max_body_bytes - 1_024) // (len(text.encode()) + 3))
        for parameters in ({"route": "small"}, {"top_k": 1_000}):
            body = json.dumps({"inputs": [text] * items, "parameters": parameters}, ensure_ascii=False).encode()
            yield request("POST", "/v1/classify", headers, body)
    images = _png(4_000, 4_000, alpha=True), _png(4_000, 4_000, alpha=False), _png(28, 28, alpha=False)
    for image, count in zip(images, (16, 24, 256), strict=True):
        encoded = base64.b64encode(image).decode()
        body = json.dumps({"inputs": [{"image": encoded}] * count}).encode()
        yield request("POST", "/v1/classify", headers, body)


def _png(width: int, height: int, *, alpha: bool) -> bytes:
    """Of one colour."""
    rows = (b"\0" + b"\x7f" * width * (4 if alpha else 3)) * height
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)}
    chunks |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


KINDS: Mapping[str, Kind] = {
    "documents of wrong values": schema_shaped,
    "bytes turned, cut, repeated": byte_shaped,
    "long heads": long_heads,
    "many values": many_values,
    "long values": long_values,
    "forms": forms,
    ACCEPTED: most_accepted,
}
LARGE = {"many values", "long values", "forms", ACCEPTED}


def _many(value: bytes, room: int) -> bytes:
    return b",".join([value] * (room // (len(value) + 1)))


def _value(names: Sequence[str], chance: random.Random, depth: int) -> Any:
    choice = chance.random()
    if depth and choice < 0.35:
        keys = chance.sample(names, min(len(names), chance.randint(0, 5)))
        if chance.random() < 0.5:
            keys = ["inputs", "parameters", *keys]
        return {key: _value(names, chance, depth - 1) for key in keys}
    if depth and choice < 0.5:
        return [_value(names, chance, depth - 1)] * chance.choice((0, 1, 2, 300 if depth == 1 else 3))
    return chance.choice(
        (
            *(None, True, False, 0, -1, 2**53, 10**400, 1e308, -0.0, 0.5),
            *("", "a", "\0", "\u202e", "🦆" * 100, "a" * 70_000, "auto", "large", "\ufffe"),
        )
    )
