"""The table of a path, for a terminal and as Markdown, and what it says about the goals."""

from collections.abc import Sequence

from loadtests.compare.report import OURS, PathReport
from loadtests.compare.summary import Row, Spread

TITLES = {"accept": "of bare", "defer": "p50 added ms"}
# The goals: requests/s over the bare route's at 32 connections, and over two peers'; ms and requests/s of a
# deferred request.
BAR, GOAL = 0.40, 0.50
FACTORS = {"litserve": 4.0, "bentoml": 6.0}
ADDED_MS, ADDED_SHARE, DEFERRED_PER_S = 1.0, 0.1, 1_500.0
OWN_CORE = 0.9  # a server that is kept busy and gets less of its core than this had to share it
WIDTHS = (13, 15, 26, 10, 10, 13, 7, 29, 20)


def columns(path: str) -> tuple[str, ...]:
    """The titles."""
    return (
        *("connections", "server", "requests/s (low-high)", "p50 ms", "p99 ms", "CPU s/1,000", "MiB"),
        *(f"{TITLES[path]} (low-high)", "ours is"),
    )


def cells(report: PathReport) -> list[tuple[str, ...]]:
    """A line for each row, then one for each peer that has none."""
    lines = [_cells(report, row) for row in report.rows]
    gap = ("",) * (len(WIDTHS) - 3)
    return lines + [("", name, f"none: {reason}", *gap) for name, reason in report.missing.items()]


def _cells(report: PathReport, row: Row) -> tuple[str, ...]:
    compared = row.of_reference if report.path == "accept" else row.p50_added_ms
    return (
        f"{row.connections}",
        row.server,
        _shown(row.requests_per_s, ",.0f"),
        f"{row.p50_ms.median:.2f}",
        f"{row.p99_ms.median:.2f}",
        "-" if row.cpu_s_per_1000 is None else f"{row.cpu_s_per_1000.median:.3f}",
        f"{report.peak_mib[row.server]:.0f}" if row.server in report.peak_mib else "-",
        _shown(compared, ".2f"),
        # Of a reference the ratio is the other way round, in our own row.
        "" if row.ours_over is None or row.of_reference is None else f"{_shown(row.ours_over, '.1f')} x",
    )


def text(report: PathReport) -> str:
    """For a terminal."""
    lines = ["".join(map(str.ljust, line, WIDTHS)).rstrip() for line in _all(report)]
    return "\n".join([*lines, "", *verdict(report)])


def markdown(report: PathReport) -> str:
    """For a page."""
    head, *body = _all(report)
    shown, last = [], ""
    for line in body:
        shown.append(("" if line[0] == last else line[0], *line[1:]))
        last = line[0]
    lines = ["| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *shown)]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdict(report))])


def _all(report: PathReport) -> list[tuple[str, ...]]:
    return [columns(report.path), *cells(report)]


def verdict(report: PathReport) -> list[str]:
    """What the figures say, and whether to believe them."""
    lines = _accept_verdict(report) if report.path == "accept" else _defer_verdict(report)
    return [*lines, *_shared_core(report)]


def _accept_verdict(report: PathReport) -> list[str]:
    ours = report.row(OURS, 32)
    if ours is None or ours.of_reference is None:
        return []
    ratio = ours.of_reference.median
    word = "the goal is met" if ratio >= GOAL else "above the bar" if ratio >= BAR else "BELOW the bar"
    lines = [f"{ratio:.2f} of the bare route at 32 connections: {word} (bar {BAR:.2f}, goal {GOAL:.2f})"]
    for peer, wanted in FACTORS.items():
        row = report.row(peer, 32)
        if row is not None and row.ours_over is not None:
            word = _word(row.ours_over.median >= wanted)
            lines.append(f"{row.ours_over.median:.1f}x {peer} at 32 connections: {word} (goal {wanted:g}x)")
    return lines


def _defer_verdict(report: PathReport) -> list[str]:
    ours, many = report.row(OURS, 1), report.row(OURS, 32)
    if ours is None or ours.p50_added_ms is None or many is None:
        return []
    added, rate = ours.p50_added_ms.median, many.requests_per_s.median
    fast, many_enough = _word(added <= ADDED_MS), _word(rate >= DEFERRED_PER_S)
    lines = [
        f"{added:.2f} ms added at 1 connection: {fast} (goal {ADDED_MS:g} ms)",
        f"{rate:,.0f} requests/s at 32 connections: {many_enough} (goal {DEFERRED_PER_S:,.0f})",
    ]
    litellm = report.row("litellm", 1)
    if litellm is not None and litellm.p50_added_ms is not None:
        share = added / litellm.p50_added_ms.median
        word = _word(share <= ADDED_SHARE)
        lines.append(f"{share:.2f} of what LiteLLM adds at 1 connection: {word} (goal {ADDED_SHARE:g})")
    return lines


def _shared_core(report: PathReport) -> Sequence[str]:
    """A server that is alone on its core is busy all the time at 32 connections."""
    found = [report.row(server, 32) for server in ("bare", OURS)]
    shares = [row.core_share for row in found if row is not None and row.core_share is not None]
    if not shares or min(shares) >= OWN_CORE:
        return []
    ours = report.row(OURS, 32)
    cpu = None if ours is None or report.path != "accept" else ours.cpu_of_reference
    steadier = "" if cpu is None else f" trust the ratio of the CPU times, {cpu.median:.2f}, or"
    return [f"but the servers had only {min(shares):.0%} of their core, others ran on it:{steadier} measure again"]


def _word(reached: bool) -> str:
    return "met" if reached else "MISSED"


def _shown(spread: Spread | None, form: str) -> str:
    return "" if spread is None else f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"
