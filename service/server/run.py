"""Run an app under uvicorn: ports held first, signals drained, exit code 0, start-up errors in one line.

The first signal (SIGTERM, SIGINT or SIGHUP, in any order) drains: not ready, but still accepting for drain_s. The
second ends that window. What was accepted is answered all the same, for shutdown_timeout_s at most; only SIGQUIT, or a
third signal after AGAIN_S of silence, cuts it off.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Generator
from types import FrameType
from typing import Literal, cast

import uvicorn
from fastapi import FastAPI

from service.errors import StartupError
from service.server.connections import ConnectionLimits, Connections, room_for
from service.server.running import running, running_yet
from service.settings import EdgeSettings, LargeSettings

OTHER_FILES = 128  # of libraries, stores and logs
# uvloop accepts one connection a listener and turn of the loop, and a turn under load is a whole batch: 200 new
# connections waited 4-5 s behind 128 busy ones.
LISTENER_COPIES = 15
BACKLOG = 2_048
AGAIN_S = 1.0  # closer together they are one wish: a process group is told twice, a supervisor in haste ten times

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """An address that is held from now on, before seconds go into loading a model. Raises StartupError.

    Nothing listens there yet: who connects is refused at once and may go elsewhere. It would otherwise wait in the
    kernel's queue for a model that is being loaded.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:  # a name with an empty or endless part is no OSError
        raise _cannot_listen(host, port, error) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it the last run's closed connections keep the port for a minute; with it left on another process may
        # bind too, as long as neither listens.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    listener.set_inheritable(True)
    return listener


def listening(listener: socket.socket) -> socket.socket:
    """The same, listening. Raises StartupError, where uvloop says nothing."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its connections inherit it
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: Exception) -> StartupError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return StartupError(f"port {port} on {host} is taken: stop what listens there or choose another")
    reason = error.strerror if isinstance(error, OSError) else None
    return StartupError(f"cannot listen on {address(host, port)}: {reason or error}")


def address(host: str, port: int) -> str:
    """As URLs have it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run(app: FastAPI, settings: EdgeSettings | LargeSettings, sockets: list[socket.socket]) -> None:
    """Serve until a signal, then return. Raises StartupError when the app cannot start."""
    config = uvicorn.Config(
        app,
        http=_protocol(app, settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here goes by the client's address
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s) or 1,
        lifespan="on",
        backlog=BACKLOG,
    )
    server = _DrainingServer(config, app, settings.drain_s)
    quiet = logging.getLogger("uvicorn.error")
    # A start that failed for a known reason is told in one line, by the caller, not in uvicorn's traceback.
    quiet.addFilter(lambda _: not isinstance(getattr(app.state, "startup_error", None), StartupError))
    try:
        # The original too: it would go on listening after uvicorn has closed its copies.
        server.run([*sockets, *(listener.dup() for listener in sockets for _ in range(LISTENER_COPIES))])
    except SystemExit:  # how uvicorn ends a start that failed
        error = getattr(app.state, "startup_error", None)
        if error is not None:
            raise error from None
        raise
    logger.info("stopped")
    service = running_yet(app)
    if service is not None and service.batcher.running:
        # A thread that is still in torch when the interpreter goes away aborts the process with exit code 134.
        logging.shutdown()
        os._exit(0)


def _protocol(app: FastAPI, settings: EdgeSettings | LargeSettings) -> "type[asyncio.Protocol] | Literal['httptools']":
    """What reads requests: ours, or uvicorn's own where a proxy does what ours adds to it."""
    if settings.connection_guard == "off":
        return "httptools"
    return cast("type[asyncio.Protocol]", _connections(app, settings).protocol)  # any callable will do


def _connections(app: FastAPI, settings: EdgeSettings | LargeSettings) -> Connections:
    calls_out = 4 * settings.remote_max_concurrency if isinstance(settings, EdgeSettings) else 0
    room = room_for(settings.max_connections, OTHER_FILES + calls_out)
    limits = ConnectionLimits(room, settings.client_timeout_s, settings.max_header_bytes)

    def count(kind: str) -> None:
        running(app).metrics.count_rejected(kind)

    def overloaded() -> int | None:
        service = running(app)
        if service.lifecycle.draining or not service.batcher.overloaded():
            return None
        return service.batcher.retry_after_s()

    def count_shed() -> None:
        running(app).metrics.count_shed()

    if settings.access_log or (isinstance(settings, EdgeSettings) and settings.admin_port is not None):
        return Connections(limits, count)  # every refusal has a line of its own, or a port to be looked at
    return Connections(limits, count, overloaded=overloaded, count_shed=count_shed)


class _DrainingServer(uvicorn.Server):
    """uvicorn with our answers to signals, and with sockets that listen only when there is somebody to answer."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._signals = 0
        self._signalled_at = 0.0
        self._loop: asyncio.AbstractEventLoop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        self._loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:  # all is answered and closed: one that comes now must not spoil the exit code
                signal.signal(number, signal.SIG_IGN)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        addresses = sorted({address(*listener.getsockname()[:2]) for listener in sockets or ()})
        try:
            # Walked through once the app has started.
            await super().startup(cast("list[socket.socket]", map(listening, sockets or ())))
        except StartupError:
            await self.lifespan.shutdown()
            raise
        logger.info("listening", extra={"addresses": addresses})

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if running_yet(self._app) is None:
            os._exit(0)  # the model is being loaded, which may take a minute, and nobody has been answered yet
        self._loop.call_soon_threadsafe(self._heed, number)

    def _heed(self, number: int) -> None:
        now = self._loop.time()
        silence_s, self._signalled_at = now - self._signalled_at, now
        self._signals += 1
        if number == signal.SIGQUIT or (self._signals > 2 and silence_s >= AGAIN_S):
            logger.warning("cutting off what is not answered yet", extra={"requests": len(self.server_state.tasks)})
            self.should_exit = self.force_exit = True
        elif self._signals == 1:
            logger.info("draining", extra={"drain_s": self._drain_s})
            running(self._app).lifecycle.draining = True
            self._loop.call_later(self._drain_s, self._end_window)
        else:
            self._end_window()

    def _end_window(self) -> None:
        self.should_exit = True
