"""The picture of a study: the paper's trade-off over alpha, and each method's joint accuracy minus the control's.

Every number is one of the test split. What does not exist for the data is left out, and said where nothing is left.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from models.evaluation.report.wording import one_line, percent
from models.plotting import DASHED, DOTTED, PALETTE, as_png, drawable, legend_below, narrowed, new_figure, percent_ticks
from models.study.findings import CONTROL, UNTUNED, Findings, Number

TITLES = {"accuracy": "accuracy of the small model alone", "s_d": "s_d, share of the ideal gate's gain"}
# In points: width of the picture, width of a method's name; height of the curves, of what is around the rows, of a row.
WIDTH, NAME, CURVES, AROUND, ROW = 800.0, 200.0, 290.0, 122.0, 23.0
LEFT = 14.0 / WIDTH  # where headings begin


def study_picture(findings: Findings) -> bytes:
    """A PNG, 1600 pixels wide. The same findings give the same bytes."""
    with study_figure(findings) as figure:
        return as_png(figure)


@contextmanager
def study_figure(findings: Findings) -> Iterator[Figure]:
    """The picture before it is a file."""
    others = {row.name: row.on_test["joint"] for row in findings.methods if row.name != CONTROL}
    swept = any(_alpha(name) is not None for name in others)
    heights = [CURVES] * swept + [AROUND + ROW * max(1, len(others))]
    seeds = f"{findings.seeds} seed" + "s" * (findings.seeds != 1)
    bars = "Bars and the grey band" if swept else "Bars"
    chosen = "" if findings.chosen is None else " Ringed: chosen on select."
    about = f"Test split, {seeds}; large model {percent(findings.large_accuracy)} right. {bars}: 95 % intervals."
    with new_figure(WIDTH, 80.0 + sum(heights)) as figure:
        body = headed(figure, "Each method against the control", about + chosen)
        parts = body.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        ringed = None if findings.chosen is None else f"gatekeeper {findings.chosen:g}"
        if swept:
            left, right = parts[0].subplots(1, 2)
            percent_ticks(left, "y")
            _over_alpha(left, findings, "accuracy", ringed)
            _over_alpha(right, findings, "s_d", ringed)
            legend_below(parts[0], 3)
        _differences(parts[-1], others, ringed)
        yield figure


def headed(figure: Figure, title: str, about: str) -> SubFigure:
    """Write a title and a line below it; the rest of the figure."""
    figure.suptitle(title, x=LEFT, ha="left")
    body = figure.add_subfigure(figure.add_gridspec()[0])
    heading(body, about)
    return body


def heading(figure: SubFigure, text: str) -> None:
    figure.suptitle(text, x=LEFT, ha="left", fontsize="medium", fontweight="normal", color=PALETTE["muted"])


def _alpha(name: str) -> float | None:
    return float(name.split()[1]) if name.startswith("gatekeeper ") else None


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", color="none", markersize=13, markeredgecolor=PALETTE["ink"], markeredgewidth=1.4)


# ---- over alpha


def _over_alpha(axes: Axes, findings: Findings, measure: str, chosen: str | None) -> None:
    """One measure over alpha, beside the control and the untuned model, which have no alpha."""
    axes.set_title(TITLES[measure])
    axes.set_xlabel("alpha")
    axes.set_xlim(-0.02, 1.02)
    axes.margins(y=0.08)
    numbers = {row.name: row.on_test[measure] for row in findings.methods}
    swept = sorted((alpha, name) for name in numbers if (alpha := _alpha(name)) is not None)
    levels = [name for name in (CONTROL, UNTUNED) if name in numbers and numbers[name].value is not None]
    if all(numbers[name].value is None for name in [*levels, *(name for _, name in swept)]):
        axes.set_yticks([])
        nothing = "does not exist for these data"
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", color=PALETTE["muted"])
        return
    for name in levels:
        _level(axes, name, numbers[name])
    # NaN parts the curve where a number is missing.
    values = [np.nan if (value := numbers[name].value) is None else value for _, name in swept]
    alphas = [alpha for alpha, _ in swept]
    axes.plot(alphas, values, "o-", color=PALETTE["right"], markersize=6, label="gatekeeper")
    for (alpha, name), value in zip(swept, values, strict=True):
        low, high = numbers[name].low, numbers[name].high
        if low is not None and high is not None:
            axes.vlines(alpha, low, high, color=PALETTE["right"], linewidth=1.4)
        if name == chosen and np.isfinite(value):
            _ring(axes, alpha, value)


def _level(axes: Axes, name: str, number: Number) -> None:
    assert number.value is not None
    dash, grey = DASHED if name == CONTROL else DOTTED, PALETTE["muted"]
    axes.axhline(number.value, color=grey, linestyle=dash, linewidth=1.4, label=name)
    if name == CONTROL and number.low is not None and number.high is not None:
        axes.axhspan(number.low, number.high, color=grey, alpha=0.14, linewidth=0)


# ---- against the control


def _differences(figure: SubFigure, numbers: dict[str, Number], chosen: str | None) -> None:
    """Joint accuracy minus the control's, a row a method in the order of the study."""
    heading(figure, "joint accuracy (mean at 10, 20 and 30 % deferral) minus the control's, in percentage points")
    axes = figure.subplots()
    axes.set_ylim(len(numbers) - 0.4, -0.6)
    axes.set_yticks(range(len(numbers)), [name_of(name) for name in numbers])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: points(value, "g")))
    axes.axvline(0.0, color=PALETTE["ink"], linewidth=1.2)
    for place, (name, number) in enumerate(numbers.items()):
        _difference(axes, place, number)
        if name == chosen and number.difference is not None:
            _ring(axes, number.difference, place)
    for label, colour in (("better", "best"), ("worse", "wrong"), ("the interval holds 0", "muted")):
        _dot(axes, np.nan, 0, colour).set_label(label)
    legend_below(figure, 3)


def name_of(row: str) -> str:
    """A row's name, as far as it has room and letters."""
    return drawable(narrowed(one_line(row, 100), NAME))


def points(share: float, form: str = ".2f") -> str:
    """0.0123 -> +1.23, in percentage points."""
    hundredths = round(100 * share, 6)
    return f"{hundredths:+{form}}".replace("-", "\u2212") if hundredths else "0"


def _difference(axes: Axes, place: int, number: Number) -> None:
    value, low, high = number.difference, number.difference_low, number.difference_high
    text, colour = "does not exist", "muted"
    if value is not None:
        text = points(value)
        if low is not None and high is not None:
            colour = "best" if low > 0 else "wrong" if high < 0 else "muted"
            axes.hlines(place, low, high, color=PALETTE[colour], linewidth=2.0)
            text += f" [{points(low)}, {points(high)}]"
        _dot(axes, value, place, colour)
    dark = PALETTE[colour if colour == "muted" else f"{colour}_text"]
    axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center_baseline", color=dark)


def _dot(axes: Axes, x: float, y: float, colour: str) -> Line2D:
    """Empty where it is grey."""
    dot = axes.plot(x, y, "o", color=PALETTE[colour], markeredgewidth=1.6, markersize=7)[0]
    dot.set_markerfacecolor(PALETTE["paper" if colour == "muted" else colour])
    return dot
