"""Calls to a running edge, or to whatever stands at that address: an answer of the expected shape, or one line."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from models.errors import InputError
from models.files import read_bounded

CALL_S = 60.0  # for a whole answer, its last byte included
MOST_ANSWER_BYTES = 64 * 1024 * 1024
SHOWN_CHARS = 300  # of an answer that is none
KEY_VARIABLE = "GATEKEEPER_API_KEY"
MOST_KEY_BYTES = 1024
HOW_TO_GIVE_A_KEY = f"give one in {KEY_VARIABLE}, or in a file with --api-key-file"

Shape = TypeVar("Shape", bound=BaseModel)


class NotAllowed(InputError):
    """The key lacks a scope."""


def api_key(file: Path | None) -> str | None:
    """The key to send: from the file, else from its variable; None: none. Raises InputError for what is no key."""
    where = str(file) if file is not None else KEY_VARIABLE
    try:
        given = os.environ.get(KEY_VARIABLE, "") if file is None else read_bounded(file, MOST_KEY_BYTES).decode("ascii")
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        given = "\n"
    key = given.strip()
    if not key and file is None:
        return None
    if not re.fullmatch(r"[!-~]{1,512}", key):  # which is not repeated: it may be another secret
        raise InputError(f"{where} holds no API key: one line, gk_NAME_SECRET")
    return key


def edge_client(url: str, option: str, key: str | None = None) -> httpx.AsyncClient:
    """No proxy of the environment stands between. Raises InputError for what is no URL."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        roots = httpx.create_ssl_context()  # those of SSL_CERT_FILE, where it is set
        client = httpx.AsyncClient(base_url=url, headers=headers, verify=roots, timeout=None, trust_env=False)  # noqa: S113  a call has CALL_S
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
    if response.status_code == 401:
        refused = "does not take this API key" if "authorization" in client.headers else "asks for an API key"
        raise InputError(f"{client.base_url} {refused}: {HOW_TO_GIVE_A_KEY}")
    if response.status_code == 403:
        raise NotAllowed(f"{client.base_url}: {method} {path} answered 403: {_detail(content) or text}")
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


def _detail(content: bytes) -> str | None:
    """What a problem document says, and which scope is missing."""
    try:
        detail = str(json.loads(content)["detail"])[:SHOWN_CHARS]
    except (ValueError, LookupError, TypeError):
        return None
    scope = (
        "; `gatekeeper keys new NAME --scopes classify,override` makes one that has it" if "override" in detail else ""
    )
    return detail + scope
