"""A server with all its children, seen from outside: its CPU time, its memory, and stopping it for a while or for good.

Read from /proc; where there is none (macOS) the figures are None and nothing is paused.
"""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessTree:
    """A process and its descendants at the moment of each question."""

    root: int

    def pids(self) -> list[int]:
        """The root first."""
        if sys.platform != "linux":
            return [self.root]
        children: dict[int, list[int]] = {}
        for directory in PROC.iterdir():
            if directory.name.isdigit() and (fields := _stat(int(directory.name))) is not None:
                children.setdefault(int(fields[1]), []).append(int(directory.name))
        found = [self.root]
        for pid in found:  # grows while it is walked
            found += children.get(pid, [])
        return found

    def cpu_s(self) -> float | None:
        """Seconds of CPU so far, user and system, all threads; of children that have ended too."""
        # utime, stime, and cutime and cstime: what a child had moves to its parent when it ends.
        ticks = [sum(map(int, fields[11:15])) for pid in self.pids() if (fields := _stat(pid)) is not None]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None

    def memory_mib(self) -> float | None:
        """PSS of all, now: a page that several share counts once, so the sum is what the machine gives."""
        sizes = [size for pid in self.pids() if (size := _pss_kib(pid)) is not None]
        return sum(sizes) / 1024 if sizes else None

    def pause(self) -> None:
        """SIGSTOP: what a server does between requests must not take from its neighbour on the same core."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def started_ticks(pid: int) -> int | None:
    """When it began: a pid is used again, the two together are not."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on, as proc(5) numbers them less three."""
    with suppress(OSError):
        return (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return None


def _pss_kib(pid: int) -> int | None:
    with suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return None
