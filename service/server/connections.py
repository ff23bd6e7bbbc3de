"""Bounds that uvicorn lacks: how many connections there are, how long a client may take, how long a header may be.

uvicorn's own timer covers only the pause after an answer. Without these bounds half a header is kept for ever, a
header line may be 200 MB, and at the limit of open files new clients, health checks and calls to the large model are
cut off without a word.

And two ends that uvicorn has not. A connection that is closed while its client still sends is reset by the kernel, and
the answer lost with it: here it lingers, half-closed, and what still comes is dropped. A client that closes its own
half after its last request, as `nc -N` does, is answered: see `Connection.eof_received`.

One file because each bound of a connection reads what the others keep of it.
"""

import asyncio
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pydantic_core import to_json
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from service.server.protocol import MendedProtocol
from service.server.shedding import shed

SWEEP_S = 0.25
IDLE_S = 1.0
# A connection lingers while bytes come, no further apart than that, for client_timeout_s and so many bytes at the most:
# those that the request has announced, or a few where it has not.
LINGER_S = 2.0
LINGER_ANNOUNCED_BYTES = 64 * 1024 * 1024  # twice what a body of images may have by default
LINGER_BYTES = 8 * 1024 * 1024
MOST_LINGERING = 64  # above, the one that has been silent longest is closed
# A client that has closed its half is asked so long after it, and then after the last time, whether it is still there.
PROBES_S = (0.05, 0.05, 0.9)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
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
        self._lingering: dict[Connection, float] = {}
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
        if self._open - len(self._lingering) > self.limits.max_connections:
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
        self._lingering.pop(connection, None)

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

    def linger(self, connection: "Connection") -> None:
        """It is to be closed when its client has stopped sending, and does not count among max_connections."""
        self.work(connection)
        self._lingering.pop(connection, None)
        self._lingering[connection] = connection.loop.time() + LINGER_S
        if len(self._lingering) > MOST_LINGERING:
            self._cut_silent()

    def _cut_silent(self) -> None:
        silent = next(iter(self._lingering))
        del self._lingering[silent]
        silent.abort()

    def _idlest(self, now: float) -> "Connection | None":
        for connection in self._new:
            return connection
        # A client that has just been answered may be sending its next request: cut off then, it would be lost.
        latest = now - IDLE_S + self.limits.client_timeout_s
        for connection, deadline in self._answered.items():
            return connection if deadline <= latest else None
        return None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        # First of all: whatever one connection does to us, the others are swept again.
        self._sweeping = loop.call_later(SWEEP_S, self._sweep, loop) if self._open else None
        now = loop.time()
        for waiting in (self._new, self._answered):
            while (first := next(iter(waiting), None)) is not None and waiting[first] <= now:
                self.refuse(first, TOO_SLOW)
        while (first := next(iter(self._lingering), None)) is not None and self._lingering[first] <= now:
            self._cut_silent()


class _Transport:
    """What uvicorn uses of a transport, with a `close` of ours. All else is the transport's own, at no call more."""

    __slots__ = ("abort", "close", "get_extra_info", "is_closing", "pause_reading", "resume_reading", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.abort = transport.abort
        self.close = close
        self.get_extra_info = transport.get_extra_info
        self.is_closing: Callable[[], bool] = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write: Callable[[bytes], None] = transport.write

    def end(self) -> None:
        """Look closed."""
        self.is_closing = lambda: True
        self.write = lambda _: None


class Connection(MendedProtocol):
    """uvicorn's connection, which tells `connections` whose move it is and counts the bytes of its headers.

    Of a request that arrives in one piece this costs two calls more. `scope` belongs to the newest request that has
    begun, `cycle` to the newest whose headers are whole; while they differ, headers are on their way.
    """

    _transport: asyncio.Transport
    _front: _Transport

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
        self._half_closed = False
        self._lingers_until = 0.0  # 0: it does not
        self._lingers_bytes = 0

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

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._transport = transport
        self._front = _Transport(transport, self._close)
        super().connection_made(cast("asyncio.Transport", self._front))
        self._all.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.closed(self)
        self._front.close = self._transport.close  # no cycle of references is left to the collector

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's says nothing, which closes
        """Whether the connection stays open: it does while a request that has arrived whole waits for its answer.

        A client that has left looks the same as one that has closed its half, until something is sent to it: `_probe`.
        An edge in front of us never closes its half alone: its call is given up at once.
        """
        cycle = self.cycle
        unread = self._in_head or cycle is None or cycle.more_body
        if unread or self.transport.is_closing() or (cycle.response_complete and not self.pipeline):
            return False
        if any(name == b"x-gatekeeper-hops" for name, _ in cycle.scope["headers"]):
            return False
        self._half_closed = True
        self.loop.call_later(PROBES_S[0], self._probe, 1)
        return True

    def _probe(self, number: int) -> None:
        """Find out whether a client that has closed its half has left, so that its work is given up.

        To one that has left, the first interim answer provokes a reset and the next one meets it: the connection is
        lost. HTTP/1.0 knows no interim answers: such a client has left after the last time.
        """
        cycle = self.cycle
        if self.transport.is_closing() or (cycle.response_started and not self.pipeline):
            return  # it is being answered, which tells as well
        if cycle.scope["http_version"] == "1.1":
            if not self.pipeline:  # else others' answers are due first, which tell as well
                self._transport.write(INTERIM)
        elif number == len(PROBES_S):
            self.abort()
        if number < len(PROBES_S):
            self.loop.call_later(PROBES_S[number], self._probe, number + 1)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            if self._lingers_until:
                self._drop(data)
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

    def send_400_response(self, msg: str) -> None:
        self.refuse_unread()
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.answered = True
        if self._half_closed and self.cycle.response_complete and not self.pipeline:
            self.transport.close()
            return
        self._turn()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.wait(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._turn()

    def _close(self) -> None:
        """In the place of the transport's close: linger if the client may still be sending."""
        cycle = self.cycle
        unread = self._refused_unread or self._in_head or self.pipeline or (cycle is not None and cycle.more_body)
        if not unread or self.flow.write_paused or self._transport.is_closing():
            self._transport.close()
        elif not self._lingers_until:
            self._linger()

    def _linger(self) -> None:
        self._lingers_until = self.loop.time() + self._all.limits.client_timeout_s
        self._front.end()
        self._lingers_bytes = LINGER_BYTES
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not self._in_head:
            # Of thousands of digits, zeros in front included, Python makes no number.
            announced = dict(cycle.scope["headers"]).get(b"content-length", b"").lstrip(b"0")[:18] or b"0"
            self._lingers_bytes = max(LINGER_BYTES, min(int(announced), LINGER_ANNOUNCED_BYTES))
        if cycle is not None:  # as if the connection were lost
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self._transport.write_eof()
        self._all.linger(self)

    def _drop(self, data: bytes) -> None:
        self._lingers_bytes -= len(data)
        if self._lingers_bytes < 0 or self.loop.time() > self._lingers_until:
            self.abort()
        else:
            self._all.linger(self)

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
