"""The pictures of the load tests, as PNG: figures over load, a panel for each server.

They look as the models' pictures do. The style is a file that matplotlib reads: nothing of `models` is imported for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

STYLE = Path(__file__).resolve().parent.parent.parent / "models" / "plotting.mplstyle"
BLUE, ORANGE, GREEN, GREY = "C0", "C1", "C2", "C4"  # the style's


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many points, which is a PNG at the end."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width / 72, height / 72))
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=108)


def overload_picture(report: Mapping[str, Any], path: Path) -> None:
    """Goodput above, latency below, over the offered load as a multiple of the capacity."""
    targets = report["targets"]
    with drawing(path, 460 * len(targets), 600) as figure:
        columns = figure.subplots(2, len(targets), squeeze=False)
        for number, found in enumerate(targets):
            _goodput(columns[0][number], found)
            _latency(columns[1][number], found, report["deadline_s"])
        _legend_below(figure, columns[1])


def batching_picture(report: Mapping[str, Any], path: Path) -> None:
    """Items in a batch above, waits and latency below, over the offered load as a share of the capacity."""
    targets = report["targets"]
    with drawing(path, 460 * len(targets), 600) as figure:
        columns = figure.subplots(2, len(targets), squeeze=False)
        for number, found in enumerate(targets):
            rows = [row for row in found["rows"] if row["factor"] is not None]
            loads = [row["factor"] for row in rows]
            above, below = columns[0][number], columns[1][number]
            above.set_title(f"{found['name']} ({found['runner']} runner): items in a batch")
            _line(above, loads, [row["batch_mean"] for row in rows], BLUE, "mean")
            above.set_ylim(bottom=0)
            below.set_title("milliseconds")
            _line(below, loads, [row["queue_mean_ms"] for row in rows], GREEN, "in the queue, mean")
            _line(below, loads, [row["forward_mean_ms"] for row in rows], GREY, "one batch through the model, mean")
            _line(below, loads, [row["p50_ms"] for row in rows], BLUE, "whole request, p50")
            _line(below, loads, [row["p99_ms"] for row in rows], ORANGE, "whole request, p99")
            below.set_yscale("log")
            below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            below.set_xlabel("offered load, share of the capacity")
        _legend_below(figure, columns[1])


def sweep_picture(points: Sequence[tuple[float, float, float | None, float | None]], path: Path) -> None:
    """Points: (threshold, deferral ratio, joint accuracy, the small model's accuracy); in rising order of threshold."""
    thresholds = [point[0] for point in points]
    labelled = any(point[2] is not None for point in points)
    with drawing(path, 920 if labelled else 460, 340) as figure:
        panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
        panels[0].set_title("deferral ratio over the threshold")
        _line(panels[0], thresholds, [point[1] for point in points], BLUE, "deferral ratio")
        panels[0].set_ylim(0, 1)
        panels[0].set_xlabel("threshold")
        if labelled:
            ratios = [point[1] for point in points]
            panels[1].set_title("accuracy over the deferral ratio")
            _line(panels[1], ratios, [point[2] for point in points], ORANGE, "cascade")
            _line(panels[1], ratios, [point[3] for point in points], GREY, "small model alone, same items")
            for threshold, ratio, joint, _ in points:
                if joint is not None:
                    above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 9}
                    panels[1].annotate(f"{threshold:g}", (ratio, joint), **above)
            panels[1].set_xlabel("deferral ratio; beside each point its threshold")
            _legend_below(figure, panels[1:])


def _goodput(axes: Axes, found: Mapping[str, Any]) -> None:
    summary = found["summary"]
    factors = [one["factor"] for one in summary]
    axes.set_title(f"{found['name']}: answers in time, a second")
    axes.axhline(found["capacity_per_s"], color=GREY, linewidth=1.2, linestyle="--", label="closed loop")
    _line(axes, factors, [one["goodput_per_s"] for one in summary], BLUE, "open loop")
    axes.set_ylim(bottom=0)
    _multiples(axes, factors)
    axes.legend()


def _latency(axes: Axes, found: Mapping[str, Any], deadline_s: float) -> None:
    summary = found["summary"]
    factors = [one["factor"] for one in summary]
    axes.set_title("milliseconds from the intended moment")
    axes.axhline(deadline_s * 1000, color=GREY, linewidth=1.2, linestyle="--", label="deadline")
    for name, colour, label in (
        ("p50_ms", BLUE, "answered in time, p50"),
        ("p99_ms", ORANGE, "answered in time, p99"),
        ("refusal_p99_ms", GREEN, "refused, p99"),
    ):
        _line(axes, factors, [one[name] for one in summary], colour, label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("offered load, multiple of the capacity")
    _multiples(axes, factors)


def _multiples(axes: Axes, factors: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(factors[0] * 0.9, factors[-1] * 1.1)
    axes.set_xticks(list(factors), [f"{factor:g}" for factor in factors])
    axes.minorticks_off()


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all of these panels, of that which has the most to name: what several show has the same look."""
    handles = max((axes.get_legend_handles_labels()[0] for axes in panels), key=len)
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(panels))


def _line(axes: Axes, xs: Sequence[float], ys: Sequence[float | None], colour: str, label: str) -> None:
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=5, label=label)
