"""How many items share a batch, and how long they wait for it, as the load grows. `make batching`, or

    python -m loadtests.stress.batching --seconds 5

From the edge's own metrics: items in a batch, seconds of a batch through the model, seconds in the queue (the metric
where there is one, else the header server-timing of the answers); and the latency that the client sees. Open loop at
shares of the capacity, then closed loop at 1 to 128 connections; for the model on the event loop (`inline`) and in a
thread of its own. The server has one core, the load another.
Exit code 0: measured; 1: something was not answered with 200, and no figure is worth reading.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from loadtests.common.client import Reply
from loadtests.common.options import between
from loadtests.common.pictures import batching_picture
from loadtests.common.servers import BenchFailed
from loadtests.stress.arrivals import LATE, NOT_SENT, OnReply, poisson
from loadtests.stress.reports import add_options, ended, figures, measured, percentiles, titles, write
from loadtests.stress.targets import Target

FACTORS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
CONNECTIONS = (1, 8, 32, 128)
DEADLINE_S = 5.0  # nothing should ever be so late below the capacity
POOL = 512
QUEUE = re.compile(rb"\bqueue;dur=([\d.]+)")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON and the picture."""
    arguments = _parser().parse_args(argv)
    return ended("batching", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    report = measured(
        "batching",
        arguments.targets,
        lambda edge: _measure_target(edge, arguments.seconds),
        saying="measuring",
        headers={},
        GATEKEEPER_MAX_QUEUE_WAIT_MS="60000",  # the whole queue is to be seen, not what admission leaves of it
    )
    for found in report["targets"]:
        print(_table(found))
    write("batching", report, arguments, batching_picture)
    return 0


def _measure_target(edge: Target, seconds: float) -> dict[str, Any]:
    closed = edge.capacity()
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
    waits_ms: list[float] = []
    read, before = read_wait(waits_ms), edge.metrics()
    if factor is None:
        outcomes = edge.closed(connections, seconds, read)
    else:
        moments, at_once = poisson(rate, seconds, 1), int(rate * 0.1) + 1
        outcomes = edge.opened(moments, DEADLINE_S, connections=POOL, at_once=at_once, on_reply=read)
    after = edge.metrics()
    latencies_ms = outcomes.latencies[outcomes.statuses == 200] * 1000
    wrong = sorted({int(status) for status in outcomes.statuses} - {200, LATE, NOT_SENT})
    if wrong or not len(latencies_ms):
        raise BenchFailed(f"{edge.name}: not only 200 came back: {wrong}")
    p50_ms, p99_ms = percentiles(latencies_ms)
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
        "queue_p99_ms": percentiles(waits_ms)[1],
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
    }


def read_wait(waits_ms: list[float]) -> OnReply:
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
        f"{'load':16}" + titles(COLUMNS, 12) + "  batches by size",
    ]
    for row in found["rows"]:
        load = f"{row['connections']} connections" if row["factor"] is None else f"{row['factor']:g}x"
        total = sum(row["batches"].values())
        sizes = ", ".join(f"<={size} {count / total:.0%}" for size, count in row["batches"].items())
        lines.append(
            f"{load:16}{figures(row, COLUMNS, 12)}  {sizes}" + (f"; {row['late']:,} LATE" if row["late"] else "")
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loadtests.stress.batching", description="Batch size and queue wait against load.")
    seconds = between(1, 600, float)
    parser.add_argument("--seconds", type=seconds, default=5.0, help="of load each time; default %(default)g")
    add_options(parser, ("inline", "thread"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
