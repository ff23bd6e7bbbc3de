"""Taking the large model away: its local process is stopped (SIGSTOP), or a command of the operator's does it.

A stopped process still holds its port: calls to it hang, as those to a machine that has gone do.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from loadtests.users import guard


class NoOutage(Exception):
    """It cannot be taken away. The message is one line, for an operator."""


@dataclass(frozen=True)
class ByCommand:
    """`away` takes the large model away, `back` brings it back."""

    away: str
    back: str

    def task(self) -> dict[str, Any]:
        """What undoes it, for a guard."""
        return guard.command_task(self.back)

    def take(self) -> str:
        """Take it away; says how. Raises NoOutage."""
        try:
            subprocess.run(self.away, shell=True, check=True, timeout=guard.COMMAND_TIMEOUT_S)  # noqa: S602  the operator's own
        except (OSError, subprocess.SubprocessError) as error:
            raise NoOutage(f"the large model is not away: {error}") from None
        return f"`{self.away}`"


@dataclass(frozen=True)
class ByStopping:
    """The processes that listen on the large model's port."""

    processes: Sequence[psutil.Process]

    def task(self) -> dict[str, Any]:
        """What undoes it, for a guard."""
        return guard.processes_task(list(self.processes))

    def take(self) -> str:
        """Stop them; says which. Raises NoOutage."""
        try:
            for process in self.processes:
                process.suspend()
        except psutil.Error as error:
            raise NoOutage(f"the large model is not away: {error}") from None
        pids = ", ".join(str(process.pid) for process in self.processes)
        return f"process {pids} is stopped; calls hang until the policy's remote_timeout_s, or --request-timeout-ms"


def way(port: int, away: str | None, back: str | None, edge: str) -> ByCommand | ByStopping:
    """How the large model of this run is taken away. Raises NoOutage."""
    if away or back:
        if not (away and back):
            raise NoOutage("--outage-command and --recovery-command go together: what is taken away must come back")
        return ByCommand(away, back)
    url = f"http://127.0.0.1:{port}"
    if httpx.URL(edge).port == port:
        raise NoOutage(f"{url} is the edge itself: --large-port is the large model's")
    how = "name another with --large-port, or use --outage-command and --recovery-command"
    try:  # asked first, so that no other service is ever stopped
        answer = httpx.get(f"{url}/v1/models", timeout=5.0, trust_env=False)
    except httpx.TransportError:
        raise NoOutage(f"no large model answers at {url}: {how}") from None
    asks_for_keys = answer.status_code in (401, 403) and b'"detail"' in answer.content
    if not asks_for_keys and not (answer.status_code == 200 and b'"gate_digest"' in answer.content):
        raise NoOutage(f"what answers at {url} is no large model: {how}")
    processes = _listening(port)
    if not processes:
        raise NoOutage(f"the process that listens on {url} cannot be seen from here (another user's?): {how}")
    return ByStopping(processes)


def _listening(port: int) -> list[psutil.Process]:
    """The processes of this machine that listen there, but for those that run this."""
    found = []
    this = psutil.Process()
    ours = {this.pid, *(parent.pid for parent in this.parents())}
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        listens = any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)
        if listens and process.pid not in ours:
            found.append(process)
    return found
