"""wrk, the load generator: one POST body on kept-alive connections, its figures as numbers."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtests.common.servers import BenchFailed, Server, in_child

# done() because wrk prints rounded figures; long brackets because a JSON body then needs no escaping.
SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[%s]==]

function done(summary, latency, requests)
   local failed = summary.errors
   local errors = failed.connect + failed.read + failed.write + failed.status + failed.timeout
   io.write("RESULT ", summary.requests, " ", summary.duration, " ", errors, " ",
            latency:percentile(50), " ", latency:percentile(99), "\\n")
end
"""


@dataclass(frozen=True)
class Measurement:
    """One server under load once."""

    server: str
    connections: int
    round: int
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: float | None
    core_share: float | None  # CPU time over wall time: below 1 the server waited, or others ran on its core
    memory_mib: float | None  # of its whole tree of processes, right after the load


@dataclass(frozen=True)
class Wrk:
    """wrk with a script; `core`: where it runs."""

    binary: str
    script: Path
    core: int | None

    def command(self, url: str, connections: int, seconds: int) -> list[str]:
        """One thread: it is pinned to one core, and many times quicker than any server here."""
        return [
            self.binary,
            *("--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
            *("--latency", "--timeout", "10s", "--script", str(self.script), url),
        ]

    def measure(
        self, server: Server, connections: int, number: int, seconds: int, path: str = "/v1/classify"
    ) -> Measurement:
        """Raises BenchFailed when a single request was not answered with a 2xx, or when none was answered at all."""
        cpu_before_s = server.tree.cpu_s()
        said = self._run(server, connections, seconds, path)
        cpu_after_s = server.tree.cpu_s()
        requests, duration_us, errors, p50_us, p99_us = said
        if errors or not requests:
            raise BenchFailed(
                f"{server.name}: {errors:,.0f} errors beside {requests:,.0f} answers in {seconds} s "
                f"at {connections} connections"
            )
        cpu_s = None if cpu_before_s is None or cpu_after_s is None else cpu_after_s - cpu_before_s
        return Measurement(
            server=server.name,
            connections=connections,
            round=number,
            requests=int(requests),
            requests_per_s=requests / duration_us * 1e6,
            p50_ms=p50_us / 1e3,
            p99_ms=p99_us / 1e3,
            cpu_s_per_1000=None if cpu_s is None else cpu_s / requests * 1000,
            core_share=None if cpu_s is None else cpu_s / duration_us * 1e6,
            memory_mib=server.tree.memory_mib(),
        )

    def warm_up(self, server: Server, connections: int, seconds: int, path: str = "/v1/classify") -> None:
        """Load without figures. A slow server may not answer once in this time."""
        self._run(server, connections, seconds, path)

    def _run(self, server: Server, connections: int, seconds: int, path: str) -> tuple[float, ...]:
        """requests, microseconds, errors, and the 50th and 99th percentiles in microseconds."""
        command, limit_s = self.command(f"{server.url}{path}", connections, seconds), seconds + 30
        try:
            finished = subprocess.run(  # noqa: S603  the wrk on PATH
                command,
                capture_output=True,
                encoding="utf-8",
                timeout=limit_s,
                check=False,
                preexec_fn=in_child(self.core),
            )
        except subprocess.TimeoutExpired:
            raise BenchFailed(f"wrk did not end after {limit_s} s") from None
        line = next((line for line in finished.stdout.splitlines() if line.startswith("RESULT ")), None)
        if finished.returncode != 0 or line is None:
            said = (finished.stderr or finished.stdout).strip()
            raise BenchFailed(f"wrk ended with exit code {finished.returncode}: {said[:300]}")
        return tuple(float(figure) for figure in line.split()[1:])


def wrk_version(binary: str) -> str:
    """As it names itself."""
    said = subprocess.run([binary, "-v"], capture_output=True, encoding="utf-8", timeout=10, check=False)  # noqa: S603
    return (said.stdout + said.stderr).split()[1]


def write_script(path: Path, body: str) -> None:
    """The script that sends this body."""
    path.write_text(SCRIPT % body, encoding="utf-8")
