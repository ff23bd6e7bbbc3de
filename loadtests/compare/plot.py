"""The picture of a benchmark: requests/s on a logarithmic axis, a panel for each path and number of connections."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.compare.report import OURS, PathReport

# Okabe and Ito's colours, told apart by the colour-blind too: ours, the references, the others.
COLOURS = {"ours": "#0072b2", "reference": "#8a939d", "other": "#e69f00"}
INK, RULE = "#1b1f24", "#d8dde3"


def save_plot(reports: Sequence[PathReport], path: Path) -> None:
    """A PNG. Whiskers: the lowest and the highest round."""
    levels = sorted({row.connections for report in reports for row in report.rows})
    figure = Figure(figsize=(3.6 * len(levels), 0.9 + 2.2 * len(reports)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(reports), len(levels), squeeze=False, sharex="row", sharey="row")
    for line, report in zip(grid, reports, strict=True):
        for axes, connections in zip(line, levels, strict=True):
            _panel(axes, report, connections)
        rates = [rate for row in report.rows for rate in (row.requests_per_s.low, row.requests_per_s.high)]
        # Room on the right for the figure beside the quickest.
        line[0].set_xlim(min(rates) / 2, max(rates) * 8)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, report: PathReport, connections: int) -> None:
    names = list(report.references)[::-1]
    axes.set_yticks(range(len(names)), names)
    for place, server in enumerate(names):
        row = report.row(server, connections)
        if row is not None:
            rate, colour = row.requests_per_s, _colour(report, server)
            axes.plot([rate.low, rate.high], [place, place], color=colour, linewidth=2)
            axes.plot([rate.median], [place], color=colour, marker="o", markersize=7)
            label, at = f"{rate.median:,.0f}", (rate.high, place)
            axes.annotate(label, at, (8, 0), textcoords="offset points", va="center", size=8, color=INK)
    axes.set_xscale("log")
    axes.set_ylim(-0.6, len(names) - 0.4)
    several = "connection" if connections == 1 else "connections"
    axes.set_title(f"{report.path} path, {connections} {several}, requests/s", loc="left", size=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="both", color=RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _colour(report: PathReport, server: str) -> str:
    if server == OURS:
        return COLOURS["ours"]
    return COLOURS["reference" if report.references[server] is None else "other"]
