"""How many items share a batch, and how long they wait for it, as the load grows. `make batching`, or

    python -m loadtests.stress.batching --seconds 5

From the edge's own metrics: items in a batch, seconds of a batch through the model, seconds in the queue (the metric
where there is one, else the header server-timing of the answers); and the latency that the client sees. Open loop at
shares of the capacity, then closed loop at 1 to 128 connections; for the model on the event loop (`inline`) and in a
thread of its own. The server has one core, the load another.
Exit code 0: measured; 1: something was not answered with 200, and no figure is worth reading.
"""

import argparse
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.common.client import Reply
from loadtests.common.options import RESULTS, between
from loadtests.common.pictures import batching_picture
from loadtests.common.servers import BenchFailed, choose_cores
from loadtests.stress.arrivals import LATE, NOT_SENT, Outcomes, closed_loop, open_loop, poisson, run_load
from loadtests.stress.targets import TARGETS, Target, target

FACTORS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
CONNECTIONS = (1, 8, 32, 128)
CAPACITY_CONNECTIONS, CAPACITY_S = 32, 3.0
DEADLINE_S = 5.0  # nothing should ever be so late below the capacity
POOL = 512
QUEUE = re.compile(rb"\bqueue;dur=([\d.]+)")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON and the picture."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the servers
    try:
        report = _measure(arguments)
    except BenchFailed as reason:
        print(f"batching: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for found in report["targets"]:
        print(_table(found))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"batching-{report['at'].replace(':', '')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for picture in (path.with_suffix(".png"), arguments.picture):
        if picture is not None:
            batching_picture(report, picture)
            print(f"written to {picture}")
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = choose_cores()
    load_average = os.getloadavg()[0]
    if cores.load is not None:
        os.sched_setaffinity(0, {cores.load})
    found = []
    with tempfile.TemporaryDirectory(prefix="gatekeeper-batching-") as directory:
        for name in arguments.targets:
            print(f"measuring `{name}` ...", flush=True)
            # The whole queue is to be seen, not what admission leaves of it.
            with target(name, Path(directory), cores, {}, GATEKEEPER_MAX_QUEUE_WAIT_MS="60000") as edge:
                found.append(_measure_target(edge, arguments.seconds))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "loadtests.stress.batching", *sys.argv[1:]]),
        "cores": str(cores),
        "load_average_before": round(load_average, 2),
        "targets": found,
    }


def _measure_target(edge: Target, seconds: float) -> dict[str, Any]:
    closed, _ = _closed(edge, CAPACITY_CONNECTIONS, CAPACITY_S)
    capacity = len(closed.statuses) / closed.seconds
    rows = [_row(edge, seconds, factor=factor, rate=factor * capacity) for factor in FACTORS]
    rows += [_row(edge, seconds, connections=connections) for connections in CONNECTIONS]
    return {
        "name": edge.name,
        "runner": edge.runner,
        "item_ms": edge.item_ms,
        "capacity_per_s": capacity,
        "rows": rows,
    }


def _row(
    edge: Target, seconds: float, *, factor: float | None = None, rate: float = 0.0, connections: int = 0
) -> dict[str, Any]:
    before = edge.metrics()
    outcomes, waits_ms = _closed(edge, connections, seconds) if factor is None else _open(edge, rate, seconds)
    after = edge.metrics()
    latencies_ms = outcomes.latencies[outcomes.statuses == 200] * 1000
    wrong = sorted({int(status) for status in outcomes.statuses} - {200, LATE, NOT_SENT})
    if wrong or not len(latencies_ms):
        raise BenchFailed(f"{edge.name}: not only 200 came back: {wrong}")
    change = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {
        "factor": factor,
        "connections": connections,
        "offered_per_s": rate or None,
        "answered_per_s": len(latencies_ms) / outcomes.seconds,
        "late": int((outcomes.statuses != 200).sum()),
        "batch_mean": _mean(change, "gatekeeper_batch_size"),
        "batches": batches(change),
        "forward_mean_ms": _ms(_mean(change, "gatekeeper_small_seconds")),
        "queue_mean_ms": _queue_ms(change, waits_ms),
        "queue_p99_ms": float(np.percentile(waits_ms, 99)) if waits_ms else None,
        "p50_ms": float(np.percentile(latencies_ms, 50)),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
    }


def _open(edge: Target, rate: float, seconds: float) -> tuple[Outcomes, list[float]]:
    async def ask() -> Outcomes:
        pool = edge.pool(POOL)
        await pool.fill(min(POOL, int(rate * 0.1) + 1))
        outcomes = await open_loop(pool, edge.request, poisson(rate, seconds, 1), DEADLINE_S, read_wait(waits_ms))
        await pool.aclose()
        return outcomes

    waits_ms: list[float] = []
    return run_load(ask()), waits_ms


def _closed(edge: Target, connections: int, seconds: float) -> tuple[Outcomes, list[float]]:
    async def ask() -> Outcomes:
        pool = edge.pool(connections)
        outcomes = await closed_loop(pool, edge.request, connections, seconds, read_wait(waits_ms))
        await pool.aclose()
        return outcomes

    waits_ms: list[float] = []
    return run_load(ask()), waits_ms


def read_wait(waits_ms: list[float]) -> Any:
    """Collects what an answer's server-timing says of its time in the queue."""

    def read(reply: Reply) -> None:
        found = QUEUE.search(reply.head)
        if found is not None:
            waits_ms.append(float(found[1]))

    return read


def batches(change: Mapping[str, float]) -> dict[str, int]:
    """Batches by size, from the histogram's cumulated buckets: {"1": 90, "2": 10, ...}, none that is empty."""
    name = "gatekeeper_batch_size_bucket{"
    buckets = [(key[len(name) : -1], count) for key, count in change.items() if key.startswith(name)]
    sizes, below = {}, 0.0
    for bound, count in sorted(buckets, key=lambda bucket: float(bucket[0])):
        if count > below:
            sizes[f"{float(bound):g}"] = int(count - below)
        below = count
    return sizes


def _queue_ms(change: Mapping[str, float], waits_ms: list[float]) -> float | None:
    own = _ms(_mean(change, "gatekeeper_queue_seconds"))
    if own is not None:
        return own
    return float(np.mean(waits_ms)) if waits_ms else None


def _mean(change: Mapping[str, float], name: str) -> float | None:
    count = change.get(f"{name}_count", 0.0)
    return change[f"{name}_sum"] / count if count else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


COLUMNS = (
    ("answered_per_s", "answered/s", ",.0f"),
    ("batch_mean", "items/batch", ".2f"),
    ("forward_mean_ms", "forward ms", ".2f"),
    ("queue_mean_ms", "queue ms", ".2f"),
    ("queue_p99_ms", "queue p99", ".2f"),
    ("p50_ms", "p50 ms", ".2f"),
    ("p99_ms", "p99 ms", ".2f"),
)


def _table(found: Mapping[str, Any]) -> str:
    lines = [
        "",
        (
            f"{found['name']}: {found['runner']} runner, {found['item_ms']:.2f} ms an item in a full batch, capacity "
            f"{found['capacity_per_s']:,.0f} requests/s"
        ),
        f"{'load':16}" + "".join(f"{title:>12}" for _, title, _ in COLUMNS) + "  batches by size",
    ]
    for row in found["rows"]:
        load = f"{row['connections']} connections" if row["factor"] is None else f"{row['factor']:g}x"
        figures = "".join(f"{'-' if row[name] is None else format(row[name], form):>12}" for name, _, form in COLUMNS)
        total = sum(row["batches"].values())
        sizes = ", ".join(f"<={size} {count / total:.0%}" for size, count in row["batches"].items())
        lines.append(f"{load:16}{figures}  {sizes}" + (f"; {row['late']:,} LATE" if row["late"] else ""))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loadtests.stress.batching", description="Batch size and queue wait against load.")
    add = parser.add_argument
    add("--seconds", type=between(1, 600, float), default=5.0, help="of load each time; default %(default)g")
    add("--targets", choices=TARGETS, nargs="+", default=("inline", "thread"))
    add("--output", type=Path, default=RESULTS, help="for JSON and picture; default %(default)s")
    add("--picture", type=Path, help="write the picture there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
