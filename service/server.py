"""Run an app under uvicorn: sockets bound first, SIGTERM drained, exit code 0, start-up errors in one line."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Generator
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.connections import ConnectionLimits, Connections, room_for
from service.errors import StartupError
from service.settings import EdgeSettings, LargeSettings

OTHER_FILES = 128  # of libraries, stores and logs
# uvloop accepts one connection a listener and turn of the loop, and a turn under load is a whole batch: 200 new
# connections waited 4-5 s behind 128 busy ones.
LISTENER_COPIES = 15

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A listening address, before seconds go into loading a model. Raises StartupError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"port {port} on {host} is taken: stop what listens there or choose another") from error
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    listener.set_inheritable(True)
    return listener


def run(app: FastAPI, settings: EdgeSettings | LargeSettings, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl-C, then return. Raises StartupError when the app cannot start."""
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", _connections(app, settings).protocol),  # any callable will do
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here goes by the client's address
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s) or 1,
        lifespan="on",
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
    runtime = getattr(app.state, "runtime", None)
    if runtime is not None and runtime.batcher.running:
        # A thread that is still in torch when the interpreter goes away aborts the process with exit code 134.
        logging.shutdown()
        os._exit(0)


def _connections(app: FastAPI, settings: EdgeSettings | LargeSettings) -> Connections:
    calls_out = 4 * settings.remote_max_concurrency if isinstance(settings, EdgeSettings) else 0
    room = room_for(settings.max_connections, OTHER_FILES + calls_out)
    limits = ConnectionLimits(room, settings.client_timeout_s, settings.max_header_bytes)

    def count(kind: str) -> None:
        app.state.runtime.metrics.count_rejected(kind)

    def overloaded() -> int | None:
        runtime = app.state.runtime
        return runtime.batcher.retry_after_s() if runtime.batcher.overloaded() and not runtime.draining else None

    def count_shed() -> None:
        app.state.runtime.metrics.count_shed()

    if settings.access_log or (isinstance(settings, EdgeSettings) and settings.admin_port is not None):
        return Connections(limits, count)  # every refusal has a line of its own, or a port to be looked at
    return Connections(limits, count, overloaded=overloaded, count_shed=count_shed)


class _DrainingServer(uvicorn.Server):
    """uvicorn closes its sockets at SIGTERM; this one first says not-ready and goes on accepting for drain_s."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        addresses = sorted({"{}:{}".format(*listener.getsockname()[:2]) for listener in sockets or ()})
        await super().startup(sockets)
        logger.info("listening", extra={"addresses": addresses})

    def _drain(self) -> None:
        runtime = getattr(self._app.state, "runtime", None)
        if runtime is None or runtime.draining:
            self._stop()
            return
        logger.info("draining", extra={"drain_s": self._drain_s})
        runtime.draining = True
        asyncio.get_running_loop().call_later(self._drain_s, self._stop)

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
