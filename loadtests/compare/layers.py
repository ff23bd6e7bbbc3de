"""Where the time of one request goes, layer by layer: bare route, accept path, defer path. `make layers`, or

    python -m loadtests.compare.layers --seconds 6

Each server runs on a core of its own under wrk, 32 connections, while py-spy samples it. A sample belongs to the
innermost frame whose file is known below; a layer's share of them, times the CPU time of a request, is its cost. Needs
wrk, py-spy (PyPI) and the right to watch another process (root, or ptrace_scope 0).
Exit code 0: measured; 1: something went wrong; 2: a tool is missing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.common.edge import check_decided, running_edge, set_threshold
from loadtests.common.servers import BenchFailed, Cores, Server, choose_cores
from loadtests.compare.accept import REQUEST, running_bare
from loadtests.compare.defer import EVERYTHING, running_stub
from loadtests.compare.wrk import Wrk, write_script

CONNECTIONS = 32
SAMPLES_PER_S = 400
SETTLE_S = 2
# The first whose file names occur in a frame, from the innermost frame outwards.
LAYERS = (
    ("model: tokens, forward, softmax", ("models/", "torch/", "tokenizers/")),
    ("queue in front of the model", ("service/batching/",)),
    ("metrics", ("prometheus_client/", "service/telemetry/")),
    (
        "the way to the large model",
        ("service/remote/", "aiohttp/"),
    ),
    ("cascade and gate", ("service/cascade/",)),
    (
        "endpoint: parse, check, write",
        ("service/api/", "service/access/", "service/bounded_json.py", "pydantic", "json/"),
    ),
    ("ids, headers, request metrics", ("service/server/middleware.py", "service/server/sites.py", "service/app.py")),
    ("the bare route's own code", ("loadtests/compare/bare.py",)),
    ("FastAPI and Starlette", ("fastapi/", "starlette/")),
    ("HTTP in and out: uvicorn", ("uvicorn/", "service/server/connections.py", "service/server/protocol.py")),
    ("event loop, sockets", ("asyncio/", "uvloop")),
)
IDLE = ("wait (threading.py", "_worker (concurrent/futures/thread.py", "get (queue.py")


@dataclass(frozen=True)
class Profile:
    """CPU microseconds of a request, and how they are shared out."""

    name: str
    request_us: float
    shares: dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Profile each server, print the table."""
    parser = argparse.ArgumentParser("loadtests.compare.layers", description="Where the time of one request goes.")
    parser.add_argument("--seconds", type=int, default=6, choices=range(2, 121), metavar="2..120")
    seconds = parser.parse_args(argv).seconds
    beside = str(Path(sys.executable).with_name("py-spy"))
    wrk, spy = shutil.which("wrk"), shutil.which("py-spy") or shutil.which(beside)
    if wrk is None or spy is None:
        missing = "wrk (a Debian package)" if wrk is None else "py-spy (on PyPI)"
        print(f"layers: {missing} is not installed", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="gatekeeper-layers-") as folder:
            tools = _Tools(wrk, spy, Path(folder), choose_cores(), seconds)
            profiles = [_profile(tools, name, server) for name, server in _servers(tools)]
    except BenchFailed as reason:
        print(f"layers: {reason}", file=sys.stderr)
        return 1
    print(table(profiles))
    return 0


@dataclass(frozen=True)
class _Tools:
    wrk: str
    spy: str
    directory: Path
    cores: Cores
    seconds: int


def _servers(tools: _Tools) -> Iterator[tuple[str, Server]]:
    """Each by itself: the next one is started when the former has been profiled."""
    with running_edge(tools.directory, tools.cores) as edge:
        yield "accept", edge
        check_decided(edge, ("accepted", "none"), 1)
    with _deferring(tools) as edge:
        yield "defer", edge
        check_decided(edge, ("deferred", "below_threshold"), 1)
    with running_bare(tools.directory, tools.cores, b"{}" * 150) as bare:
        yield "bare route", bare


@contextmanager
def _deferring(tools: _Tools) -> Iterator[Server]:
    folder = tools.directory / "defer"
    folder.mkdir()
    with running_stub(folder, tools.cores) as stub, running_edge(folder, tools.cores, stub.url) as edge:
        set_threshold(edge, EVERYTHING)
        yield edge


def _profile(tools: _Tools, name: str, server: Server) -> Profile:
    wrk = Wrk(tools.wrk, tools.directory / "request.lua", tools.cores.load)
    write_script(wrk.script, REQUEST)
    wrk.warm_up(server, CONNECTIONS, SETTLE_S)
    # Sampling slows a server down: its CPU time is measured without.
    measured = wrk.measure(server, CONNECTIONS, 1, tools.seconds)
    if measured.cpu_s_per_1000 is None:
        raise BenchFailed("the CPU time of a process cannot be read here")
    raw = tools.directory / f"{name}.raw"
    command = [tools.spy, "record", "--pid", str(server.process.pid), "--duration", str(tools.seconds)]
    command += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(raw), "--nolineno"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as spying:  # noqa: S603  py-spy
        wrk.measure(server, CONNECTIONS, 1, tools.seconds + 1)
        said = spying.communicate()[1].decode(errors="replace").strip()
    if spying.returncode != 0 or not raw.exists():
        raise BenchFailed(f"py-spy ended with exit code {spying.returncode}: {said[-300:]}")
    return Profile(name, measured.cpu_s_per_1000 * 1000, shares(raw.read_text(encoding="utf-8")))


def layer_of(stack: str) -> str:
    """Of a sample in py-spy's raw format: `outermost (file);...;innermost (file)`."""
    for frame in reversed(stack.split(";")):
        for layer, places in LAYERS:
            if any(place in frame for place in places):
                return layer
    return "other"


def shares(raw: str) -> dict[str, float]:
    """Share of the busy samples by layer; threads that only wait for work are left out."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if not any(idle in stack.rpartition(";")[2] for idle in IDLE):
            counts[layer_of(stack)] += int(count)
    total = sum(counts.values())
    if not total:
        raise BenchFailed("py-spy saw nothing")
    return {layer: count / total for layer, count in counts.items()}


def table(profiles: list[Profile]) -> str:
    """Microseconds of a request by layer, as a Markdown table."""
    names = [layer for layer, _ in LAYERS] + ["other"]
    lines = [
        "| microseconds of CPU a request | " + " | ".join(profile.name for profile in profiles) + " |",
        "| --- |" + " ---: |" * len(profiles),
    ]
    for layer in names:
        cells = [profile.shares.get(layer, 0.0) * profile.request_us for profile in profiles]
        if any(cells):
            lines.append(f"| {layer} | " + " | ".join(f"{cell:.0f}" if cell else "" for cell in cells) + " |")
    lines.append("| **all** | " + " | ".join(f"**{profile.request_us:.0f}**" for profile in profiles) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
