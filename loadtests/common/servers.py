"""The servers of a benchmark: started on their cores, watched from outside, and always stopped with their children."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtests.common.process_tree import ProcessTree, started_ticks

ROOT = Path(__file__).resolve().parent.parent.parent
START_S, STOP_S = 90.0, 10.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # from <linux/prctl.h>


class BenchFailed(Exception):
    """A reason, in one line."""


@dataclass(frozen=True)
class Cores:
    """Where the servers and the load run; None: wherever the system puts them."""

    servers: int | None
    load: int | None

    def __str__(self) -> str:
        if self.servers is None:
            return "NOT pinned (that takes two cores): the load takes from the servers"
        return f"servers on core {self.servers}, load from core {self.load}"


@dataclass(frozen=True)
class Server:
    """A running one."""

    name: str
    process: subprocess.Popen[bytes]
    url: str

    @property
    def tree(self) -> ProcessTree:
        """It and its children: some servers are half a dozen processes."""
        return ProcessTree(self.process.pid)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Running inside, paused outside."""
        self.tree.resume()
        try:
            yield
        finally:
            self.tree.pause()


def choose_cores() -> Cores:
    """One core for the servers and another for the load."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return Cores(None, None)
    allowed = sorted(os.sched_getaffinity(0))
    # The first core has the interrupts in most machines: leave it to the load.
    return Cores(allowed[1], allowed[0]) if len(allowed) > 1 else Cores(None, None)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    ready: str,
    environment: Mapping[str, str],
    directory: Path,
    core: int | None,
    python: Path | None = None,
    start_s: float = START_S,
) -> Iterator[Server]:
    """`python -m ...command --host H --port P`, which answers 200 at the path `ready`; its log goes into the directory.

    `python`: the interpreter of another environment than ours.
    """
    # The defaults are measured, not what happens to be set in this shell.
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("GATEKEEPER_")}
    inherited.pop("REDIS_URL", None)
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603  our own modules, and those of the peers' environments
            [str(python or sys.executable), "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env=inherited | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            preexec_fn=in_child(core),  # noqa: PLW1509  one thread here
        )
    server = Server(name, process, f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(server, ready, log, start_s)
        yield server
    finally:
        _stop(server)


def _stop(server: Server) -> None:
    """By SIGTERM, and what is left of it, children included, by SIGKILL."""
    server.tree.resume()
    family = [(pid, started_ticks(pid)) for pid in server.tree.pids()]
    server.process.terminate()
    try:
        server.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.tree.kill()
        server.process.wait()
    for pid, started in family[1:]:
        if started is not None and started_ticks(pid) == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def in_child(core: int | None) -> Callable[[], None]:
    """What a child does before it becomes its program: go to its core, and promise to end when we do.

    It also takes over what its own children leave behind: a tree of processes stays one tree.
    """

    def prepare() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            library.prctl(PR_SET_CHILD_SUBREAPER, 1)

    return prepare


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(server: Server, path: str, log: Path, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while True:
        code = server.process.poll()
        if code is not None:
            said = log.read_text(errors="replace", encoding="utf-8").strip().splitlines() or ["it said nothing"]
            raise BenchFailed(f"{server.name} ended with exit code {code} instead of starting: {said[-1]}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}{path}", timeout=2.0, trust_env=False).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise BenchFailed(f"{server.name} was not ready after {start_s:g} s")
        time.sleep(0.1)
