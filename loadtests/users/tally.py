"""What became of the items and requests of a run, by kind of request and by phase. Nothing of Locust in here."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from loadtests.common.answers import Answer

SIGNIFICANT = 3  # digits of a latency: within half a per cent, and few enough numbers to send to a master


class Key(NamedTuple):
    """What tells items apart. `right`, `small_right`: None for an item without a right label."""

    phase: str
    policy_version: int | None
    kind: str
    decision: str
    reason: str
    right: bool | None
    small_right: bool | None


class Row(NamedTuple):
    """The items of one kind of request, or of one phase. A share is None where there is nothing to divide by.

    joint_accuracy: the share of labelled items whose answer, whoever gave it, was right; small_accuracy: the share of
    which the small model alone would have been.
    """

    name: str
    items: int
    accepted: int
    deferred: int
    degraded: int
    deferral_ratio: float | None
    degraded_share: float | None
    labelled: int
    joint_accuracy: float | None
    small_accuracy: float | None


class Tally:
    """Items by Key, latencies and failed requests by phase. Sums of tallies are tallies: workers report to a master.

    As on the edge, a degraded item counts as deferred in the ratio: the gate had chosen to. The items of a request
    that failed as a whole are not in here, because its body does not tell them apart; it is among the failures.
    """

    def __init__(self) -> None:
        self._items: Counter[Key] = Counter()
        self._times: Counter[tuple[str, int | None, float]] = Counter()
        self._failures: Counter[str] = Counter()

    def add(self, kind: str, answer: Answer, labels: Sequence[str | None], phase: str = "", ms: float = 0.0) -> None:
        """Count an answer, with the right label of each item."""
        for output, label in zip(answer.outputs, labels, strict=True):
            right = None if label is None else output.label == label
            small_right = None if label is None or output.small is None else output.small.label == label
            reason = output.reason or "none"
            self._items[Key(phase, answer.policy_version, kind, output.decision, reason, right, small_right)] += 1
        self._times[phase, answer.policy_version, float(f"{ms:.{SIGNIFICANT}g}")] += 1

    def add_failure(self, phase: str) -> None:
        """Count a request that was not answered as promised."""
        self._failures[phase] += 1

    def take(self) -> list[list[list[Any]]]:
        """What has been counted since the last take, as plain lists; the tally is empty afterwards."""
        taken = [
            [[*key, count] for key, count in self._items.items()],
            [[*time, count] for time, count in self._times.items()],
            [[phase, count] for phase, count in self._failures.items()],
        ]
        self.clear()
        return taken

    def merge(self, taken: list[list[list[Any]]]) -> None:
        """Add what another tally gave in take()."""
        items, times, failures = taken
        for *key, count in items:
            self._items[Key(*key)] += count
        for phase, policy_version, ms, count in times:
            self._times[phase, policy_version, ms] += count
        for phase, count in failures:
            self._failures[phase] += count

    def clear(self) -> None:
        """Start again."""
        self._items.clear()
        self._times.clear()
        self._failures.clear()

    def rows(self) -> list[Row]:
        """A row for each kind of request, then one for all."""
        kinds = sorted({key.kind for key in self._items})
        return [*(self.row(kind, lambda key, kind=kind: key.kind == kind) for kind in kinds), self.row("all")]

    def row(self, name: str, wanted: Callable[[Key], bool] = lambda _: True) -> Row:
        """The items whose keys are wanted, as one row."""
        found = Counter({key: count for key, count in self._items.items() if wanted(key)})
        decisions = _counted(found, lambda key: key.decision)
        rights = _counted(found, lambda key: key.right)
        smalls = _counted(found, lambda key: key.small_right)
        items, deferred, degraded = decisions.total(), decisions["deferred"], decisions["degraded"]
        return Row(
            name,
            items,
            decisions["accepted"],
            deferred,
            degraded,
            _share(deferred + degraded, items),
            _share(degraded, items),
            rights[True] + rights[False],
            _share(rights[True], rights[True] + rights[False]),
            _share(smalls[True], smalls[True] + smalls[False]),
        )

    def reasons(self, wanted: Callable[[Key], bool] = lambda _: True) -> dict[str, int]:
        """Degraded items by reason, the most frequent first."""
        degraded = {key: count for key, count in self._items.items() if key.decision == "degraded" and wanted(key)}
        return dict(_counted(degraded, lambda key: key.reason).most_common())

    def latencies(self, wanted: Callable[[str, int | None], bool]) -> list[tuple[float, int]]:
        """(milliseconds, answered requests) of wanted phases and policy versions, in rising order."""
        found: Counter[float] = Counter()
        for (phase, policy_version, ms), count in self._times.items():
            if wanted(phase, policy_version):
                found[ms] += count
        return sorted(found.items())

    def failures(self, phase: str) -> int:
        """Requests of a phase that were not answered as promised."""
        return self._failures[phase]

    def summary(self) -> str:
        """One line: `deferral ratio 0.23 (1,234 of 5,365 items), degraded 0, joint accuracy 0.97 (...)`."""
        total = self.row("all")
        why = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons().items())
        return (
            f"deferral ratio {_two_digits(total.deferral_ratio)} "
            f"({total.deferred + total.degraded:,} of {total.items:,} items), "
            f"degraded {total.degraded:,}{f' ({why})' if why else ''}, "
            f"joint accuracy {_four_digits(total.joint_accuracy)} ({total.labelled:,} labelled items; "
            f"the small model alone {_four_digits(total.small_accuracy)})"
        )

    def write_csv(self, stream: TextIO) -> None:
        """The rows under a header."""
        writer = csv.writer(stream)
        writer.writerow(Row._fields)
        writer.writerows([cell(value) for value in row] for row in self.rows())

    def save_csv(self, path: Path) -> None:
        """write_csv into a file."""
        with path.open("w", newline="", encoding="utf-8") as stream:
            self.write_csv(stream)


def percentile(latencies: Sequence[tuple[float, int]], share: float) -> float | None:
    """The least latency that so large a share of the requests did not exceed; None of none."""
    wanted = math.ceil(share * sum(count for _, count in latencies))
    for ms, count in latencies:
        wanted -= count
        if wanted <= 0:
            return ms
    return None


def cell(value: Any) -> Any:
    """A value in a CSV file."""
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value


def _counted(items: "Counter[Key] | dict[Key, int]", what: Callable[[Key], Any]) -> "Counter[Any]":
    counted: Counter[Any] = Counter()
    for key, count in items.items():
        counted[what(key)] += count
    return counted


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _two_digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _four_digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
