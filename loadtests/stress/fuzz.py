"""What refusals cost: the longest silence and the memory of each service while it is sent what deserves none but those.

    python -m loadtests.stress.fuzz --seed 0 --output docs/fuzz.md

Services as real processes, with and without API keys; every request is answered by a refusal, or rightly. Exit code 0:
measured, and nothing was answered with 500 or not at all; 1: something was, and the table says what.
"""

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtests.common.edge import NOBODY, TOKEN
from loadtests.common.options import between
from loadtests.common.servers import ROOT, BenchFailed, Server, choose_cores, free_port, in_child, running
from loadtests.stress.hostile import ACCEPTED, KINDS, LARGE, Surface
from loadtests.stress.watch import peak_mib, reset_peak

SILENCE_BAR_MS, MEMORY_BAR, PEAK_BAR_MIB = 250.0, 1.2, 1024
AT_ONCE, LARGE_AT_ONCE = 64, 4  # the second where requests are as large as may be; of those that are accepted: one
CLIENT_TIMEOUT_S = 5  # of the services: a request that was cut short is waited for
PATIENCE_S = 120.0
KEYS = {name: f"gk_{name}_{name[0] * 43}" for name in ("good", "spent")}
BUNDLES = ROOT / "models" / "bundles"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Target:
    """A service to be sent to, and by whom."""

    name: str
    command: str
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    max_body_bytes: int = 4 * MIB


def targets() -> list[Target]:
    """An edge with and without keys, one of images, a large model."""
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    keys = {"GATEKEEPER_API_KEYS": f"good:{hashes['good']}:classify+override,spent:{hashes['spent']}::1/day"}
    images = {"GATEKEEPER_BUNDLE": str(BUNDLES / "fashion-mnist-small")}
    return [
        Target("edge", "serve"),
        Target("edge, no key", "serve", keys),
        Target("edge, key", "serve", keys, {"x-api-key": KEYS["good"]}),
        Target("edge, spent key", "serve", keys, {"x-api-key": KEYS["spent"]}),
        Target("edge, admin token", "serve", {}, {"authorization": f"Bearer {TOKEN}"}),
        Target("image edge", "serve", images, max_body_bytes=16 * MIB),
        Target("large model", "serve-large", {}),
    ]


@dataclass
class Seen:
    """Of one kind at one target. `bad`: 500s, and requests that got no answer although they were well framed."""

    target: str
    kind: str
    statuses: Counter[int]
    bad: list[str]
    longest_ms: float
    before_mib: float
    peak_mib: float

    def cells(self) -> tuple[str, ...]:
        told = ", ".join(f"{count:,} x {status or 'closed'}" for status, count in sorted(self.statuses.items()))
        ratio = self.peak_mib / self.before_mib
        return (
            *(self.target, self.kind, f"{self.statuses.total():,}", told),
            *(f"{self.longest_ms:.0f}", f"{self.before_mib:.0f}", f"{self.peak_mib:.0f}", f"{ratio:.2f}"),
        )


HEAD = ("target", "requests", "sent", "answers", "longest silence, ms", "MiB before", "MiB peak", "ratio")


def main(argv: list[str] | None = None) -> int:
    """Send, watch, print the table."""
    arguments = _parser().parse_args(argv)
    chosen = [target for target in targets() if target.name in (arguments.targets or [t.name for t in targets()])]
    seen: list[Seen] = []
    try:
        for target in chosen:
            seen += _fuzz(target, arguments.seed, arguments.kinds or list(KINDS))
    except BenchFailed as reason:
        print(f"fuzz: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    lines = _markdown(seen)
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    bad = [f"{one.target}, {one.kind}: {what}" for one in seen for what in one.bad[:3]]
    print("\n".join(["", *bad]) if bad else "\nnothing was answered with 500 or not at all", file=sys.stderr)
    return 1 if bad else 0


def _fuzz(target: Target, seed: int, kinds: list[str]) -> Iterator[Seen]:
    cores = choose_cores()
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "GATEKEEPER_ADMIN_TOKEN": TOKEN,
            "GATEKEEPER_LOG_FORMAT": "json",
            "GATEKEEPER_POLICY_PATH": f"{directory}/policy.db",
            "GATEKEEPER_REMOTE_URL": NOBODY,
            "GATEKEEPER_DRAIN_S": "0",
            "GATEKEEPER_CLIENT_TIMEOUT_S": str(CLIENT_TIMEOUT_S),
            **{
                name.replace("API", "LARGE_API") if target.command == "serve-large" else name: value
                for name, value in target.environment.items()
            },
        }
        with running(
            "service",
            ["service.cli", target.command],
            port=free_port(),
            ready="/readyz",
            environment=environment,
            directory=Path(directory),
            core=cores.servers,
        ) as server:
            document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
            surface = Surface.of(document, target.max_body_bytes)
            for kind in kinds:
                yield _one_kind(server, target, surface, kind, random.Random(seed), cores.load)


def _one_kind(
    server: Server, target: Target, surface: Surface, kind: str, chance: random.Random, core: int | None
) -> Seen:
    _warm_up(server, target)
    pid = server.process.pid
    reset_peak(pid)
    before = peak_mib(pid)
    at_once = 1 if kind == ACCEPTED else LARGE_AT_ONCE if kind in LARGE else AT_ONCE
    with _watched(server, core) as silence:
        statuses, bad = asyncio.run(_send_all(server, KINDS[kind](surface, target.headers, chance), at_once))
    print(f"{target.name}: {kind}, {statuses.total():,} requests", file=sys.stderr, flush=True)
    return Seen(target.name, kind, statuses, bad, silence["longest_ms"], before, peak_mib(pid))


def _warm_up(server: Server, target: Target) -> None:
    """What any service has done: its memory before is that of one that has answered."""
    for _ in range(20):
        body = {"inputs": ["what is the balance of my savings account"] * 32}
        httpx.post(f"{server.url}/v1/classify", json=body, headers=dict(target.headers), trust_env=False, timeout=30.0)


@contextmanager
def _watched(server: Server, core: int | None) -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    watch = subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-m", "loadtests.stress.silence", server.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=in_child(core),  # noqa: PLW1509  one thread here
    )
    try:
        yield found
    finally:
        told, _ = watch.communicate(b"\n", PATIENCE_S)
        found |= json.loads(told)


async def _send_all(server: Server, requests: Iterator[bytes], at_once: int) -> tuple[Counter[int], list[str]]:
    statuses: Counter[int] = Counter()
    bad: list[str] = []
    port = int(server.url.rsplit(":", 1)[1])

    async def send_in_turn() -> None:
        for data in requests:  # one iterator for all
            status = await _exchange(port, data)
            statuses[status] += 1
            if status == 500 or (status == 0 and server.process.poll() is not None):
                bad.append(f"{status or 'no answer'} to {data[:200]!r}")

    await asyncio.gather(*(send_in_turn() for _ in range(at_once)))
    return statuses, bad


async def _exchange(port: int, data: bytes) -> int:
    """The status; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(data)
            line = await reader.readline()
            while line.startswith(b"HTTP/1.1 100"):
                await reader.readuntil(b"\r\n\r\n")
                line = await reader.readline()
            await reader.read(64 * 1024)
    except (OSError, asyncio.IncompleteReadError, ValueError):  # TimeoutError is an OSError
        return 0
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    parts = line.split()
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _markdown(seen: list[Seen]) -> list[str]:
    rows = [HEAD, ("---",) * len(HEAD), *(one.cells() for one in seen)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    refused = [one for one in seen if one.kind != ACCEPTED]
    silence = max((one.longest_ms for one in refused), default=0.0)
    ratio = max((one.peak_mib / one.before_mib for one in refused), default=0.0)
    longest = max((one.longest_ms for one in seen), default=0.0)
    peak = max((one.peak_mib for one in seen), default=0.0)
    verdicts = [
        f"refusals: longest silence {silence:.0f} ms: {_word(silence <= SILENCE_BAR_MS)} ({SILENCE_BAR_MS:g} ms)",
        f"refusals: memory {ratio:.2f} of before: {_word(ratio <= MEMORY_BAR)} ({MEMORY_BAR:g})",
        f"all: longest silence {longest:.0f} ms: {_word(longest <= SILENCE_BAR_MS)} ({SILENCE_BAR_MS:g} ms)",
        f"all: peak {peak:.0f} MiB: {_word(peak <= PEAK_BAR_MIB)} ({PEAK_BAR_MIB:,} MiB)",
    ]
    return [*lines, "", *(f"- {verdict}" for verdict in verdicts)]


def _word(reached: bool) -> str:
    return "met" if reached else "MISSED"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m loadtests.stress.fuzz", description="What refusals cost.")
    parser.add_argument("--seed", type=between(0, 2**32, int), default=0, help="default %(default)s")
    parser.add_argument("--targets", nargs="+", choices=[target.name for target in targets()], help="default: all")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all")
    parser.add_argument("--output", type=Path, help="write the table into this file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
