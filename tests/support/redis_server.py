"""A real Redis server for tests, that can be killed, paused and brought back empty on the same port."""

import signal
import socket
import subprocess
import tempfile
from types import TracebackType
from typing import Self

from support.waiting import eventually

from deploy.programs import find_redis_server

START_DEADLINE_S = 5.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """A server on 127.0.0.1 that keeps nothing on disk. `arguments` go to redis-server, such as "--requirepass".

    As a context manager it is started on entry and gone on exit.
    """

    def __init__(self, port: int | None = None, *arguments: str) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, empty, and waits until it answers. Raises AssertionError after five seconds."""
        command = [str(find_redis_server()), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", self._folder.name, *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Its input ends when we do, however that comes about: no server outlives a killed test run.
        watch = ["sh", "-c", f"read _; kill -9 {self._process.pid}"]
        self._watcher = subprocess.Popen(
            watch, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            eventually(self._answers, f"redis-server on port {self.port} answers PING", START_DEADLINE_S)
        except AssertionError:
            self.stop()
            raise

    def stop(self) -> None:
        """kill -9: what it held is gone and its clients' connections are reset."""
        for process in (self._watcher, self._process):
            if process is not None:
                process.kill()
                process.communicate()
        self._watcher = self._process = None

    def restart(self) -> None:
        """Comes back empty on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stops answering but keeps its connections open, as a hung host does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answers again, also what was asked during the pause."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self._process is not None, "the server is not running"
        assert self._process.poll() is None, f"redis-server on port {self.port} has ended"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
