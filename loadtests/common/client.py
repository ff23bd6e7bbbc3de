"""An HTTP/1.1 client for load: kept-alive connections, one request at a time on each, ready bytes in, bytes out.

It reads as little of an answer as it must: the status, the content-length, the body. Ten times the pace of a general
client on the same core, and the soak needs what no general client does: half a body, a cut in the middle.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# A server may close what was idle for 5 s (uvicorn's default): a request that is sent in that moment is lost.
STALE_S = 3.0
CHUNK = 128  # connections opened at a time


class Reply(NamedTuple):
    """A whole answer; `head` is the status line and the headers."""

    status: int
    head: bytes
    body: bytes


Done = Callable[[Reply | None], None]  # None: the connection ended before the answer did


class Connection(asyncio.Protocol):
    """One connection to the pool's server."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: Any = None
        self._received = b""
        self._needed = 0  # bytes of the whole answer, once its head has been read
        self._done: Done | None = None
        self._deaf = False
        self.idle_since = 0.0
        self.open = False

    def send(self, request: bytes, done: Done) -> None:
        """Send a request; `done` is called once. It may release or close the connection, or send the next request."""
        self._done = done
        if self.open:
            self._transport.write(request)
        else:
            self._end(None)

    def write(self, part: bytes) -> None:
        """Send something that nobody waits for an answer to. The connection is good for nothing else afterwards."""
        self._deaf = True
        if not self._transport.is_closing():
            self._transport.write(part)

    def close(self) -> None:
        """End it once what was written has been sent; a request in flight is done with None."""
        self._transport.close()

    def abort(self) -> None:
        """End it now, with whatever has not been sent yet."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True
        self._pool.opened(self)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  the protocol's signature
        self.open = False
        self._pool.lost(self)
        if self._done is not None:
            self._end(None)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        received = self._received = self._received + data if self._received else data
        if not self._needed:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._needed = end + 4 + _content_length(received[: end + 2])
        if len(received) < self._needed:
            return
        split = received.find(b"\r\n\r\n") + 4
        head = received[:split]
        if b"\nconnection: close" in head:
            self.open = False
        self._received, self._needed = received[self._needed :], 0
        if self._received or self._done is None:  # bytes that nobody asked for
            self.open = False
            self._transport.abort()
            self._pool.unasked += 1
        self._end(Reply(int(head[9:12]), head, received[split : split + len(received) - split - len(self._received)]))

    def _end(self, reply: Reply | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(reply)


class Pool:
    """The open connections to one server, at most `limit`, and the idle among them; the last used is used first."""

    def __init__(self, host: str, port: int, limit: int) -> None:
        self._host, self._port = host, port
        self.limit = limit
        self.unasked = 0  # answers that nobody had asked for
        self.connected = 0  # connections that were made, since the beginning
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._gone = asyncio.Event()

    @property
    def size(self) -> int:
        """How many are open."""
        return len(self._open)

    def take(self) -> Connection | None:
        """An idle connection, or None."""
        oldest = time.monotonic() - STALE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        return connection

    async def fill(self, connections: int) -> None:
        """Open so many that the server has accepted, and keep them idle. Raises OSError."""
        alive = request_bytes("GET", "/livez")
        while connections > 0:
            opened = await asyncio.gather(*(self.connect() for _ in range(min(connections, CHUNK))))
            # The kernel says yes before the server does; more than its backlog would be put off for a second.
            answered: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
            opened[-1].send(alive, answered.set_result)
            if await answered is None:
                raise ConnectionError("the server closes new connections")
            for connection in opened:
                self.release(connection)
            connections -= CHUNK

    async def ask(self, request: bytes) -> Reply:
        """One request and its answer. Raises OSError, also when the connection ended before the answer did."""
        connection = await self.get()
        answered: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        connection.send(request, answered.set_result)
        reply = await answered
        if reply is None:
            raise ConnectionError("the connection ended before the answer did")
        self.release(connection)
        return reply

    async def get(self) -> Connection:
        """An idle connection or a new one, beyond the limit too. Raises OSError."""
        return self.take() or await self.connect()

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if connection.open:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        """Close all, and wait until they are."""
        for connection in list(self._open):
            connection.abort()
        if self._open:
            self._gone.clear()
            await self._gone.wait()
        self._idle.clear()

    def opened(self, connection: Connection) -> None:
        """Told by the connection."""
        self._open.add(connection)
        self.connected += 1

    def lost(self, connection: Connection) -> None:
        """Told by the connection."""
        self._open.discard(connection)
        if not self._open:
            self._gone.set()


def request_bytes(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, host: str = "127.0.0.1"
) -> bytes:
    """A whole request; content-length is added, content-type is JSON unless `headers` say otherwise."""
    lines = {"host": host, "content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _content_length(head: bytes) -> int:
    at = head.find(b"\ncontent-length:")
    if at < 0:
        at = head.lower().find(b"\ncontent-length:")
    if at < 0:
        return 0  # 204, or an answer without a body: none of the servers here sends any other
    return int(head[at + 16 : head.index(b"\r", at)])
