"""The picture of a benchmark: requests/s on a logarithmic axis, a panel for each path and number of connections."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from loadtests.common.pictures import BLUE, GREY, ORANGE, drawing
from loadtests.compare.report import OURS, PathReport


def save_plot(reports: Sequence[PathReport], path: Path) -> None:
    """A PNG. Whiskers: the lowest and the highest round."""
    levels = sorted({row.connections for report in reports for row in report.rows})
    with drawing(path, 400 * len(levels), 40 + 220 * len(reports)) as figure:
        grid = figure.subplots(len(reports), len(levels), squeeze=False, sharex="row", sharey="row")
        for line, report in zip(grid, reports, strict=True):
            for axes, connections in zip(line, levels, strict=True):
                _panel(axes, report, connections)
            rates = [rate for row in report.rows for rate in (row.requests_per_s.low, row.requests_per_s.high)]
            # Room on the right for the figure beside the quickest.
            line[0].set_xlim(min(rates) / 2, max(rates) * 8)


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
            axes.annotate(label, at, (8, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(-0.6, len(names) - 0.4)
    several = "connection" if connections == 1 else "connections"
    axes.set_title(f"{report.path} path, {connections} {several}, requests/s")
    axes.spines["left"].set_visible(False)


def _colour(report: PathReport, server: str) -> str:
    if server == OURS:
        return BLUE
    return GREY if report.references[server] is None else ORANGE
