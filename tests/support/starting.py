"""Services forked from a process that has imported what they need: a start takes a moment instead of seconds of CPU.

What runs is the `gatekeeper` command as it is, in a process of its own, with its own environment, output and exit code.
The fault tests start every service as a new interpreter, as in production; so does every test with COLD_STARTS set.
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent.parent
FORKS = multiprocessing.get_context("forkserver")
# All that a service imports, also what it would import only when it loads the large model or a calibration.
FORKS.set_forkserver_preload(
    [
        *("service.app", "service.cli", "tests.support.faulty_edge", "uvloop", "structlog", "pandas"),
        *("models.inference.architectures", "transformers.models.bert.modeling_bert", "accelerate"),
    ]
)


class Process(Protocol):
    """What tests need of a child process, whichever way it was started."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """`python -m module arguments`, in the root of the repository; its output is added to the log."""
    if os.environ.get("COLD_STARTS") or "tests/faults/" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        with log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=dict(environment),
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
            )
    log.touch()
    process = FORKS.Process(target=_run, args=(module, list(arguments), dict(environment), str(log)))
    process.start()
    return Forked(process)


def _run(module: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """In the child: become what `python -m` would have started."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(importlib.import_module(module).main(arguments))


class Forked:
    """A forked process with the methods of subprocess.Popen."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
