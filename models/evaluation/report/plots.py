"""The pictures of a report. Each takes the curves of metrics.py and gives a `Picture`, as SVG and as PNG."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import binomtest

from models.evaluation.report.canvas import HEIGHT, Picture, finished, report_figure, with_labels
from models.evaluation.report.confidence_axis import ConfidenceAxis
from models.evaluation.report.wording import compact, one_line, percent
from models.numbers.metrics import DeferralCurves, Reliability, Roc
from models.numbers.predictions import Floats
from models.plotting import DASHED, DOTTED, LONG, PALETTE, drawable, legend_below, narrowed, percent_ticks

NAMES = ("confidence", "deferral", "roc", "reliability", "classes", "risk_coverage", "entropy")
MOST_CLASSES = 20


def confidence_picture(confidence: Floats, right: NDArray[np.bool_], threshold: float, names: Sequence[str]) -> Picture:
    """Histograms of the confidence (N,) where `right` (N,) and where not, each in shares of its group (equation 9).

    names: what the two groups are called, right first.
    """
    scale = ConfidenceAxis.of(confidence, threshold)
    place = scale.place(confidence)
    # Fewer columns where the smaller group would leave many of forty empty.
    fewest = min(int(right.sum()), int((~right).sum())) or len(right)
    edges = np.linspace(scale.low, scale.high, int(np.clip(2 * np.sqrt(fewest), 16, 40)) + 1)
    with report_figure() as figure:
        axes = figure.subplots()
        axes.set_xlim(scale.low, scale.high)
        for name, group, called in zip(("right", "wrong"), (right, ~right), names, strict=True):
            if group.any():
                shares, label = np.histogram(place[group], edges)[0] / group.sum(), f"{called} ({group.sum():,})"
                axes.stairs(shares, edges, fill=True, color=PALETTE[name], alpha=0.22, linewidth=0)
                axes.stairs(shares, edges, color=PALETTE[name], linewidth=1.8, label=label)
        percent_ticks(axes, "y")
        scale.ticks(axes)
        axes.set_title("share of each group")
        axes.set_xlabel(f"confidence{scale.note}")
        _threshold_line(axes, float(scale.place(np.array([threshold]))[0]), threshold)
        legend_below(figure, 2)
        alt = (
            f"Histogram of the confidence of {right.sum():,} items with {names[0]} and {(~right).sum():,} with "
            f"{names[1]} answers, with the threshold {threshold:g} as a line."
        )
        return finished("confidence", "Confidence of right and wrong answers", alt, figure)


def deferral_picture(curves: DeferralCurves, picked: tuple[float, float], threshold: float) -> Picture:
    """Joint accuracy over the deferral ratio (equation 11); picked: both at the threshold."""
    looks = {
        "random": ("random", "muted", DASHED, 1.6),
        "ideal": ("ideal", "best", LONG, 1.8),
        "oracle": ("oracle", "deferred", DOTTED, 1.8),
        "real": ("this gate", "right", "solid", 2.6),
    }
    lines = {name: line for name in looks if (line := getattr(curves, name)) is not None}
    large = float(curves.real[-1])
    with report_figure() as figure:
        axes = figure.subplots()
        axes.set_xlim(0.0, 1.0)
        axes.margins(y=0.09)
        percent_ticks(axes, "x", "y")
        axes.set_title("joint accuracy")
        axes.set_xlabel("deferral ratio")
        axes.axhline(large, color=PALETTE["muted"], linewidth=1.0, label="large model")
        for name, line in lines.items():
            label, colour, dash, width = looks[name]
            axes.plot(curves.ratio, line, color=PALETTE[colour], linestyle=dash, linewidth=width, label=label)
        _threshold_line(axes, picked[0], threshold)
        _dot(axes, picked)
        legend_below(figure, 3)
        alt = (
            f"Joint accuracy over the deferral ratio: {percent(float(curves.real[0]))} with nothing deferred, "
            f"{percent(picked[1])} at the threshold {threshold:g} ({percent(picked[0])} deferred), "
            f"{percent(large)} with everything deferred; beside it {', '.join(list(lines)[:-1])} deferral."
        )
        return finished("deferral", "What deferring buys", alt, figure)


def roc_picture(roc: Roc, auroc: str, picked: tuple[float, float]) -> Picture:
    """Right over wrong answers accepted, for every threshold (equation 12); picked: (wrong, right) at the threshold."""
    with report_figure() as figure:
        axes = figure.subplots()
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        percent_ticks(axes, "x", "y")
        axes.set_title("right answers accepted")
        axes.set_xlabel("wrong answers accepted")
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linestyle=DASHED, linewidth=1.2, label="a coin")
        _dot(axes, picked, "threshold")
        axes.plot(roc.wrong_accepted, roc.right_accepted, color=PALETTE["right"], label=f"AUROC {auroc}")
        legend_below(figure, 2)
        alt = f"ROC curve of the confidence, right against wrong answers; AUROC {auroc}. The diagonal is a coin's."
        return finished("roc", "Right against wrong (ROC)", alt, figure)


def reliability_picture(reliability: Reliability) -> Picture:
    """Accuracy over mean probability in each bin with Wilson's 95 % intervals, and how many items the bin holds."""
    edges, count = reliability.edges, reliability.count
    filled = count > 0
    probability, accuracy = reliability.probability[filled], reliability.accuracy[filled]
    # A square root, for the last bin often holds a hundred times the others.
    heights = np.sqrt(count / count.max())
    with report_figure(HEIGHT + 40) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(9, 5))
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linestyle=DASHED, linewidth=1.2)
        intervals = np.array([_wilson(share, rows) for share, rows in zip(accuracy, count[filled], strict=True)]).T
        axes.vlines(probability, *intervals, color=PALETTE["right"], linewidth=1.4)
        axes.plot(probability, accuracy, "o", color=PALETTE["right"], markersize=6, clip_on=False)
        percent_ticks(axes, "y")
        axes.set_title("accuracy")
        below.set_ylim(0.0, 2.1)
        below.grid(visible=False)
        below.spines["left"].set_visible(False)
        columns = below.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color=PALETTE["right"], alpha=0.4)
        below.bar_label(columns, [compact(int(rows)) if rows else "" for rows in count], padding=4, rotation=90)
        below.set_yticks([])
        below.set_xlabel("probability, with the items in each bin")
        alt = "Reliability diagram: " + "; ".join(
            f"probability {mean:.2f}, right {percent(share)} of {rows:,}"
            for mean, share, rows in zip(probability, accuracy, count[filled], strict=True)
        )
        return finished("reliability", "Reliability", alt, figure)


def classes_picture(classes: Sequence[str], deferred: Floats, small: Floats, joint: Floats | None, of: int) -> Picture:
    """Deferral ratio and accuracy of some classes, each (K,), in the order given; `of` how many there are."""
    rows, shown = len(classes), [narrowed(one_line(name, 100), 168.0) for name in classes]
    places = np.arange(rows)[::-1]
    with report_figure(100 + 21.0 * rows) as figure:
        bars, dots = figure.subplots(1, 2, sharey=True)
        labels = [percent(share, 0) for share in deferred]
        bars.bar_label(bars.barh(places, deferred, 0.68, color=PALETTE["deferred"]), labels, padding=4)
        bars.set_xlim(0.0, 1.5 * (float(deferred.max()) or 1.0))
        bars.set_xticks([])
        bars.set_yticks(places, [drawable(name) for name in shown])
        bars.tick_params(axis="y", labelcolor=PALETTE["ink"])
        bars.set_ylim(-0.6, rows - 0.4)
        bars.grid(visible=False)
        bars.set_title("deferred")
        for row, label in enumerate(bars.get_yticklabels()):
            label.set_gid(f"row{row}")
        lowest = float(min(small.min(), 1.0 if joint is None else joint.min()))
        dots.set_xlim(min(lowest - 0.04, 0.9), 1.02)
        dots.plot(small, places, "o", color=PALETTE["right"], markersize=4.5, clip_on=False, label="small model")
        if joint is not None:
            dots.hlines(places, small, joint, color=PALETTE["muted"], linewidth=1.0, zorder=1)
            ring = dots.plot(joint, places, "o", markersize=8, clip_on=False, zorder=1.5, label="cascade")[0]
            ring.set(color=PALETTE["paper"], markeredgecolor=PALETTE["best"], markeredgewidth=1.6)
        percent_ticks(dots, "x", ticks=2)
        dots.set_title("right")
        legend_below(figure, 2)
        alt = f"The {rows} of {of} classes that are deferred most: " + "; ".join(
            f"{name} {percent(share, 0)}" for name, share in zip(shown[:8], deferred[:8], strict=True)
        )
        picture = finished("classes", "The classes deferred most", alt, figure)
        return replace(picture, svg=with_labels(picture.svg, "classes-row", shown))


def risk_picture(coverage: Floats, risk: Floats, aurc: str, picked: tuple[float, float] | None) -> Picture:
    """Risk, the share of wrong answers among the accepted, over coverage, the share accepted, each (K,).

    Coverage rises to 1. picked: both at the threshold; None where it accepts nothing.
    """
    everything = float(risk[-1])
    lines = {
        "random order": (np.full_like(risk, everything), "muted", DASHED, 1.2),
        "perfect order": (np.maximum(0.0, 1.0 - (1.0 - everything) / coverage), "best", LONG, 1.6),
        f"this gate, AURC {aurc}": (risk, "right", "solid", 2.2),
    }
    with report_figure() as figure:
        axes = figure.subplots()
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.15 * float(risk.max()) or 0.02)
        percent_ticks(axes, "x", "y")
        axes.set_title("risk: wrong among the accepted")
        axes.set_xlabel("coverage: share accepted")
        for label, (line, colour, dash, width) in lines.items():
            axes.plot(coverage, line, color=PALETTE[colour], linestyle=dash, linewidth=width, label=label)
        at_threshold = "nothing is accepted at the threshold"
        if picked is not None:
            _dot(axes, picked, "threshold")
            at_threshold = f"{percent(picked[1])} of the {percent(picked[0])} accepted at the threshold are wrong"
        legend_below(figure, 2)
        alt = f"Risk over coverage: {at_threshold}, {percent(everything)} of all answers are; AURC {aurc}."
        return finished("risk_coverage", "Risk and coverage", alt, figure)


def _wilson(share: float, count: int) -> tuple[float, float]:
    interval = binomtest(round(float(share) * int(count)), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _threshold_line(axes: Axes, place: float, threshold: float) -> None:
    axes.axvline(place, color=PALETTE["ink"], linewidth=1.2, linestyle=DOTTED, label=f"threshold {threshold:g}")


def _dot(axes: Axes, at: tuple[float, float], label: str | None = None) -> None:
    dot = axes.plot(*at, "o", color=PALETTE["right"], markersize=9, clip_on=False, zorder=5, label=label)[0]
    dot.set_markeredgecolor(PALETTE["paper"])
