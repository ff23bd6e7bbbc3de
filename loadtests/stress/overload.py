"""What the edge still does when far more is asked of it than it can do. `make overload`, or

    python -m loadtests.stress.overload --seconds 6 --rounds 3

First a closed loop finds the capacity; then requests arrive by themselves (arrivals.py) at half of it to ten times it.
Goodput: answers with 200 within the deadline of their intended moment. Two edges: `default`, where HTTP is what costs,
and `model-bound`, whose model takes 10 ms and more an item. The server has one core, the load another; a step whose
load could not be sent is marked, with what was.
Exit code 0: measured, and nothing but 200 and 429 came back; 1: something else did, or nothing could be measured.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadtests.common.options import between
from loadtests.common.pictures import overload_picture
from loadtests.common.servers import BenchFailed
from loadtests.stress.arrivals import LATE, NOT_SENT, Outcomes, poisson
from loadtests.stress.reports import add_options, ended, figures, measured, percentiles, titles, write
from loadtests.stress.targets import CAPACITY_CONNECTIONS, Target
from loadtests.stress.watch import own_cpu_s, peak_mib, reset_peak

FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
WARM_UP = 0.25  # the share of a step whose arrivals are not counted
DRAINED_WITHIN_S = 60.0
OFFERED = 0.95  # with less than this share sent, a step was another one than it says
# Of goodput over the best of its round, of the 99th percentile of refusals, of what overload adds to the memory.
MODEL_BOUND_BAR, DEFAULT_BAR, REFUSAL_BAR_MS, MEMORY_BAR_MIB = 0.9, 0.7, 20.0, 128.0


@dataclass(frozen=True)
class Step:
    """One load on one edge, once. Rates are per second over the counted part, latencies from the intended moment."""

    target: str
    factor: float
    round: int
    planned_per_s: float
    sent_per_s: float
    goodput_per_s: float
    refused: int
    late: int
    not_sent: int
    errors: int  # broken connections, and statuses besides 200 and 429
    p50_ms: float | None
    p99_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    lag_p99_ms: float | None  # intended to sent
    peak_mib: float | None
    server_core: float | None  # CPU time over wall time
    load_core: float


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and the verdict, write the JSON and the picture."""
    arguments = _parser().parse_args(argv)
    return ended("overload", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    headers = {"x-request-timeout-ms": str(round(arguments.deadline * 1000))} if arguments.tell_deadline else {}
    report = measured(
        "overload",
        arguments.targets,
        lambda edge: _measure_target(edge, arguments),
        saying="starting the edge",
        headers=headers,
    )
    report |= {"deadline_s": arguments.deadline, "connections": arguments.connections}
    report["verdict"] = [line for found in report["targets"] for line in verdict_of(found)]
    for found in report["targets"]:
        print(_table(found))
    print("\n".join(["", *report["verdict"]]))
    write("overload", report, arguments, overload_picture)
    return int(any(step["errors"] for found in report["targets"] for step in found["steps"]))


def _measure_target(edge: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    closed = edge.capacity()
    capacity = len(closed.statuses) / closed.seconds
    print(f"{edge.name}: {capacity:,.0f} requests/s at {CAPACITY_CONNECTIONS} connections", flush=True)
    steps = []
    for number in range(1, arguments.rounds + 1):
        # Up and down in turn: what changes with time would else look like an effect of the load.
        for factor in arguments.factors if number % 2 else reversed(arguments.factors):
            step = _step(edge, factor, factor * capacity, number, arguments)
            print(f"  {factor:>4g}x: {step.goodput_per_s:,.0f}/s in time, {step.refused:,} refused", flush=True)
            steps.append(step)
            _wait_until_drained(edge)
    return {
        "name": edge.name,
        "runner": edge.runner,
        "item_ms": edge.item_ms,
        "request_bytes": len(edge.request),
        "capacity_per_s": capacity,
        "closed_p99_ms": percentiles(closed.latencies)[1],
        "summary": [summary_of(steps, factor) for factor in arguments.factors],
        "steps": [asdict(step) for step in steps],
    }


def _step(edge: Target, factor: float, rate: float, number: int, arguments: argparse.Namespace) -> Step:
    moments = poisson(rate, arguments.seconds, number)
    reset_peak(edge.server.process.pid)
    cpu_before_s, own_before_s, began = edge.server.tree.cpu_s(), own_cpu_s(), time.perf_counter()
    # As many as can be in flight before the deadline: a server that must also accept them is another measurement.
    at_once = int(rate * arguments.deadline) + 1
    outcomes = edge.opened(moments, arguments.deadline, connections=arguments.connections, at_once=at_once)
    elapsed_s, cpu_after_s = time.perf_counter() - began, edge.server.tree.cpu_s()
    if edge.server.process.poll() is not None:
        raise BenchFailed(f"{edge.name} has ended with exit code {edge.server.process.returncode}")
    found = counted(outcomes, arguments.seconds * WARM_UP, arguments.seconds)
    return Step(
        target=edge.name,
        factor=factor,
        round=number,
        planned_per_s=rate,
        peak_mib=peak_mib(edge.server.process.pid),
        server_core=None if cpu_before_s is None or cpu_after_s is None else (cpu_after_s - cpu_before_s) / elapsed_s,
        load_core=(own_cpu_s() - own_before_s) / elapsed_s,
        **found,
    )


def counted(outcomes: Outcomes, from_s: float, to_s: float) -> dict[str, Any]:
    """The figures of a Step that come from the requests whose intended moment lies in [from_s, to_s)."""
    chosen = (outcomes.offsets >= from_s) & (outcomes.offsets < to_s)
    statuses, latencies = outcomes.statuses[chosen], outcomes.latencies[chosen] * 1000
    good, refused = statuses == 200, statuses == 429
    late, not_sent = statuses == LATE, statuses == NOT_SENT
    p50_ms, p99_ms = percentiles(latencies[good])
    refusal_p50_ms, refusal_p99_ms = percentiles(latencies[refused])
    return {
        "sent_per_s": float((~not_sent).sum() / (to_s - from_s)),
        "goodput_per_s": float(good.sum() / (to_s - from_s)),
        "refused": int(refused.sum()),
        "late": int(late.sum()),
        "not_sent": int(not_sent.sum()),
        "errors": int((~(good | refused | late | not_sent)).sum()),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "refusal_p50_ms": refusal_p50_ms,
        "refusal_p99_ms": refusal_p99_ms,
        "lag_p99_ms": percentiles(outcomes.lags[chosen & np.isfinite(outcomes.lags)] * 1000)[1],
    }


def _wait_until_drained(edge: Target) -> None:
    deadline = time.monotonic() + DRAINED_WITHIN_S
    while edge.metrics()["gatekeeper_queue_depth"]:
        if time.monotonic() > deadline:
            raise BenchFailed(f"the queue of {edge.name} is not empty {DRAINED_WITHIN_S:g} s after its load has ended")
        time.sleep(0.1)


def summary_of(steps: Sequence[Step], factor: float) -> dict[str, Any]:
    """Medians over the rounds; the share of the best is taken within each round."""
    best = {number: max(step.goodput_per_s for step in steps if step.round == number) for number in _rounds(steps)}
    runs = [step for step in steps if step.factor == factor]
    shares = [step.goodput_per_s / best[step.round] if best[step.round] else 0.0 for step in runs]
    names = (
        *("planned_per_s", "sent_per_s", "goodput_per_s", "p50_ms", "p99_ms", "refusal_p50_ms", "refusal_p99_ms"),
        *("lag_p99_ms", "peak_mib", "server_core", "load_core", "refused", "late", "not_sent", "errors"),
    )
    medians = {name: _median(getattr(step, name) for step in runs) for name in names}
    return {"factor": factor, "share": statistics.median(shares), "shares": shares, **medians}


def _rounds(steps: Sequence[Step]) -> set[int]:
    return {step.round for step in steps}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def verdict_of(found: Mapping[str, Any]) -> list[str]:
    """What the figures say of the bars, one line each."""
    name, summary, steps = found["name"], found["summary"], found["steps"]
    lines = []
    beyond = [one for one in summary if one["factor"] > 1]
    if found["item_ms"] >= 10 and beyond:
        worst = min(beyond, key=lambda one: one["share"])
        label = f"{name}: goodput beyond 1x is at least {worst['share']:.2f} of its best, at {worst['factor']:g}x"
        lines.append(f"{label}: {_met(worst['share'] >= MODEL_BOUND_BAR)} (bar {MODEL_BOUND_BAR})")
        refusals = [one["refusal_p99_ms"] for one in beyond if one["refusal_p99_ms"] is not None]
        slowest = max(refusals) if refusals else None
        lines.append(
            f"{name}: nothing was refused"
            if slowest is None
            else f"{name}: refusals p99 {slowest:.1f} ms: {_met(slowest < REFUSAL_BAR_MS)} (bar {REFUSAL_BAR_MS:g} ms)"
        )
    for one in summary:
        if found["item_ms"] < 10 and one["factor"] == 1.5:
            share = one["share"]
            lines.append(
                f"{name}: goodput at 1.5x is {share:.2f} of its best: {_met(share >= DEFAULT_BAR)} (bar {DEFAULT_BAR})"
            )
    peaks = [(step["factor"], step["peak_mib"]) for step in steps if step["peak_mib"] is not None]
    calm, loud = [peak for factor, peak in peaks if factor < 1], [peak for factor, peak in peaks if factor > 1]
    if calm and loud:
        added = max(loud) - max(calm)
        lines.append(
            f"{name}: overload adds {added:+.0f} MiB to a peak of {max(calm):.0f}: {_met(added < MEMORY_BAR_MIB)} "
            f"(bar {MEMORY_BAR_MIB:g} MiB)"
        )
    errors = sum(step["errors"] for step in steps)
    lines.append(f"{name}: {errors:,} answers besides 200 and 429: {_met(not errors)}")
    return lines


def _met(met: bool) -> str:
    return "met" if met else "NOT met"


COLUMNS = (
    ("share", "of best", ".2f"),
    ("p50_ms", "p50 ms", ",.1f"),
    ("p99_ms", "p99 ms", ",.1f"),
    ("refused", "refused", ",.0f"),
    ("refusal_p50_ms", "p50 ms", ",.1f"),
    ("refusal_p99_ms", "p99 ms", ",.1f"),
    ("late", "late", ",.0f"),
    ("errors", "errors", ",.0f"),
    ("peak_mib", "MiB", ",.0f"),
    ("server_core", "core", ".0%"),
    ("load_core", "load", ".0%"),
)


def _table(found: Mapping[str, Any]) -> str:
    lines = [
        "",
        (
            f"{found['name']}: {found['runner']} runner, {found['item_ms']:.2f} ms an item, capacity "
            f"{found['capacity_per_s']:,.0f} requests/s (closed loop, {CAPACITY_CONNECTIONS} connections)"
        ),
        f"{'load':>5} {'sent/s':>17} {'in time/s':>10}" + titles(COLUMNS, 9),
    ]
    for one in found["summary"]:
        sent = f"{one['sent_per_s']:,.0f}"
        if one["sent_per_s"] < OFFERED * one["planned_per_s"]:
            sent += f" of {one['planned_per_s']:,.0f}"
        in_time = f"{one['goodput_per_s']:>10,.0f}"
        lines.append(f"{one['factor']:>4g}x {sent:>17} {in_time}{figures(one, COLUMNS, 9)}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "loadtests.stress.overload", description="Goodput and latency from 0.5x to 10x capacity."
    )
    add = parser.add_argument
    add("--seconds", type=between(1, 600, float), default=6.0, help="of each step; default %(default)g")
    add("--rounds", type=between(1, 100, int), default=3, help="default %(default)s")
    add("--deadline", type=between(0.01, 60, float), default=1.0, help="in seconds; default %(default)g")
    add("--tell-deadline", action="store_true", help="send the deadline along, as x-request-timeout-ms")
    add("--connections", type=between(1, 50_000, int), default=4_096, help="at most; default %(default)s")
    add("--factors", type=between(0.01, 100, float), nargs="+", default=FACTORS, help="of the capacity")
    add_options(parser, ("default", "model-bound"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
