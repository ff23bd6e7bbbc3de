"""Medians and spreads over the rounds of a contest, and ratios within a round."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.compare.wrk import Measurement


@dataclass(frozen=True)
class Spread:
    """The middle of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One server at one number of connections.

    Against its reference in the same round: `of_reference` (its requests/s over the reference's), `cpu_of_reference`
    (the reference's CPU time per request over its own: the steadier one where others run on the core) and
    `p50_added_ms`. Against ours in the same round: `ours_over` (our requests/s over its).
    """

    server: str
    connections: int
    rounds: int
    requests_per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    cpu_s_per_1000: Spread | None
    core_share: float | None
    of_reference: Spread | None
    cpu_of_reference: Spread | None
    p50_added_ms: Spread | None
    ours_over: Spread | None


def rows(measurements: Sequence[Measurement], references: Mapping[str, str | None], ours: str) -> list[Row]:
    """A row for each server and number of connections, in the order of `references`."""
    by_key = {(one.server, one.connections, one.round): one for one in measurements}
    levels = sorted({one.connections for one in measurements})
    found = []
    for connections in levels:
        for server, reference in references.items():
            own = [one for one in measurements if (one.server, one.connections) == (server, connections)]
            if own:
                found.append(_row(own, by_key, reference, ours))
    return found


def _row(
    own: Sequence[Measurement], by_key: Mapping[tuple[str, int, int], Measurement], reference: str | None, ours: str
) -> Row:
    def pairs(other: str | None) -> list[tuple[Measurement, Measurement]]:
        """(this server, the other) of the same round."""
        keys = [(one, (other or "", one.connections, one.round)) for one in own]
        return [(one, by_key[key]) for one, key in keys if key in by_key and other != one.server]

    against, with_ours = pairs(reference), pairs(ours)
    return Row(
        server=own[0].server,
        connections=own[0].connections,
        rounds=len(own),
        requests_per_s=_certain(one.requests_per_s for one in own),
        p50_ms=_certain(one.p50_ms for one in own),
        p99_ms=_certain(one.p99_ms for one in own),
        cpu_s_per_1000=spread(one.cpu_s_per_1000 for one in own if one.cpu_s_per_1000 is not None),
        core_share=_middle(one.core_share for one in own if one.core_share is not None),
        of_reference=spread(one.requests_per_s / other.requests_per_s for one, other in against),
        cpu_of_reference=spread(
            other.cpu_s_per_1000 / one.cpu_s_per_1000
            for one, other in against
            if one.cpu_s_per_1000 and other.cpu_s_per_1000 is not None
        ),
        p50_added_ms=spread(one.p50_ms - other.p50_ms for one, other in against),
        ours_over=spread(other.requests_per_s / one.requests_per_s for one, other in with_ours),
    )


def peak_memory(measurements: Iterable[Measurement]) -> dict[str, float]:
    """The most that each server held after any load, MiB."""
    peaks: dict[str, float] = {}
    for one in measurements:
        if one.memory_mib is not None:
            peaks[one.server] = max(one.memory_mib, peaks.get(one.server, 0.0))
    return peaks


def spread(values: Iterable[float]) -> Spread | None:
    """None of nothing."""
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1]) if ordered else None


def _certain(values: Iterable[float]) -> Spread:
    found = spread(values)
    assert found is not None, "a server without a measurement has no row"
    return found


def _middle(values: Iterable[float]) -> float | None:
    found = spread(values)
    return None if found is None else found.median
