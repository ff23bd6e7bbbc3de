"""A server seen from outside: its memory, file descriptors, threads and connections, read from /proc (Linux)."""

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10  # of include/net/tcp_states.h


@dataclass(frozen=True)
class Sight:
    """One look at a process. `memory_mib` is its proportional share (PSS); connections are its TCP sockets."""

    memory_mib: float
    file_descriptors: int
    threads: int
    established: int
    close_wait: int  # the other side has closed, and this process has not noticed: leaked, if it stays


def look(pid: int) -> Sight:
    """Raises OSError when the process is gone."""
    descriptors = _descriptors(pid)
    inodes = {target[8:-1] for target in descriptors if target.startswith("socket:[")}
    states = Counter(state for inode, state in _tcp_sockets(pid) if inode in inodes)
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
    return Sight(
        _kib(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8"), "Pss") / 1024,
        len(descriptors),
        int(threads[1]) if threads else 0,
        states[ESTABLISHED],
        states[CLOSE_WAIT],
    )


def reset_peak(pid: int) -> None:
    """Let VmHWM begin again from what is resident now; where that is not allowed it stays the peak since the start."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")


def peak_mib(pid: int) -> float:
    """The most that was resident (VmHWM) since its start, or since reset_peak."""
    return _kib(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), "VmHWM") / 1024


def own_cpu_s() -> float:
    """CPU time of this process so far."""
    times = os.times()
    return times.user + times.system


def _descriptors(pid: int) -> list[str]:
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed since
            targets.append(str(descriptor.readlink()))
    return targets


def _tcp_sockets(pid: int) -> list[tuple[str, int]]:
    """(inode, state) of the TCP sockets in the process's network namespace."""
    sockets = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="utf-8").splitlines()[1:]:
                fields = line.split()
                sockets.append((fields[9], int(fields[3], 16)))
    return sockets


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
