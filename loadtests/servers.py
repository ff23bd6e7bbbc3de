"""The servers of a benchmark: started on one core, watched from outside, and always stopped."""

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

ROOT = Path(__file__).resolve().parent.parent
START_S, STOP_S = 90.0, 10.0
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


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
    def cpu_s(self) -> float | None:
        """Seconds of CPU so far, all threads; None where there is no /proc."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None

    @property
    def peak_mib(self) -> float | None:
        """The most memory it has held; None where there is no /proc."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None


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
) -> Iterator[Server]:
    """`python -m ...command`, which answers at the path `ready`; its log goes into the directory."""
    # The defaults are measured, not what happens to be set in this shell.
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("GATEKEEPER_")}
    inherited.pop("REDIS_URL", None)
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and modules
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env=inherited | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            preexec_fn=in_child(core),  # noqa: PLW1509  one thread here
        )
    server = Server(name, process, f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(server, ready, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def in_child(core: int | None) -> Callable[[], None]:
    """What a child does before it becomes its program: go to its core, and promise to end when we do."""

    def prepare() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return prepare


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(server: Server, path: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        code = server.process.poll()
        if code is not None:
            said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise BenchFailed(f"{server.name} ended with exit code {code} instead of starting: {said[-1]}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}{path}", timeout=2.0, trust_env=False).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise BenchFailed(f"{server.name} was not ready after {START_S:g} s")
        time.sleep(0.1)
