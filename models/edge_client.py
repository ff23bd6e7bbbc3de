"""Calls to a running edge, or to whatever stands at that address: an answer of the expected shape, or one line."""

import asyncio
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from models.errors import InputError

CALL_S = 60.0  # for a whole answer, its last byte included
MOST_ANSWER_BYTES = 64 * 1024 * 1024
SHOWN_CHARS = 300  # of an answer that is none

Shape = TypeVar("Shape", bound=BaseModel)


def edge_client(url: str, option: str) -> httpx.AsyncClient:
    """No proxy of the environment stands between. Raises InputError for what is no URL."""
    try:
        roots = httpx.create_ssl_context()  # those of SSL_CERT_FILE, where it is set
        client = httpx.AsyncClient(base_url=url, verify=roots, timeout=None, trust_env=False)  # noqa: S113  a call has CALL_S
        if client.base_url.scheme in ("http", "https") and client.base_url.host:
            return client
    except (httpx.InvalidURL, ValueError):
        pass
    raise InputError(f"{option} takes a URL, such as http://127.0.0.1:8000, not {url!r}")


async def call(
    client: httpx.AsyncClient, method: str, path: str, body: Any, shape: type[Shape], hint: str = ""
) -> Shape:
    """One exchange. Raises InputError for whatever is not an answer of that shape; hint: what to do without any."""
    try:
        async with asyncio.timeout(CALL_S):
            response, content = await _exchange(client, method, path, body)
    except TimeoutError:
        raise InputError(f"{client.base_url}: {method} {path} was not answered within {CALL_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{client.base_url} does not answer: {error or type(error).__name__}{hint}") from error
    text = content[: 4 * SHOWN_CHARS].decode("utf-8", "replace")[:SHOWN_CHARS]
    if response.is_redirect:
        text = f"go to {response.headers['location']}; give that address if it is the edge's"
    if response.status_code != 200:
        raise InputError(f"{client.base_url}: {method} {path} answered {response.status_code}: {text}")
    try:
        return shape.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise InputError(
            f"{client.base_url}: {method} {path} answered what no Gatekeeper edge does "
            f"({where}: {first['msg']}): {text}"
        ) from None


async def _exchange(client: httpx.AsyncClient, method: str, path: str, body: Any) -> tuple[httpx.Response, bytes]:
    """The answer, and its body as it came: nothing is unpacked."""
    async with client.stream(method, path, json=body, headers={"accept-encoding": "identity"}) as response:
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MOST_ANSWER_BYTES:
                most = MOST_ANSWER_BYTES // 1024**2
                raise InputError(f"{client.base_url}: {method} {path} answered more than {most} MiB")
    return response, bytes(content)
