"""One HTTP exchange with a large model's server, and what its statuses mean. Only this file knows aiohttp."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from service.errors import (
    RemoteBadAnswer,
    RemoteError,
    RemoteLimit,
    RemoteTimeout,
    RemoteUnavailable,
    StartupError,
)

# Below uvicorn's 5 s, so that it is mostly us who close an idle connection and no call meets a stale one.
KEEPALIVE_S = 4.0
RETRY_AFTER_MAX_S = 30
# Of an answer's head, with all interim answers before it (100 Continue, 103 Early Hints).
HEAD_BYTES = 64 * 1024


class TransientFailure(RemoteUnavailable):
    """A second attempt may well succeed."""


class ServerFailed(RemoteUnavailable):
    """500: the server is broken, or one of the items breaks it."""


class KeyRefused(RemoteUnavailable):
    """401 or 403: our key is missing or wrong, and no request will pass until someone mends it."""


class Rejected(RemoteBadAnswer):
    """About this request alone: its texts, its hops. Another server would say the same, and a client can provoke it."""

    provoked = True


class TooMuch(Rejected):
    """413: fewer items may pass."""


# Any other status: RemoteUnavailable from 500 up, else RemoteBadAnswer.
ERRORS_BY_STATUS: Mapping[int, type[RemoteError]] = {
    400: Rejected,
    401: KeyRefused,
    403: KeyRefused,
    413: TooMuch,
    422: Rejected,
    429: RemoteLimit,
    500: ServerFailed,
    502: TransientFailure,
    503: TransientFailure,
    504: RemoteTimeout,
    508: Rejected,
}


def trusted_roots(ca_file: Path | None) -> ssl.SSLContext:
    """What an https server's certificate is verified against: the system's roots, or `ca_file` instead of them.

    Raises StartupError when the file cannot be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = "holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise StartupError(f"GATEKEEPER_REMOTE_CA_FILE: {ca_file}: {reason}") from error


class HttpRequest(NamedTuple):
    """One request to a server.

    repeats: headers that an answer must have as they were sent, if it has them. A late answer on a kept-alive
    connection would be taken for this request's: an id tells them apart.
    error_bytes: of the body of an answer that is no 200, how much is read.
    private: nothing of the answer goes into an error, which a log may repeat.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    method: Literal["GET", "POST"] = "POST"
    repeats: tuple[str, ...] = ()
    error_bytes: int = 0
    private: bool = False


class HttpAnswer(NamedTuple):
    """The answer, of any status; `headers` are found in any case of letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_status(answer: HttpAnswer) -> None:
    """Raise the RemoteError that a status means; for 200 there is none."""
    status = answer.status
    if status == 200:
        return
    kind = ERRORS_BY_STATUS.get(status, RemoteUnavailable if status >= 500 else RemoteBadAnswer)
    detail = f"the large model answered {status}"
    if issubclass(kind, RemoteBadAnswer):
        raise kind(detail, fault="status")
    wait_s = _retry_after_s(answer.headers.get("retry-after")) if kind is RemoteLimit else None
    raise kind(detail, retry_after_s=wait_s)


class HttpClient:
    """An HTTP client of one server. Its pooled connections open with the first request.

    `headers` go with every request. At most `max_connections` are open in the pool, and as many besides it for requests
    that ask for a fresh one: others of the pool may be as stale as the one that failed. `tls` is for https alone.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        max_connections: int,
        connect_timeout_s: float,
        max_response_bytes: int,
    ) -> None:
        self._base_url = base_url
        self._headers = headers
        self._tls = tls
        self._max_connections = max_connections
        # `sock_connect` bounds the TCP and TLS handshakes, `connect` DNS and the wait for the pool as well. The caller
        # bounds the whole, reading and writing included.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s)
        self._max_response_bytes = max_response_bytes
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._closed = False

    async def exchange(self, request: HttpRequest, *, fresh: bool = False) -> HttpAnswer:
        """The answer to this request, with the whole body of a 200. Raises RemoteError if there is none."""
        session = self._session(fresh)
        try:
            response = await session.request(
                request.method,
                self._base_url + request.path,
                headers=request.headers,
                data=request.body,
                allow_redirects=False,
            )
        except aiohttp.ClientError as error:
            raise _translated(error) from error
        try:
            for name in request.repeats:
                if response.headers.get(name, sent := request.headers[name]) != sent:
                    raise RemoteBadAnswer("the large model answered another request", fault="request-id")
            if response.status != 200:
                return HttpAnswer(response.status, response.headers, await _start(response, request.error_bytes))
            if response.headers.get("content-encoding", "identity") != "identity":
                detail = "the large model's answer is encoded, which was not asked for"
                raise RemoteBadAnswer(detail, fault="encoding")
            return HttpAnswer(200, response.headers, await self._read(response, private=request.private))
        except aiohttp.ClientError as error:
            raise RemoteBadAnswer("the large model's answer broke off", fault="broken-off") from error
        finally:
            response.release()  # which closes the connection unless the answer has been read to its end

    async def aclose(self) -> None:
        """Close every connection. Requests on their way fail, later ones raise RemoteUnavailable."""
        self._closed = True
        for session in (self._pooled, self._fresh):
            if session is not None:
                await session.close()

    def _session(self, fresh: bool) -> aiohttp.ClientSession:
        if self._closed:
            raise RemoteUnavailable("the way to the large model is closed")
        if fresh:
            self._fresh = self._fresh or self._open(force_close=True, keepalive_timeout=None)
            return self._fresh
        self._pooled = self._pooled or self._open(force_close=False, keepalive_timeout=KEEPALIVE_S)
        return self._pooled

    def _open(self, *, force_close: bool, keepalive_timeout: float | None) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            force_close=force_close,
            keepalive_timeout=keepalive_timeout,
            ssl=self._tls or True,
        )
        # aiohttp has no public place for it; a test holds that it is in effect.
        wire_bytes = HEAD_BYTES + self._max_response_bytes * 9 // 8  # no real server's chunks are of a few bytes
        handler = partial(_BoundedHandler, wire_bytes, loop=connector._loop)  # noqa: SLF001
        connector._factory = handler  # type: ignore[assignment]  # noqa: SLF001
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout,
            auto_decompress=False,
            # No cookies: one set by the remote must not travel with the next client's request. And no proxy or .netrc
            # of the machine's.
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def _read(self, response: aiohttp.ClientResponse, *, private: bool) -> bytes:
        content, body = response.content, bytearray()
        while chunk := await content.readany():
            body += chunk
            if len(body) > self._max_response_bytes:
                detail = f"the large model's answer is longer than {self._max_response_bytes} bytes"
                excerpt = "" if private else bytes(body[:200]).decode(errors="backslashreplace")
                raise RemoteBadAnswer(detail, fault="length", excerpt=excerpt)
        return bytes(body)


class _BoundedHandler(ResponseHandler):
    """aiohttp's connection, with a bound on the bytes of an answer as they are on the wire.

    aiohttp reads any number of interim answers, for as long as they come, and counts no byte of a chunk's header.
    """

    def __init__(self, max_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._max_bytes = max_bytes
        self._received_bytes = 0
        self._interim = True

    def set_response_params(self, **parameters: Any) -> None:
        """A request is about to be answered."""
        self._received_bytes = 0
        self._interim = True
        super().set_response_params(**parameters)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """An answer's head, interim or not."""
        self._interim = data[0].code < 200
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received_bytes += len(data)
        if self._received_bytes > (HEAD_BYTES if self._interim else self._max_bytes) and self.transport is not None:
            self._buffer.clear()  # of interim answers there may be thousands
            self.transport.close()
            self.set_exception(HttpProcessingError(code=400, message="an answer without end"))
            if self._payload is not None:
                self._payload.set_exception(aiohttp.ClientPayloadError("an answer without end"))


def _translated(error: aiohttp.ClientError) -> RemoteError:
    """What an error before the answer's head means."""
    match error:
        case aiohttp.ServerTimeoutError():
            return RemoteUnavailable("no connection to the large model in time")
        case aiohttp.ClientResponseError():
            return RemoteBadAnswer("the large model's answer is not HTTP", fault="http")
        case aiohttp.ClientSSLError():
            return RemoteUnavailable("no TLS connection to the large model")
        case aiohttp.ClientConnectionError():
            return TransientFailure("the connection to the large model was refused or lost")
        case _:
            return RemoteUnavailable("the large model cannot be reached")


async def _start(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """Of an error's body, for what it tells: broken off, it tells less."""
    body = bytearray()
    with suppress(aiohttp.ClientError):
        while len(body) < most_bytes and (chunk := await response.content.readany()):
            body += chunk
    return bytes(body[:most_bytes])


def _retry_after_s(value: str | None) -> int | None:
    """Seconds or a date, as RFC 9110 has it; None if it is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return min(int(value[:9]), RETRY_AFTER_MAX_S)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    left_s = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0, min(int(left_s) + 1, RETRY_AFTER_MAX_S))
