"""What the accept path costs: the edge beside a bare FastAPI route (bare.py), under wrk. `make bench`, or

    python -m loadtests.bench --rounds 5 --seconds 4

Both servers share one core and wrk has another; they take turns, one idle while the other is under load, and the
figure to read is the ratio of the two within a round, because machines are noisy and their neighbours unsteady. Every
request is one short sentence that the gate accepts; the edge's own metrics must say so at the end.
Exit code 0: measured; 1: something went wrong, and no figure is worth reading; 2: wrk is missing.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtests.answers import ContractBroken, read_answer
from loadtests.servers import BenchFailed, Cores, Server, choose_cores, free_port, running
from loadtests.wrk import Measurement, Wrk, write_script

RESULTS = Path(__file__).resolve().parent / "results"
SENTENCE = "what is my checking account balance"
REQUEST = json.dumps({"inputs": SENTENCE})
CONNECTIONS = (1, 32)
BAR, GOAL = 0.40, 0.50  # ours / bare in requests per second at 32 connections
WARM_UP_S = 1
OWN_CORE = 0.9  # a server that is kept busy and gets less of its core than this had to share it
PACKAGES = ("gatekeeper-cascade", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "torch")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    arguments = _parser().parse_args(argv)
    binary = shutil.which("wrk")
    if binary is None:
        print("bench: wrk is not installed; Debian and Ubuntu have it as the package `wrk`", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the servers
    try:
        report = _bench(binary, arguments.rounds, arguments.seconds)
    except BenchFailed as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(_table(report))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"accept-{report['at'].replace(':', '')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def _bench(binary: str, rounds: int, seconds: int) -> dict[str, Any]:
    cores = choose_cores()
    load_average = os.getloadavg()[0]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatekeeper-bench-")))
        print("starting the edge and the bare route ...", flush=True)
        ours = stack.enter_context(_edge(directory, cores))
        answer = _accepted_answer(ours)
        bare = stack.enter_context(_bare(directory, cores, answer))
        if _ask(bare) != answer:
            raise BenchFailed("the bare route does not answer what it was given")
        wrk = Wrk(binary, directory / "request.lua", cores.load)
        write_script(wrk.script, REQUEST)
        warm_up = [wrk.measure(server, CONNECTIONS[-1], 0, WARM_UP_S) for server in (bare, ours)]
        measured = _alternate(wrk, bare, ours, rounds, seconds)
        _check_all_accepted(ours, sum(one.requests for one in [*warm_up, *measured] if one.server == ours.name))
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python -m loadtests.bench --rounds {rounds} --seconds {seconds}",
            "wrk": " ".join(wrk.command("URL", CONNECTIONS[-1], seconds)),
            "request": REQUEST,
            "answer_bytes": len(answer),
            "cores": str(cores),
            "load_average_before": round(load_average, 2),
            "versions": {"wrk": wrk.version(), **_versions()},
            "peak_mib": {server.name: server.peak_mib for server in (bare, ours)},
            "summary": [_summary(measured, connections) for connections in CONNECTIONS],
            "measurements": [asdict(measurement) for measurement in measured],
        }


def _edge(directory: Path, cores: Cores) -> AbstractContextManager[Server]:
    """The edge with its defaults. It needs no large model: nothing here is deferred."""
    environment = {
        "GATEKEEPER_LOG_FORMAT": "json",
        "GATEKEEPER_POLICY_PATH": str(directory / "policy.db"),
        "GATEKEEPER_REMOTE_URL": "http://127.0.0.1:9",  # nobody
        "GATEKEEPER_DRAIN_S": "0",
    }
    return running(
        "gatekeeper",
        ["service.cli", "serve"],
        port=free_port(),
        ready="/readyz",
        environment=environment,
        directory=directory,
        core=cores.servers,
    )


def _bare(directory: Path, cores: Cores, answer: bytes) -> AbstractContextManager[Server]:
    """The reference, which gives the edge's own answer to everything."""
    return running(
        "bare",
        ["uvicorn", "loadtests.bare:app", "--no-access-log", "--no-server-header", "--log-level", "warning"],
        port=free_port(),
        ready="/openapi.json",
        environment={"BARE_ANSWER": answer.decode()},
        directory=directory,
        core=cores.servers,
    )


def _ask(server: Server) -> bytes:
    headers = {"content-type": "application/json"}
    try:
        response = httpx.post(f"{server.url}/v1/classify", content=REQUEST, headers=headers, trust_env=False)
    except httpx.TransportError as error:
        raise BenchFailed(f"{server.name} does not answer: {error}") from None
    if response.status_code != 200:
        raise BenchFailed(f"{server.name} answered {response.status_code}: {response.text[:200]}")
    return response.content


def _accepted_answer(edge: Server) -> bytes:
    """The edge's answer to the sentence, once it is sure that it measures the accept path."""
    body = _ask(edge)
    try:
        answer = read_answer(body, 1)
    except ContractBroken as broken:
        raise BenchFailed(f"the edge does not answer as promised: {broken}") from None
    output = answer.outputs[0]
    if output.decision != "accepted" or output.reason is not None:
        raise BenchFailed(
            f"`{SENTENCE}` was {output.decision} (confidence {output.confidence:.3f}, threshold {answer.threshold}), "
            "and this bench needs a sentence that the gate accepts"
        )
    return body


def _alternate(wrk: Wrk, bare: Server, ours: Server, rounds: int, seconds: int) -> list[Measurement]:
    measured: list[Measurement] = []
    for number in range(1, rounds + 1):
        for connections in CONNECTIONS:
            # Each is first in turn: what changes with time would else favour one of them.
            order = (bare, ours) if number % 2 else (ours, bare)
            pair = [wrk.measure(server, connections, number, seconds) for server in order]
            rates = ", ".join(f"{one.server} {one.requests_per_s:,.0f}/s" for one in pair)
            print(f"round {number} of {rounds}, connections {connections}: {rates}", flush=True)
            measured += pair
    return measured


def _check_all_accepted(edge: Server, requests: int) -> None:
    """Every item of every round was accepted, by the edge's own count."""
    items: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{edge.url}/metrics", trust_env=False).text):
        for sample in family.samples:
            if sample.name == "gatekeeper_items_total" and sample.value:
                items[sample.labels["decision"], sample.labels["reason"]] = sample.value
    accepted = items.pop(("accepted", "none"), 0.0)
    if items:
        others = ", ".join(f"{count:,.0f} {decision} ({reason})" for (decision, reason), count in items.items())
        raise BenchFailed(f"not only the accept path was measured: {others}")
    if accepted < requests:
        raise BenchFailed(f"wrk counted {requests:,} answers and the edge only {accepted:,.0f} items")


def _summary(measured: list[Measurement], connections: int) -> dict[str, Any]:
    """Medians over the rounds, and the median of the ratios within a round.

    cpu_ratio is bare's CPU time per request over ours. On a core of their own it equals the ratio of the rates; where
    other programs take turns on that core it is the steadier of the two.
    """
    runs = [one for one in measured if one.connections == connections]
    bare, ours = ([one for one in runs if one.server == name] for name in ("bare", "gatekeeper"))
    cpu_ratios = [
        reference.cpu_s_per_1000 / own.cpu_s_per_1000
        for reference, own in zip(bare, ours, strict=True)
        if reference.cpu_s_per_1000 is not None and own.cpu_s_per_1000
    ]
    return {
        "connections": connections,
        "ratio": _spread(
            own.requests_per_s / reference.requests_per_s for reference, own in zip(bare, ours, strict=True)
        ),
        "cpu_ratio": _spread(cpu_ratios) if cpu_ratios else None,
        "bare": _medians(bare),
        "gatekeeper": _medians(ours),
    }


def _medians(runs: list[Measurement]) -> dict[str, Any]:
    cpu_s = [run.cpu_s_per_1000 for run in runs if run.cpu_s_per_1000 is not None]
    shares = [run.core_share for run in runs if run.core_share is not None]
    return {
        "requests_per_s": _spread(run.requests_per_s for run in runs),
        "p50_ms": statistics.median(run.p50_ms for run in runs),
        "p99_ms": statistics.median(run.p99_ms for run in runs),
        "cpu_s_per_1000": statistics.median(cpu_s) if cpu_s else None,
        "core_share": statistics.median(shares) if shares else None,
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "low": ordered[0], "high": ordered[-1]}


def _table(report: dict[str, Any]) -> str:
    def line(*cells: str) -> str:
        connections, name, rate, *figures = cells
        return f"{connections:13}{name:12}{rate:26}" + "".join(f"{figure:>13}" for figure in figures)

    lines = [
        "",
        f"accept path, one short sentence, an answer of {report['answer_bytes']} bytes, keep-alive",
        f"{report['cores']}; load average before: {report['load_average_before']}",
        "",
        line("connections", "", "requests/s (low-high)", "p50 ms", "p99 ms", "CPU s/1,000", "peak MiB"),
    ]
    for summary in report["summary"]:
        for name in ("bare", "gatekeeper"):
            server = summary[name]
            figures = (f"{server['p50_ms']:.2f}", f"{server['p99_ms']:.2f}", _shown(server["cpu_s_per_1000"], ".3f"))
            rate = _shown_spread(server["requests_per_s"], ",.0f")
            lines.append(
                line(str(summary["connections"]), name, rate, *figures, _shown(report["peak_mib"][name], ".0f"))
            )
        cpu = summary["cpu_ratio"]
        lines.append(
            line("", "ratio", _shown_spread(summary["ratio"], ".2f"), "", "", _shown(cpu and cpu["median"], ".2f"))
        )
    return "\n".join([*lines, "", *_verdict(report["summary"][-1]), report["command"], _shown_versions(report)])


def _verdict(summary: dict[str, Any]) -> list[str]:
    """What the figures at the most connections say, and whether to believe them."""
    ratio = summary["ratio"]["median"]
    verdict = "the goal is met" if ratio >= GOAL else "above the bar" if ratio >= BAR else "BELOW the bar"
    lines = [
        f"{ratio:.2f} of the bare route at {summary['connections']} connections: {verdict} (bar {BAR}, goal {GOAL})"
    ]
    shares = [summary[name]["core_share"] for name in ("bare", "gatekeeper")]
    if None not in shares and min(shares) < OWN_CORE:
        lines.append(
            f"but the servers had only {shares[0]:.0%} and {shares[1]:.0%} of their core, others ran on it: trust the "
            f"ratio of the CPU times, {summary['cpu_ratio']['median']:.2f}, or measure again on a quiet machine"
        )
    return lines


def _shown_versions(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in report["versions"].items())


def _shown_spread(spread: dict[str, float], form: str) -> str:
    return f"{spread['median']:{form}} ({spread['low']:{form}}-{spread['high']:{form}})"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions | {"system": f"{platform.system()} {platform.release()} {platform.machine()}"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loadtests.bench", description="The accept path beside a bare FastAPI route.")
    parser.add_argument("--rounds", type=_at_least_one, default=5, help="default %(default)s")
    parser.add_argument("--seconds", type=_at_least_one, default=4, help="of load each time; default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="for the JSON; default %(default)s")
    return parser


def _at_least_one(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 1_000:
        raise argparse.ArgumentTypeError("must be between 1 and 1,000")
    return number


if __name__ == "__main__":
    sys.exit(main())
