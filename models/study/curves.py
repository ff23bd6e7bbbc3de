"""The deferral curves of a study: joint accuracy over the deferral ratio, and each method's minus the control's.

Every number is one of the test split, a mean over the seeds.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from models.plotting import DASHED, DOTTED, LONG, PALETTE, as_png, legend_below, new_figure, percent_ticks
from models.study.findings import CONTROL, RATIOS, UNTUNED, Findings, Row
from models.study.picture import WIDTH, headed, name_of, points

COLUMNS = 3  # of the legend
FURTHEST = 0.6  # beyond it all curves run into the large model's accuracy
Look = tuple[str, object, float]


def study_curves(findings: Findings) -> bytes:
    """A PNG, 1600 pixels wide. The same findings give the same bytes."""
    with curves_figure(findings) as figure:
        return as_png(figure)


@contextmanager
def curves_figure(findings: Findings) -> Iterator[Figure]:
    """The picture before it is a file."""
    shown = [(row, look) for row in findings.summary if (look := _look(row.name)) is not None]
    seeds = f"{findings.seeds} seed" + "s" * (findings.seeds != 1)
    with new_figure(WIDTH, 370.0 + 20.0 * math.ceil((1 + len(shown)) / COLUMNS)) as figure:
        about = f"Test split, mean of {seeds}; on the right with 95 % intervals."
        body = headed(figure, "What deferring buys", about)
        left, right = body.subplots(1, 2)
        _curves(left, shown, findings.large_accuracy)
        _differences(right, shown)
        legend_below(body, COLUMNS)
        yield figure


def _look(name: str) -> Look | None:
    """Colour, dash and width; a gate of its own is left out: the table has it."""
    if name == UNTUNED:
        return "muted", DOTTED, 1.6
    if name == CONTROL:
        return "ink", DASHED, 1.6
    if ", merged" in name:
        return ("best", LONG, 1.8) if name.startswith(CONTROL) else ("best", "solid", 2.2)
    if "," in name:
        return None
    return ("right", "solid", 2.2) if name.startswith("gatekeeper ") else ("deferred", LONG, 1.8)


def _values(row: Row, part: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    numbers = [getattr(row.on_test[f"joint_{ratio:g}"], part) for ratio in RATIOS]
    return np.array([np.nan if number is None else number for number in numbers])


def _curves(axes: Axes, shown: Sequence[tuple[Row, Look]], large: float) -> None:
    axes.set_title("joint accuracy")
    axes.set_xlabel("deferral ratio")
    axes.set_xlim(0.0, 1.0)
    percent_ticks(axes, "x", "y")
    axes.axhline(large, color=PALETTE["muted"], linewidth=1.0, label="large model")
    for row, (colour, dash, width) in shown:
        line = axes.plot(RATIOS, _values(row, "value"), label=name_of(row.name))[0]
        line.set(color=PALETTE[colour], linestyle=dash, linewidth=width)


def _differences(axes: Axes, shown: Sequence[tuple[Row, Look]]) -> None:
    axes.set_title("minus the control's, percentage points")
    axes.set_xlabel("deferral ratio")
    axes.set_xlim(0.0, FURTHEST)
    percent_ticks(axes, "x")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: points(value, "g")))
    axes.axhline(0.0, color=PALETTE["ink"], linestyle=DASHED, linewidth=1.6)
    near = np.array(RATIOS) <= FURTHEST + 1e-9
    along = np.array(RATIOS)[near]
    for row, (colour, dash, width) in shown:
        if row.name in (CONTROL, UNTUNED):
            continue
        axes.plot(along, _values(row, "difference")[near], color=PALETTE[colour], linestyle=dash, linewidth=width)
        low, high = _values(row, "difference_low")[near], _values(row, "difference_high")[near]
        axes.fill_between(along, low, high, color=PALETTE[colour], alpha=0.1, linewidth=0)
