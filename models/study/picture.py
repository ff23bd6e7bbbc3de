"""The picture of a study: the paper's trade-off over alpha, and each method's joint accuracy minus the control's.

Every number is one of the test split. What does not exist for the data is left out, and said where nothing is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from models.evaluation.report.canvas import DASHED, DOTTED, FONT, PALETTE, add_axes, as_png, new_figure, percent_ticks
from models.evaluation.report.lettering import drawable, narrowed, text_width
from models.evaluation.report.wording import percent
from models.study.findings import CONTROL, UNTUNED, Findings, Number

TITLES = {"accuracy": "accuracy of the small model alone", "s_d": "s_d, share of the ideal gate's gain"}
# In pixels of the style, half of those of the PNG: width and margin of the picture; height of its title, of the curves,
# of one method's row and of what is above and below the rows; width of the column of digits beside them.
WIDTH, MARGIN, TITLE, CURVES, ROW, ABOVE, BELOW, DIGITS = 800.0, 24.0, 84.0, 240.0, 23.0, 24.0, 66.0, 176.0


def study_picture(findings: Findings) -> bytes:
    """A PNG, 1600 pixels wide. The same findings give the same bytes."""
    with study_figure(findings) as figure:
        return as_png(figure)


@contextmanager
def study_figure(findings: Findings) -> Iterator[Figure]:
    """The picture before it is a file."""
    others = {row.name: row.on_test["joint"] for row in findings.methods if row.name != CONTROL}
    chosen = None if findings.chosen is None else f"gatekeeper {findings.chosen:g}"
    swept = any(_alpha(name) is not None for name in others)
    top = TITLE + (CURVES if swept else 0.0)
    height = top + (ABOVE + ROW * len(others) + BELOW if others else 0.0)
    with new_figure(height, WIDTH) as figure:
        _title(figure, findings, "Bars and the grey band" if swept else "Bars")
        if swept:
            bottom, middle = height - top + 62, WIDTH / 2
            left = add_axes(figure, MARGIN + 46, middle + 62, TITLE + 22, bottom)
            right = add_axes(figure, middle + 46, MARGIN + 62, TITLE + 22, bottom)
            percent_ticks(left, "y")
            _over_alpha(left, findings, "accuracy", chosen)
            _over_alpha(right, findings, "s_d", chosen)
        if others:
            _differences(figure, others, chosen, top)
        yield figure


def _alpha(name: str) -> float | None:
    return float(name.split()[1]) if name.startswith("gatekeeper ") else None


def _title(figure: Figure, findings: Findings, bars: str) -> None:
    seeds = f"{findings.seeds} seed" + "s" * (findings.seeds != 1)
    chosen = "" if findings.chosen is None else " Ringed: chosen on select."
    about = f"Test split, {seeds}; large model {percent(findings.large_accuracy)} right. {bars}: 95 % intervals."
    write(figure, MARGIN, 36, "Each method against the control").set(fontsize=18, fontweight="bold")
    write(figure, MARGIN, 58, about + chosen, "muted")


def write(figure: Figure, left: float, top: float, text: str, colour: str = "ink") -> Text:
    """A line of text whose foot is so many pixels from the left and from the top of the figure."""
    return figure.text(left / figure.bbox.width, 1.0 - top / figure.bbox.height, text, color=PALETTE[colour])


def _limits(numbers: Sequence[float | None], margin: float) -> tuple[float, float]:
    """Limits of an axis that holds these numbers, with this share of their range beside them."""
    known = [number for number in numbers if number is not None]
    beside = margin * (max(known) - min(known)) or 0.01
    return min(known) - beside, max(known) + beside


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", color="none", markersize=13, markeredgecolor=PALETTE["ink"], markeredgewidth=1.4)


# ---- over alpha


def _over_alpha(axes: Axes, findings: Findings, measure: str, chosen: str | None) -> None:
    """One measure over alpha, beside the control and the untuned model, which have no alpha."""
    axes.set_title(TITLES[measure])
    axes.set_xlabel("alpha")
    axes.set_xlim(-0.02, 1.02)
    numbers = {row.name: row.on_test[measure] for row in findings.methods}
    swept = sorted((alpha, name) for name in numbers if (alpha := _alpha(name)) is not None)
    levels = {name: number for name in (CONTROL, UNTUNED) if (number := numbers.get(name)) and number.value is not None}
    shown = [*levels.values(), *(numbers[name] for _, name in swept)]
    if all(number.value is None for number in shown):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "does not exist for these data", ha="center", color=PALETTE["muted"])
        return
    axes.set_ylim(*_limits([end for number in shown for end in (number.value, number.low, number.high)], 0.08))
    _levels(axes, levels)
    # NaN parts the curve where a number is missing.
    values = [np.nan if (value := numbers[name].value) is None else value for _, name in swept]
    axes.plot([alpha for alpha, _ in swept], values, "o-", color=PALETTE["right"], markersize=6)
    for (alpha, name), value in zip(swept, values, strict=True):
        low, high = numbers[name].low, numbers[name].high
        if low is not None and high is not None:
            axes.vlines(alpha, low, high, color=PALETTE["right"], linewidth=1.4)
        if name == chosen and np.isfinite(value):
            _ring(axes, alpha, value)


def _levels(axes: Axes, levels: dict[str, Number]) -> None:
    """A line at each height, named beside its right end; the two names keep a line's height apart."""
    heights = {name: number.value for name, number in levels.items() if number.value is not None}
    low, high = axes.get_ylim()
    apart = 1.2 * FONT * (high - low) / axes.bbox.height
    names = sorted(heights, key=lambda name: heights[name])
    places = np.array([heights[name] for name in names])
    if len(names) == 2 and places[1] - places[0] < apart:
        places = places.mean() + apart * np.array([-0.5, 0.5])
    for name, place in zip(names, places, strict=True):
        dash, grey = DASHED if name == CONTROL else DOTTED, PALETTE["muted"]
        axes.axhline(heights[name], color=grey, linestyle=dash, linewidth=1.4)
        axes.text(1.02, place, name, transform=axes.get_yaxis_transform(), va="center_baseline", color=grey)
    if (control := levels.get(CONTROL)) and control.low is not None and control.high is not None:
        axes.axhspan(control.low, control.high, color=PALETTE["muted"], alpha=0.14, linewidth=0)


# ---- against the control


def _differences(figure: Figure, numbers: dict[str, Number], chosen: str | None, top: float) -> None:
    """Joint accuracy minus the control's, a row a method in the order of the study."""
    names = [narrowed(name, 200.0) for name in numbers]
    heading = "joint accuracy (mean at 10, 20 and 30 % deferral) minus the control's, in percentage points"
    write(figure, MARGIN, top + 14, heading, "muted")
    axes = add_axes(figure, MARGIN + 8 + max(map(text_width, names)), MARGIN + DIGITS, top + ABOVE, BELOW)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [drawable(name) for name in names])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    parts = [(number.difference, number.difference_low, number.difference_high) for number in numbers.values()]
    axes.set_xlim(*_limits([0.0, *(end for part in parts for end in part)], 0.04))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: points(value, "g")))
    axes.axvline(0.0, color=PALETTE["ink"], linewidth=1.2)
    for place, (name, number) in enumerate(numbers.items()):
        _difference(axes, place, number)
        if name == chosen and number.difference is not None:
            _ring(axes, number.difference, place)
    left = MARGIN
    for text, colour in (("● better", "best_text"), ("● worse", "wrong_text"), ("○ the interval holds 0", "muted")):
        write(figure, left, figure.bbox.height - 16, text, colour)
        left += text_width(text) + 20


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
        inside = PALETTE["paper" if colour == "muted" else colour]
        axes.plot(value, place, "o", color=inside, markeredgecolor=PALETTE[colour], markeredgewidth=1.6, markersize=7)
    dark = PALETTE[colour if colour == "muted" else f"{colour}_text"]
    axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center_baseline", color=dark)
