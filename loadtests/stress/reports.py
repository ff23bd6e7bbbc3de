"""What `overload` and `batching` have in common: edges measured one after the other, their tables, and one report."""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.common.options import RESULTS
from loadtests.common.servers import BenchFailed, choose_cores
from loadtests.stress.targets import TARGETS, Target, target

Columns = Sequence[tuple[str, str, str]]  # of each: the key in a row, the title, the format


def add_options(parser: argparse.ArgumentParser, targets: Sequence[str]) -> None:
    """Which edges, and where the report goes."""
    parser.add_argument("--targets", choices=TARGETS, nargs="+", default=targets)
    parser.add_argument("--output", type=Path, default=RESULTS, help="for JSON and picture; default %(default)s")
    parser.add_argument("--picture", type=Path, help="write the picture there too")


def ended(name: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; 1, and a line, where it raises BenchFailed; 130 after Ctrl-C. SIGTERM exits with 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the servers
    try:
        return run()
    except BenchFailed as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def measured(
    name: str,
    targets: Sequence[str],
    measure: Callable[[Target], dict[str, Any]],
    *,
    saying: str,
    headers: Mapping[str, str],
    **more: str,
) -> dict[str, Any]:
    """The report of `loadtests.stress.NAME`: what `measure` finds of each target, and what it was measured on.

    `saying` stands before a target's name in the line that tells of it; `headers` and `more` are for its `target`.
    """
    cores = choose_cores()
    load_average = os.getloadavg()[0]
    if cores.load is not None:
        os.sched_setaffinity(0, {cores.load})
    found = []
    with tempfile.TemporaryDirectory(prefix=f"gatekeeper-{name}-") as directory:
        for one in targets:
            print(f"{saying} `{one}` ...", flush=True)
            with target(one, Path(directory), cores, headers, **more) as edge:
                found.append(measure(edge))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"loadtests.stress.{name}", *sys.argv[1:]]),
        "cores": str(cores),
        "load_average_before": round(load_average, 2),
        "targets": found,
    }


def write(
    name: str,
    report: Mapping[str, Any],
    arguments: argparse.Namespace,
    draw: Callable[[Mapping[str, Any], Path], None],
) -> None:
    """The JSON into `--output`, and beside it the picture, which goes to `--picture` as well."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{name}-{report['at'].replace(':', '')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for picture in (path.with_suffix(".png"), arguments.picture):
        if picture is not None:
            draw(report, picture)
            print(f"written to {picture}")


def titles(columns: Columns, width: int) -> str:
    """The line above the figures."""
    return "".join(f"{title:>{width}}" for _, title, _ in columns)


def figures(row: Mapping[str, Any], columns: Columns, width: int) -> str:
    """A line of them; `-` where nothing was measured."""
    shown = ("-" if row[key] is None else format(row[key], form) for key, _, form in columns)
    return "".join(f"{figure:>{width}}" for figure in shown)


def percentiles(values: Sequence[float] | NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The 50th and the 99th; None where there are no values."""
    if not len(values):
        return None, None
    return float(np.percentile(values, 50)), float(np.percentile(values, 99))
