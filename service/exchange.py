"""One HTTP exchange with the large model, and what its errors mean. Only this file knows those of httpx and aiohttp.

The way out is httpx-aiohttp's transport under httpx's own request and response objects, without httpx.AsyncClient on
top: there is then no cookie jar, redirect, proxy or default header to switch off, and a call costs 40 % less CPU.
"""

import ssl
from collections.abc import Mapping
from contextlib import aclosing

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable


class Passing(RemoteUnavailable):
    """A second attempt may well succeed."""


class Rejected(RemoteBadAnswer):
    """About this request alone: its texts, its hops. A client can provoke it at will: the breaker does not count it."""


# Any other status: RemoteUnavailable from 500 up, else RemoteBadAnswer.
ERRORS_BY_STATUS: Mapping[int, type[RemoteError]] = {
    400: Rejected,
    413: Rejected,
    422: Rejected,
    429: RemoteLimit,
    502: Passing,
    503: Passing,
    504: RemoteTimeout,
    508: Rejected,
}


def open_transport(base: httpx.URL, max_connections: int, keepalive_s: float | None) -> httpx.AsyncBaseTransport:
    """A way out that keeps idle connections for `keepalive_s`, or none at all. It opens with the first request."""
    # Loading the trusted roots takes 30 ms; over plain HTTP an empty store is never looked at.
    tls = httpx.create_ssl_context() if base.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def open_session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=max_connections, keepalive_timeout=keepalive_s, force_close=keepalive_s is None, ssl=tls
        )
        # No cookies: one set by the remote must not travel with the next client's request. And no proxy or .netrc of
        # the machine's.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    return AiohttpTransport(verify=tls, client=open_session)


async def exchange(request: httpx.Request, transport: httpx.AsyncBaseTransport, max_bytes: int) -> bytes:
    """The whole body of the 200 that answers this request, at most max_bytes. Raises RemoteError."""
    try:
        response = await transport.handle_async_request(request)
    except (httpx.HTTPError, aiohttp.ClientError) as error:
        raise _translated(error) from error
    try:
        async with aclosing(response):
            _check_head(request, response)
            return await _read(response, max_bytes)
    except (httpx.HTTPError, aiohttp.ClientError) as error:
        raise RemoteBadAnswer("the large model's answer broke off") from error


def _translated(error: Exception) -> RemoteError:
    """What an error before the answer's head means.

    httpx-aiohttp calls refused, reset and unknown names ConnectTimeout alike: aiohttp's own error, the cause, tells.
    """
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    match cause:
        case aiohttp.ServerTimeoutError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return RemoteUnavailable("no connection to the large model in time")
        case httpx.TimeoutException():
            return RemoteTimeout("the large model did not answer in time")
        case aiohttp.ClientResponseError() | httpx.ProtocolError():
            return RemoteBadAnswer("the large model's answer is not HTTP")
        case aiohttp.ClientSSLError():
            return RemoteUnavailable("no TLS connection to the large model")
        case aiohttp.ClientConnectionError() | httpx.NetworkError():
            return Passing("the connection to the large model was refused or lost")
        case _:
            return RemoteUnavailable("the large model cannot be reached")


def _check_head(request: httpx.Request, response: httpx.Response) -> None:
    # A late answer on a kept-alive connection would be taken for this request's: the id tells them apart.
    sent, answered = request.headers.get("x-request-id"), response.headers.get("x-request-id")
    if sent is not None and answered not in (None, sent):
        raise RemoteBadAnswer("the large model answered another request")
    status = response.status_code
    if status != httpx.codes.OK:
        default = RemoteUnavailable if status >= httpx.codes.INTERNAL_SERVER_ERROR else RemoteBadAnswer
        raise ERRORS_BY_STATUS.get(status, default)(f"the large model answered {status}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise RemoteBadAnswer("the large model's answer is encoded, which was not asked for")


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise RemoteBadAnswer(f"the large model's answer is longer than {max_bytes} bytes")
    return bytes(body)
