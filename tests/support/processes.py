"""Real services as child processes, for tests: started on free ports, told apart by name, always cleaned up."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from support.redis_server import free_port
from support.starting import Process, start
from support.waiting import eventually

TOKEN = "a-token-for-tests"
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Service:
    """A running child process that speaks HTTP."""

    process: Process
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, within_s: float = 40.0) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
            try:
                return httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, f"ready: {self.log.read_text()[-2000:]}", within_s)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(20)


def spawn(command: str, log: Path, port: int | None = None, fault: str = "", **environment: str) -> Service:
    """`gatekeeper serve` or `serve-large` on a port, not waited for. Variables are given without their prefix.

    fault: one of faulty_edge.py's, for a model that fails.
    """
    port = port or free_port()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GATEKEEPER_", "REDIS_URL"))}
    named = {key if key == "REDIS_URL" else f"GATEKEEPER_{key}": value for key, value in environment.items()}
    settings = clean | {"GATEKEEPER_DRAIN_S": "0", "FAULT": fault} | named
    module = "tests.support.faulty_edge" if fault else "service.cli"
    process = start(module, [command, "--port", str(port)], settings, log)
    return Service(process, port, log)


def spawn_edge(
    directory: Path, remote_url: str, port: int | None = None, fault: str = "", **environment: str
) -> Service:
    """An edge with an admin token and its policy in `directory`.

    Scripted large models answer each text as its own label, so that foreign ones are let through.
    """
    settings = {"ADMIN_TOKEN": TOKEN, "POLICY_PATH": str(directory / "policy.db"), "REMOTE_URL": remote_url}
    settings["REMOTE_FOREIGN_LABELS"] = "allow"
    return spawn("serve", directory / "edge.log", port, fault, **(settings | environment))


@contextmanager
def stopping(*services: Service) -> Iterator[None]:
    """Leave no process behind, whatever the test does."""
    try:
        yield
    finally:
        for service in services:
            if service.process.poll() is None:
                service.process.send_signal(signal.SIGCONT)
                service.kill()


def admin(client: httpx.Client, method: str, path: str, **kwargs: Any) -> httpx.Response:
    """An admin call with the token."""
    headers = {"authorization": f"Bearer {TOKEN}", **kwargs.pop("headers", {})}
    return client.request(method, f"/admin/v1/{path}", headers=headers, **kwargs)
