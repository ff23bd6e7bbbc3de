"""The phases of a run, which of them a request belongs to, and what was found in each. Nothing of Locust in here.

A request belongs to the phase in which it was both sent and answered; one that lay across a change belongs to none,
but for a phase that `claims` those: every request that was under way in an outage belongs to the outage. Where a phase
has a policy version, the items that were decided under that version belong to it, whenever they were sent.
"""

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from loadtests.users.tally import Key, Tally, cell, percentile

NO_PHASE = ""
# Thirteen columns, whose cells may break at every space: what fits 1,280 pixels. The file has the numbers as they are.
PHASE_COLUMNS = {
    "phase": "Phase",
    "users": "Users",
    "seconds": "Seconds",
    "requests": "Requests",
    "failures": "Failures",
    "requests_per_s": "Requests/s",
    "items": "Items",
    "deferral_ratio": "Deferral ratio",
    "degraded_share": "Degraded share",
    "degraded_by_reason": "Degraded by reason",
    "joint_accuracy": "Joint accuracy",
    "small_accuracy": "Small model alone",
    "latency": "p50 / p95 / p99 ms",
}


@dataclass
class Phase:
    """A phase that counts. Seconds: None while it lasts."""

    name: str
    users: int
    policy_version: int | None
    started: float
    seconds: float | None = None

    def holds(self, phase: str, policy_version: int | None) -> bool:
        """Whether what was counted under these belongs to it."""
        return phase == self.name if self.policy_version is None else policy_version == self.policy_version


class PhaseRow(NamedTuple):
    """What was found in a phase. Requests and latencies are of answered requests, without the malformed ones."""

    phase: str
    users: int
    seconds: float
    requests: int
    failures: int
    requests_per_s: float | None
    items: int
    deferral_ratio: float | None
    degraded_share: float | None
    degraded_by_reason: str
    joint_accuracy: float | None
    small_accuracy: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Phases:
    """Those of a run so far. `title`: what they are, in the head of their table."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.title = "phase"
        self._clock = clock
        self._counting: list[Phase] = []
        self._passed: list[tuple[str, bool]] = [(NO_PHASE, False)]

    def clear(self) -> None:
        """A new run. Requests that are still under way belong to none of its phases."""
        self._counting = []
        self._passed.append((NO_PHASE, False))

    def change(self, name: str, claims: bool = False) -> None:
        """From now on requests are sent and answered in that phase."""
        self._passed.append((name, claims))

    def moment(self) -> int:
        """Now, for phase_since."""
        return len(self._passed) - 1

    def phase_since(self, moment: int) -> str:
        """The phase to which a request belongs that was sent at that moment and is answered now."""
        passed = self._passed[moment:]
        for name, claims in reversed(passed):
            if claims:
                return name
        return passed[0][0] if len(passed) == 1 else NO_PHASE

    def count(self, name: str, users: int, policy_version: int | None = None) -> None:
        """A phase that has a row begins."""
        self._counting.append(Phase(name, users, policy_version, self._clock()))

    def close(self) -> bool:
        """The phase that has a row is over; False if there is none."""
        if not self._counting or self._counting[-1].seconds is not None:
            return False
        self._counting[-1].seconds = self._clock() - self._counting[-1].started
        return True

    def rows(self, tally: Tally) -> list[PhaseRow]:
        """A row for each phase."""
        return [self._row(phase, tally) for phase in self._counting]

    def elsewhere(self, tally: Tally) -> int:
        """Items that are in none of the rows: of requests before the first, after the last or across a change."""
        return tally.row("", lambda key: not any(_holds(phase, key) for phase in self._counting)).items

    def write_csv(self, stream: Any, tally: Tally) -> None:
        """The rows under a header, whose first column is called what the phases are."""
        writer = csv.writer(stream)
        writer.writerow([self.title, *PhaseRow._fields[1:]])
        writer.writerows([cell(value) for value in row] for row in self.rows(tally))

    def _row(self, phase: Phase, tally: Tally) -> PhaseRow:
        row = tally.row(phase.name, lambda key: _holds(phase, key))
        reasons = tally.reasons(lambda key: _holds(phase, key))
        latencies = tally.latencies(phase.holds)
        requests = sum(count for _, count in latencies)
        seconds = self._clock() - phase.started if phase.seconds is None else phase.seconds
        return PhaseRow(
            phase.name,
            phase.users,
            seconds,
            requests,
            tally.failures(phase.name),
            requests / seconds if seconds else None,
            row.items,
            row.deferral_ratio,
            row.degraded_share,
            " ".join(f"{reason}={count}" for reason, count in reasons.items()),
            row.joint_accuracy,
            row.small_accuracy,
            *(percentile(latencies, share) for share in (0.5, 0.95, 0.99)),
        )


def _holds(phase: Phase, key: Key) -> bool:
    return phase.holds(key.phase, key.policy_version)


def shown_phase(row: PhaseRow) -> dict[str, str | int]:
    """The numbers of a phase as a page shows them, in cells that a narrow column can break."""
    cells = {key: shown(getattr(row, key)) for key in PHASE_COLUMNS if key != "latency"}
    latencies = (row.p50_ms, row.p95_ms, row.p99_ms)
    return cells | {
        "seconds": f"{row.seconds:.1f}",
        "requests_per_s": _three_digits(row.requests_per_s),
        "degraded_by_reason": row.degraded_by_reason.replace(" ", ", ").replace("_", " ").replace("=", " ") or "-",
        "latency": " / ".join(_three_digits(value) for value in latencies),
    }


def _three_digits(value: float | None) -> str:
    """Of a number that is exact to no more than that: 5.79, 33.5, 1234."""
    if value is None:
        return "-"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def shown(value: Any) -> str | int:
    """A value for a reader."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else value
