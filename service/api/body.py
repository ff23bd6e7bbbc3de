"""Read a request's body within its limit, and parse it.

FastAPI's own max_body_size answers in plain text and before the request has its id; our errors are problems. Plain
ASGI, because Starlette's Request and Headers would cost the hot route more than parsing does.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import BytesIO
from typing import Any

from pydantic_core import ErrorDetails
from starlette.types import Receive, Scope

from service.bounded_json import DoesNotFit, Model, TooManyValues, parse
from service.errors import ClientGone, InvalidRequest, MalformedRequest, TooLarge, UnsupportedMediaType
from service.server.intake import Arriving, Intake, no_room

Headers = dict[bytes, bytes]
SMALL_DOCUMENT = 256  # values in a body that lists no items
MAX_NAME_CHARS = 100
MAX_LENGTH_DIGITS = 18
UNION_TAGS = frozenset({"text", "texts", "one_image", "more_images"})


def headers_of(scope: Scope) -> Headers:
    """By name in lower case; RequestMiddleware has made them."""
    headers: Headers = scope["gatekeeper.headers"]
    return headers


async def read_body(headers: Headers, receive: Receive, max_bytes: int, intake: Intake) -> bytes:
    """The whole body.

    Raises TooLarge (unread where its length is announced), UnsupportedMediaType, ClientGone or Overloaded.
    """
    _check_headers(headers, max_bytes)
    chunk, more = await _next_chunk(receive)
    if not more:  # nearly always
        _check_size(len(chunk), max_bytes)
        return chunk
    whole = BytesIO()  # which gives what it holds without a copy
    async for piece in _chunks(chunk, receive, max_bytes, intake):
        whole.write(piece)
    return whole.getvalue()


async def body_chunks(
    headers: Headers, receive: Receive, max_bytes: int, intake: Intake
) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises as read_body does."""
    _check_headers(headers, max_bytes)
    chunk, more = await _next_chunk(receive)
    if not more:
        _check_size(len(chunk), max_bytes)
        yield chunk
        return
    async with aclosing(_chunks(chunk, receive, max_bytes, intake)) as chunks:
        async for piece in chunks:
            yield piece


async def _chunks(first: bytes, receive: Receive, max_bytes: int, intake: Intake) -> AsyncGenerator[bytes, None]:
    """A body of several pieces, of which the first is there."""
    body, chunk, more = Arriving(), first, True
    try:
        while True:
            intake.take(body, len(chunk))
            _check_size(body.bytes, max_bytes)
            yield chunk
            if not more:
                return
            chunk, more = await _next_chunk(receive)
    except asyncio.CancelledError:
        if body.gave_way():
            raise no_room() from None  # in no variable: error and frame would keep the body until a collection
        raise
    finally:
        intake.release(body)


async def _next_chunk(receive: Receive) -> tuple[bytes, bool]:
    """(bytes, whether there are more)."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left in the middle of its body")
    return message.get("body", b""), message.get("more_body", False)


def _check_headers(headers: Headers, max_bytes: int) -> None:
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("send the body as it is, without content-encoding")
    announced = headers.get(b"content-length", b"0")
    # Of thousands of digits, zeros in front included, Python makes no number.
    digits = announced.lstrip(b"0") or b"0"
    if not digits.isdigit() or len(digits) > MAX_LENGTH_DIGITS or int(digits) > max_bytes:
        told = announced.decode("latin-1")[:20]
        raise TooLarge(f"the body has {told} bytes and this service takes {max_bytes:,}: send less")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLarge(f"the body has more than the {max_bytes:,} bytes that this service takes: send less")


def parse_json(
    model: type[Model],
    body: bytes,
    *,
    max_values: int = SMALL_DOCUMENT,
    advice: str = "send less",
    of_base64: bool = False,
) -> Model:
    """The body as that document.

    Raises TooLarge (more than max_values values: not parsed, the caller gets the advice), MalformedRequest (not JSON)
    or InvalidRequest (JSON, but not the contract).
    """
    try:
        return parse(model, body, max_values, of_base64=of_base64)
    except TooManyValues:
        raise TooLarge(f"the body holds more than {max_values:,} values: {advice}") from None
    except DoesNotFit as error:
        if error.is_no_json:
            raise MalformedRequest(f"the body cannot be read as JSON in UTF-8: {error.errors[0]['msg']}") from None
        raise invalid(error.errors) from None


def invalid(details: list[ErrorDetails] | list[dict[str, Any]]) -> InvalidRequest:
    """What pydantic found wrong: the first in words, all of them in `errors`."""
    first = details[0]
    # Without the name of the union's branch: `inputs.texts.0` is no place in anybody's request.
    parts = [_cut(part) for part in first["loc"] if part not in UNION_TAGS]
    where = ".".join(map(str, parts)) or "the body"
    return InvalidRequest(
        f"{where}: {first['msg']}",
        errors=[{**entry, "loc": [_cut(part) for part in entry["loc"]]} for entry in details],
    )


def _cut(part: Any) -> Any:
    """A name that the caller made up may be a megabyte long."""
    return f"{part[:MAX_NAME_CHARS]}..." if isinstance(part, str) and len(part) > MAX_NAME_CHARS else part
