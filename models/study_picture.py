"""The picture of a study: the paper's trade-off over alpha, and each method's joint accuracy against the control's."""

import io

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.findings import CONTROL, Findings, Row
from models.plots import PALETTE

STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALETTE["rule"],
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}


def study_picture(findings: Findings) -> bytes:
    """A PNG. The same findings give the same bytes."""
    rows = [row for row in findings.methods if row.name != CONTROL]
    control = next(row for row in findings.methods if row.name == CONTROL)
    swept = [(float(row.name.split()[1]), row) for row in rows if row.name.startswith("gatekeeper ")]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(11, max(3.6, 1.4 + 0.3 * len(rows))), dpi=150, layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
        _over_alpha(left, swept, control, "accuracy", "accuracy of the small model")
        _over_alpha(middle, swept, control, "s_d", "s_d, share of the ideal gate's gain")
        _differences(right, rows)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _over_alpha(axes: Axes, swept: list[tuple[float, Row]], control: Row, measure: str, title: str) -> None:
    reference, low, high = _values(control, measure)
    axes.axhline(reference, color=PALETTE["muted"], linestyle="--", linewidth=1.2)
    axes.axhspan(low, high, color=PALETTE["muted"], alpha=0.12, linewidth=0)
    axes.annotate("control", (0.02, reference), xycoords=("axes fraction", "data"), va="bottom", color=PALETTE["muted"])
    ordered = sorted(swept, key=lambda pair: pair[0])
    if ordered:
        alphas = [alpha for alpha, _ in ordered]
        value, low, high = np.array([_values(row, measure) for _, row in ordered]).T
        spread = np.abs(np.array([low, high]) - value)
        axes.errorbar(alphas, value, spread, fmt="o-", color=PALETTE["right"], capsize=3)
    axes.set_title(title)
    axes.set_xlabel("alpha")


def _values(row: Row, measure: str) -> tuple[float, float, float]:
    number = row.on_test[measure]
    value, low, high = (np.nan if part is None else part for part in (number.value, number.low, number.high))
    return value, low, high


def _differences(axes: Axes, rows: list[Row]) -> None:
    for place, row in enumerate(reversed(rows)):
        number = row.on_test["joint"]
        assert number.difference is not None
        assert number.difference_low is not None
        assert number.difference_high is not None
        clear = number.difference_low > 0 or number.difference_high < 0
        colour = PALETTE["best" if number.difference_low > 0 else "wrong"] if clear else PALETTE["muted"]
        axes.plot([number.difference_low, number.difference_high], [place, place], color=colour, linewidth=2)
        axes.plot(number.difference, place, "o", color=colour)
    axes.axvline(0.0, color=PALETTE["ink"], linewidth=1.0)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_title("joint accuracy at 10-30 % deferral, minus the control's")
    axes.tick_params(axis="x", rotation=30)
