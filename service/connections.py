"""Bounds on connections that uvicorn has not: how many there are, how long a client may take, how long a header may be.

uvicorn's own timer covers only the pause after an answer. Without these bounds half a header is kept for ever, a
header line may be 200 MB, and at the limit of open files new clients, health checks and calls to the large model are
cut off without a word.
"""

import asyncio
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from service.protocol import MendedProtocol
from service.shedding import shed

SWEEP_S = 0.25
IDLE_S = 1.0
LEAST_CONNECTIONS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at once; seconds for the client's next move; bytes of a request line with its headers."""

    max_connections: int
    client_timeout_s: float
    max_header_bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer given before there is a request: constant, since it is given when there is too much to do."""

    kind: str
    answer: bytes


def _refusal(status: int, kind: str, title: str, detail: str, header: bytes = b"") -> Refusal:
    body = to_json({"type": f"urn:gatekeeper:problem:{kind}", "title": title, "status": status, "detail": detail})
    head = STATUS_LINE[status] + b"content-type: application/problem+json\r\nconnection: close\r\n" + header
    return Refusal(kind, head + b"content-length: %d\r\n\r\n" % len(body) + body)


TOO_SLOW = _refusal(408, "client-timeout", "The request did not arrive in time", "send the whole request at once")
HEADER_TOO_LARGE = _refusal(431, "header-too-large", "The headers are too long", "send shorter headers")
TOO_MANY = _refusal(
    503, "too-many-connections", "Too many connections", "keep fewer connections open", b"retry-after: 1\r\n"
)


class Connections:
    """All connections of a server, and since when those wait whose client has the next move.

    A client that takes longer than client_timeout_s over its move is told 408 and closed. When there are more than
    max_connections, one that waits gives way: the oldest of those that were never answered, else the oldest that has
    been idle for IDLE_S; if there is none, the new one is refused. `count(kind)` is told of each that was closed in
    the middle of a request.

    While `overloaded()` gives seconds, a classify request is told them before it is parsed (shedding.py).
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        count: Callable[[str], None],
        *,
        overloaded: Callable[[], int | None] = lambda: None,
        count_shed: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits
        self.overloaded = overloaded
        self._count_shed = count_shed
        self._count = count
        self._open = 0
        # Each with its deadline, the longest waiting first.
        self._new: dict[Connection, float] = {}
        self._answered: dict[Connection, float] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "Connection":
        """What uvicorn calls for each connection."""
        return Connection(self, config, server_state, app_state, _loop)

    def opened(self, connection: "Connection") -> None:
        """Make room for it, or refuse it."""
        self._open += 1
        if self._open > self.limits.max_connections:
            idlest = self._idlest(connection.loop.time())
            if idlest is None:
                connection.refuse_unread()
                self.refuse(connection, TOO_MANY)
                return
            self.refuse(idlest, TOO_MANY)
        self.wait(connection)
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)

    def closed(self, connection: "Connection") -> None:
        self._open -= 1
        self.work(connection)

    def shed(self, connection: "Connection") -> None:
        """It has been told that there is too much to do."""
        self._count_shed()
        self.wait(connection)

    def wait(self, connection: "Connection") -> None:
        """It is the client's move, from now on."""
        self.work(connection)
        waiting = self._answered if connection.answered else self._new
        waiting[connection] = connection.loop.time() + self.limits.client_timeout_s

    def work(self, connection: "Connection") -> None:
        """It is ours."""
        if self._answered.pop(connection, None) is None:
            self._new.pop(connection, None)

    def refuse(self, connection: "Connection", refusal: Refusal) -> None:
        """Answer the request that has begun, if any, and close."""
        self.work(connection)
        if connection.close(refusal):
            self._count(refusal.kind)

    def _idlest(self, now: float) -> "Connection | None":
        for connection in self._new:
            return connection
        # A client that has just been answered may be sending its next request: cut off then, it would be lost.
        latest = now - IDLE_S + self.limits.client_timeout_s
        for connection, deadline in self._answered.items():
            return connection if deadline <= latest else None
        return None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for waiting in (self._new, self._answered):
            while (first := next(iter(waiting), None)) is not None and waiting[first] <= now:
                self.refuse(first, TOO_SLOW)
        self._sweeping = loop.call_later(SWEEP_S, self._sweep, loop) if self._open else None


class Connection(MendedProtocol):
    """uvicorn's connection, which tells `connections` whose move it is and counts the bytes of its headers.

    Of a request that arrives in one piece this costs two calls more. `scope` belongs to the newest request that has
    begun, `cycle` to the newest whose headers are whole; while they differ, headers are on their way.
    """

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.answered = False
        self._all = connections
        self._max_header_bytes = connections.limits.max_header_bytes
        self._header_bytes = 0  # since a body or whole headers came: request line, headers, trailers, sizes of chunks
        self._refused_unread = False

    @property
    def _in_head(self) -> bool:
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def refuse_unread(self) -> None:
        """Take it that a request is on its way, though nothing of it has been read."""
        self._refused_unread = True

    def close(self, refusal: Refusal) -> bool:
        """Close; True if that cuts off a request, which is then answered, or an answer that is not being read."""
        if self.flow.write_paused:  # closing would wait for the answer to be read
            self.transport.abort()
            return True
        cycle = self.cycle
        if self._in_head or self._refused_unread:
            cut_off = cycle is None or cycle.response_complete
        else:
            cut_off = cycle is not None and cycle.more_body and not cycle.response_started
        if cut_off:
            self.transport.write(refusal.answer)
        self.transport.close()
        return cut_off

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._all.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._shed(data):
            return
        scope, cycle = self.scope, self.cycle
        owing, body_bytes = (False, 0) if cycle is None else (cycle.more_body, len(cycle.body))
        if len(data) > self._max_header_bytes and self._header_too_large(data):
            return
        super().data_received(data)
        new = self.cycle
        if new is not cycle or (owing and not self._in_head and self._got_body(body_bytes)):
            self._header_bytes = 0
        else:
            self._header_bytes += len(data)
            if self._header_bytes > self._max_header_bytes and not self.transport.is_closing():
                self._all.refuse(self, HEADER_TOO_LARGE)
                return
        if self.scope is not scope or new is not cycle or (owing and not new.more_body):
            self._turn()

    def _shed(self, data: bytes) -> bool:
        """Refuse a request that comes while there is too much to do, if nothing else is under way here."""
        retry_after_s = self._all.overloaded()
        cycle = self.cycle
        if retry_after_s is None or self.flow.write_paused or self._in_head:
            return False
        if cycle is not None and (cycle.more_body or not cycle.response_complete):
            return False
        answer = shed(data, retry_after_s)
        if answer is None:
            return False
        self._unset_keepalive_if_required()
        self.transport.write(answer)
        self.answered = True
        self._all.shed(self)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.answered = True
        self._turn()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.wait(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._turn()

    def _header_too_large(self, data: bytes) -> bool:
        """Refuse a piece that has too much of a header in itself, before it is parsed."""
        cycle = self.cycle
        in_body = cycle is not None and cycle.more_body and not self._in_head
        if in_body or data.find(b"\r\n\r\n", 0, self._max_header_bytes) >= 0:
            return False
        self.refuse_unread()
        self._all.refuse(self, HEADER_TOO_LARGE)
        return True

    def _got_body(self, bytes_before: int) -> bool:
        """Whether the last piece had some of the body, or of one that is no longer wanted."""
        cycle = self.cycle
        return not cycle.more_body or cycle.response_complete or len(cycle.body) > bytes_before

    def _turn(self) -> None:
        """Whose move it is: ours while a whole request is unanswered, but not while an answer is not being read."""
        if self.flow.write_paused:
            return  # waiting since then
        cycle = self.cycle
        unanswered = self.pipeline or (cycle is not None and not cycle.response_complete and not cycle.more_body)
        if unanswered or self.transport.is_closing():
            self._all.work(self)
        else:
            self._all.wait(self)


def room_for(wanted: int, other_files: int) -> int:
    """How many connections fit under the limit of open files, which is raised as far as it may be.

    other_files: what the process needs besides, calls to the large model among them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + other_files
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = max(LEAST_CONNECTIONS, soft - other_files)
    logger.warning("few open files are allowed: fewer connections", extra={"files": soft, "connections": room})
    return room
