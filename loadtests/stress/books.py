"""The books of a soak: where every request went, how memory grew, and the verdict on all of it."""

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from loadtests.stress.cases import Case
from loadtests.stress.watch import Sight

WARM_UP = 0.1  # of the requests; memory counts from there
MEMORY_BAR = 0.02
WELL_AGAIN = 100_000  # requests
TOLD_AT_MOST = 20


@dataclass
class Books:
    """Where every request went. `wrong` has the first few in words."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind of case, what became of it)
    decisions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0
    started: int = 0
    others: Counter[str] = field(default_factory=Counter)  # policy changes, flaps, looks at the health
    sights: list[tuple[float, int, Sight]] = field(default_factory=list)  # second, requests until then, what was seen

    def close(self, case: Case, outcome: str) -> None:
        """One request has ended."""
        self.outcomes[case.kind, outcome] += 1

    def blame(self, kind: str, reason: str) -> None:
        """Something that must not be."""
        self.wrong_count += 1
        if len(self.wrong) < TOLD_AT_MOST:
            self.wrong.append(f"{kind}: {reason}")

    @property
    def accounted(self) -> int:
        return self.outcomes.total()


def memory_growth(sights: Sequence[tuple[float, int, Sight]], requests: int) -> float | None:
    """Median memory of the last tenth of the requests after the warm-up over that of the first tenth, minus 1."""
    after = [(done, sight.memory_mib) for _, done, sight in sights if done >= WARM_UP * requests]
    tenth = (1 - WARM_UP) * requests / 10
    first = [memory for done, memory in after if done < WARM_UP * requests + tenth]
    last = [memory for done, memory in after if done >= requests - tenth]
    if not first or not last:
        return None
    return statistics.median(last) / statistics.median(first) - 1


def report(books: Books, start: Sight, end: Sight, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole run as JSON, with its verdict."""
    growth = memory_growth(books.sights, arguments.requests)
    peak = max((sight.file_descriptors for _, _, sight in books.sights), default=0)
    verdict = [
        (
            f"{books.accounted:,} of {arguments.requests:,} requests accounted for",
            books.accounted == arguments.requests,
        ),
        (f"{books.wrong_count:,} wrong or lost", books.wrong_count == 0),
        (
            f"memory after the warm-up grew by {growth:.2%} (bar {MEMORY_BAR:.0%})"
            if growth is not None
            else "memory growth: too short to tell, take more requests",
            growth is not None and growth < MEMORY_BAR,
        ),
        (
            f"file descriptors {start.file_descriptors} before, {peak} at most, {end.file_descriptors} after",
            end.file_descriptors <= start.file_descriptors,
        ),
        (
            f"connections left: {end.established} established, {end.close_wait} half closed",
            end.established == end.close_wait == 0,
        ),
    ]
    if arguments.requests >= WELL_AGAIN:  # else the large model may not have been well again in time
        both = [books.decisions[decision] for decision in ("deferred", "degraded")]
        verdict.append((f"{both[0]:,} items deferred, {both[1]:,} degraded: both were seen", min(both) > 0))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m loadtests.stress.soak --requests {arguments.requests} "
        f"--connections {arguments.connections}",
        "seconds": seconds,
        "requests_per_s": books.accounted / seconds,
        "verdict": [{"what": what, "met": met} for what, met in verdict],
        "memory_growth": growth,
        "outcomes": [[kind, outcome, count] for (kind, outcome), count in sorted(books.outcomes.items())],
        "decisions": dict(books.decisions),
        "others": dict(books.others),
        "wrong": books.wrong,
        "start": asdict(start),
        "end": asdict(end),
        "sights": [[round(at, 1), done, *asdict(sight).values()] for at, done, sight in books.sights],
    }


def shown(books: Books, seconds: float) -> list[str]:
    """The run so far, for a terminal."""
    seconds = seconds or 1e-9
    outcomes = sorted({outcome for _, outcome in books.outcomes})
    kinds = sorted({kind for kind, _ in books.outcomes})
    lines = [f"{'':12}{'all':>10}" + "".join(f"{outcome:>9}" for outcome in outcomes)]
    for kind in [*kinds, "all"]:
        counts = [
            sum(count for (k, o), count in books.outcomes.items() if o == outcome and kind in (k, "all"))
            for outcome in outcomes
        ]
        lines.append(f"{kind:12}{sum(counts):>10,}" + "".join(f"{count or '-':>9}" for count in counts))
    lines += [
        f"{books.accounted:,} requests in {seconds:,.0f} s ({books.accounted / seconds:,.0f}/s)",
        "items: " + ", ".join(f"{count:,} {decision}" for decision, count in books.decisions.items()),
        "beside them: " + ", ".join(f"{what} {count:,}" for what, count in books.others.items()),
    ]
    if books.sights:
        memory = [sight.memory_mib for _, _, sight in books.sights]
        threads = [sight.threads for _, _, sight in books.sights]
        lines.append(
            f"memory {memory[0]:.1f} MiB at first, {max(memory):.1f} at most, {memory[-1]:.1f} at last; threads "
            f"{threads[0]} at first, {max(threads)} at most"
        )
    if books.wrong_count:
        lines += [f"{books.wrong_count:,} WRONG, of them:", *(f"  {told}" for told in books.wrong)]
    return lines


def met(line: dict[str, Any]) -> str:
    return "met" if line["met"] else "NOT met"
