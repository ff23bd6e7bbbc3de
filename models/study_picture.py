"""The picture of a study: the paper's trade-off over alpha, and each method's joint accuracy minus the control's.

Every number is one of the test split. What does not exist for the data is left out, and said where nothing is left.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from models.canvas import DASHED, DOTTED, FONT, PALETTE, add_axes, as_png, new_figure, percent_ticks
from models.findings import CONTROL, Findings, Number, Row
from models.lettering import Labels, narrowed, text_width
from models.wording import percent

UNTUNED = "untuned"
MISSING = "does not exist for these data"
# In pixels of the style, half of those of the PNG: its width, its margin, the title, the curves and one method.
WIDTH, MARGIN, TITLE, CURVES, ROW = 800.0, 24.0, 92.0, 252.0, 23.0
NUMBERS = 186.0  # the column of differences in digits


def study_picture(findings: Findings) -> bytes:
    """A PNG, 1600 pixels wide. The same findings give the same bytes."""
    rows = [row for row in findings.methods if row.name != CONTROL]
    swept = any(_alpha(row) is not None for row in rows)
    top = TITLE + (CURVES if swept else 0.0)
    height = top + 104 + ROW * len(rows)
    with new_figure(height, WIDTH) as figure:
        _title(figure, findings)
        if swept:
            bottom = height - top + 72
            accuracy = add_axes(figure, 66, WIDTH / 2 + 16, TITLE + 22, bottom)
            percent_ticks(accuracy, "y")
            _over_alpha(accuracy, findings, "accuracy", "accuracy of the small model alone")
            _over_alpha(
                add_axes(figure, WIDTH / 2 + 52, MARGIN, TITLE + 22, bottom),
                findings,
                "s_d",
                "s_d, share of the ideal gate's gain",
            )
        _differences(figure, rows, findings.chosen, top)
        return as_png(figure)


def _alpha(row: Row) -> float | None:
    """None where the method is not a Gatekeeper of some alpha."""
    return float(row.name.split()[1]) if row.name.startswith("gatekeeper ") else None


def _write(figure: Figure, left: float, top: float, text: str, colour: str = "muted", **looks: object) -> None:
    """A line of text at so many pixels from the left and from the top of the figure."""
    width, height = figure.bbox.width, figure.bbox.height
    figure.text(left / width, 1.0 - top / height, text, va="baseline", color=PALETTE[colour], **looks)


def _title(figure: Figure, findings: Findings) -> None:
    _write(figure, MARGIN, 34, "Each method against the control", "ink", fontsize=18, fontweight="bold")
    seeds = f"{findings.seeds} seed" + "s" * (findings.seeds != 1)
    large = percent(findings.large_accuracy)
    _write(figure, MARGIN, 57, f"Test split, {seeds}, large model {large} right. Bars and the grey band: 95 % intervals.")


# ---- over alpha


def _over_alpha(axes: Axes, findings: Findings, measure: str, title: str) -> None:
    """One measure of the methods with an alpha, beside the control and the untuned model."""
    axes.set_title(title)
    axes.set_xlabel("alpha")
    axes.set_xlim(0.0, 1.0)
    numbers = {row.name: row.on_test[measure] for row in findings.methods}
    curve = sorted((alpha, numbers[row.name]) for row in findings.methods if (alpha := _alpha(row)) is not None)
