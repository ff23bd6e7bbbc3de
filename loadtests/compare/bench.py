"""What the edge costs, beside a bare FastAPI route, other model servers and LLM gateways, under wrk. `make bench`, or

    python -m loadtests.compare.bench --rounds 5 --seconds 4
    python -m loadtests.compare.bench --skip-peers         # `make bench-quick`: the edge and its references alone
    python -m loadtests.compare.bench --peers litserve,litellm

accept.py and defer.py say what is compared with what; peers/ how the others are set up. All servers share one core and
wrk has another; they take turns, all but one paused, and the figure to read is a ratio within a round, because machines
are noisy and their neighbours unsteady.
Exit code 0: measured; 1: something went wrong: what a table still says was measured; 2: wrk is missing.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtests.common.servers import BenchFailed, Cores, choose_cores
from loadtests.compare.accept import PEERS, measure_accept
from loadtests.compare.contest import Plan
from loadtests.compare.defer import gateways, measure_defer
from loadtests.compare.plot import save_plot
from loadtests.compare.report import PathReport
from loadtests.compare.table import markdown, text
from loadtests.compare.wrk import wrk_version

RESULTS = Path(__file__).resolve().parent.parent / "results"
CONNECTIONS = (1, 32, 128)
NAMES = tuple(peer.name for peer in (*PEERS, *gateways("")))
PACKAGES = ("gatekeeper-cascade", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "torch")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON and whatever else was asked for."""
    arguments = _parser().parse_args(argv)
    binary = shutil.which("wrk")
    if binary is None:
        print("bench: wrk is not installed; Debian and Ubuntu have it as the package `wrk`", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the servers
    cores, load_average = choose_cores(), os.getloadavg()[0]
    try:
        reports = _measure(Plan(binary, arguments.rounds, arguments.seconds, CONNECTIONS), arguments, cores)
    except BenchFailed as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    head = _head(arguments, binary, cores, load_average)
    for report in reports:
        print(f"\n{report.path} path, one short sentence, an answer of {report.answer_bytes} bytes, keep-alive\n")
        print(text(report))
    print("\n" + "\n".join(_facts(head, reports)))
    _write(arguments, head, reports)
    broken = [name for report in reports for name in report.failed]
    if broken:
        print(f"bench: not every request was answered by {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def _measure(plan: Plan, arguments: argparse.Namespace, cores: Cores) -> list[PathReport]:
    reports = []
    with tempfile.TemporaryDirectory(prefix="gk-") as name:  # short: Ray has its sockets there
        for path in arguments.paths:
            directory = Path(name) / path
            directory.mkdir()
            if path == "accept":
                peers = [peer for peer in PEERS if peer.name in arguments.peers]
                reports.append(measure_accept(plan, peers, directory, cores))
            else:
                reports.append(measure_defer(plan, arguments.peers, directory, cores))
    return reports


def _head(arguments: argparse.Namespace, binary: str, cores: Cores, load_average: float) -> dict[str, Any]:
    chosen = f" --peers {','.join(arguments.peers)}" if arguments.peers else " --skip-peers"
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m loadtests.compare.bench --rounds {arguments.rounds} --seconds {arguments.seconds}"
        + chosen,
        "cores": str(cores),
        "load_average_before": round(load_average, 2),
        "versions": {"wrk": wrk_version(binary), **_versions()},
    }


def _facts(head: dict[str, Any], reports: Sequence[PathReport]) -> list[str]:
    versions = head["versions"] | {name: number for report in reports for name, number in report.versions.items()}
    return [
        f"{head['command']}, {head['at']}",
        f"{head['cores']}; load average before: {head['load_average_before']}",
        "MiB: PSS of a server and all its children, the most after any load; CPU of all of them too",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def _write(arguments: argparse.Namespace, head: dict[str, Any], reports: Sequence[PathReport]) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"bench-{head['at'].replace(':', '')}.json"
    path.write_text(
        json.dumps(head | {"paths": [asdict(report) for report in reports]}, indent=1) + "\n", encoding="utf-8"
    )
    written = [path]
    if arguments.markdown is not None:
        tables = [f"**{report.path} path**\n\n{markdown(report)}" for report in reports]
        facts = "\n".join(f"- {fact}" for fact in _facts(head, reports))
        arguments.markdown.write_text("\n\n".join([*tables, facts]) + "\n", encoding="utf-8")
        written.append(arguments.markdown)
    if arguments.plot is not None:
        save_plot(reports, arguments.plot)
        written.append(arguments.plot)
    print("written to " + ", ".join(map(str, written)))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions | {"system": f"{platform.system()} {platform.release()} {platform.machine()}"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loadtests.compare.bench", description="The edge beside other servers, under wrk.")
    parser.add_argument("--rounds", type=_at_least_one, default=5, help="default %(default)s")
    parser.add_argument("--seconds", type=_at_least_one, default=4, help="of load each time; default %(default)s")
    parser.add_argument("--peers", type=_peers, default=NAMES, help=f"of {','.join(NAMES)}; default all")
    parser.add_argument("--skip-peers", dest="peers", action="store_const", const=(), help="none of them")
    parser.add_argument("--paths", type=_paths, default=("accept", "defer"), help="accept, defer or accept,defer")
    parser.add_argument("--output", type=Path, default=RESULTS, help="for the JSON; default %(default)s")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG")
    return parser


def _peers(value: str) -> tuple[str, ...]:
    return _some_of(value, NAMES)


def _paths(value: str) -> tuple[str, ...]:
    return _some_of(value, ("accept", "defer"))


def _some_of(value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = value.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _at_least_one(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 1_000:
        raise argparse.ArgumentTypeError("must be between 1 and 1,000")
    return number


if __name__ == "__main__":
    sys.exit(main())
