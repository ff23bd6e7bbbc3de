"""The six pictures of a report. Each takes the curves of metrics.py and gives a `Picture`, as SVG and as PNG."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import binomtest

from models.evaluation.report.canvas import (
    DASHED,
    DOTTED,
    HEIGHT,
    LONG,
    PALETTE,
    WIDTH,
    Picture,
    add_axes,
    finished,
    frame_of,
    new_figure,
    percent_ticks,
    with_labels,
)
from models.evaluation.report.confidence_axis import ConfidenceAxis
from models.evaluation.report.lettering import Labels, Line, drawable, narrowed, text_width
from models.evaluation.report.wording import compact, percent
from models.numbers.metrics import DeferralCurves, Reliability, Roc
from models.numbers.predictions import Floats

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
    groups = list(zip(("right", "wrong"), (right, ~right), names, strict=True))
    with new_figure() as figure:
        axes = add_axes(figure, left=48)
        axes.set_xlim(scale.low, scale.high)
        outlines: dict[str, Line] = {}
        for name, group, _ in groups:
            if group.any():
                shares = np.histogram(place[group], edges)[0] / group.sum()
                axes.stairs(shares, edges, fill=True, color=PALETTE[name], alpha=0.22, linewidth=0)
                axes.stairs(shares, edges, color=PALETTE[name], linewidth=1.8)
                outlines[name] = (np.repeat(edges, 2)[1:-1], np.repeat(shares, 2))
        axes.set_ylim(0.0, 1.18 * max(float(height.max()) for _, height in outlines.values()))
        percent_ticks(axes, "y")
        scale.ticks(axes)
        axes.set_title("share of each group")
        axes.set_xlabel(f"confidence{scale.note}")
        labels = Labels(axes)
        _threshold_line(axes, labels, float(scale.place(np.array([threshold]))[0]))
        for name, outline in outlines.items():
            labels.line(name, outline)
        for name, group, called in groups:
            if name in outlines:
                along, height = outlines[name]
                top = height > 0.6 * height.max()
                labels.write(f"{called} ({group.sum():,})", name, f"{name}_text", (along[top], height[top]))
        labels.write(f"threshold {threshold:g}", "threshold", "ink")
        alt = (
            f"Histogram of the confidence of {right.sum():,} items with {names[0]} and {(~right).sum():,} with "
            f"{names[1]} answers, with the threshold {threshold:g} as a line."
        )
        return finished("confidence", "Confidence of right and wrong answers", alt, figure)


def deferral_picture(curves: DeferralCurves, picked: tuple[float, float], threshold: float) -> Picture:
    """Joint accuracy over the deferral ratio (equation 11); picked: both at the threshold."""
    looks: dict[str, tuple[str, str, Any, float]] = {
        "random": ("random", "muted", DASHED, 1.6),
        "ideal": ("ideal", "best", LONG, 1.8),
        "oracle": ("oracle", "deferred", DOTTED, 1.8),
        "real": ("this gate", "right", "solid", 2.6),
    }
    lines = {name: line for name in looks if (line := getattr(curves, name)) is not None}
    large = float(curves.real[-1])
    with new_figure() as figure:
        axes = add_axes(figure)
        axes.set_xlim(0.0, 1.0)
        low, high = min(float(line.min()) for line in lines.values()), max(float(line.max()) for line in lines.values())
        margin = 0.09 * (high - low) or 0.02
        axes.set_ylim(low - margin, high + margin)
        percent_ticks(axes, "x", "y")
        axes.set_title("joint accuracy")
        axes.set_xlabel("deferral ratio")
        labels = Labels(axes)
        level = (np.linspace(0.0, 1.0, 50), np.full(50, large))
        axes.plot(*level, color=PALETTE["muted"], linewidth=1.0)
        labels.line("large", level)
        for name, line in lines.items():
            _, colour, dash, width = looks[name]
            axes.plot(curves.ratio, line, color=PALETTE[colour], linestyle=dash, linewidth=width)
            labels.line(name, (curves.ratio, line))
        _threshold_line(axes, labels, picked[0])
        _dot(axes, labels, picked)
        labels.write(f"threshold {threshold:g}", "threshold", "ink")
        for name in reversed(lines):
            text, colour, _, _ = looks[name]
            labels.write(text, name, f"{colour}_text" if colour != "muted" else colour)
        labels.write("large model", "large", "muted")
        alt = (
            f"Joint accuracy over the deferral ratio: {percent(float(curves.real[0]))} with nothing deferred, "
            f"{percent(picked[1])} at the threshold {threshold:g} ({percent(picked[0])} deferred), "
            f"{percent(large)} with everything deferred; beside it {', '.join(list(lines)[:-1])} deferral."
        )
        return finished("deferral", "What deferring buys", alt, figure, frame_of(axes))


def roc_picture(roc: Roc, auroc: str, picked: tuple[float, float]) -> Picture:
    """Right over wrong answers accepted, for every threshold (equation 12); picked: (wrong, right) at the threshold."""
    with new_figure() as figure:
        axes = add_axes(figure)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        percent_ticks(axes, "x", "y")
        axes.set_title("right answers accepted")
        axes.set_xlabel("wrong answers accepted")
        labels = Labels(axes)
        curve, diagonal = (roc.wrong_accepted, roc.right_accepted), (np.linspace(0, 1, 50), np.linspace(0, 1, 50))
        axes.plot(*diagonal, color=PALETTE["muted"], linestyle=DASHED, linewidth=1.2)
        axes.plot(*curve, color=PALETTE["right"])
        labels.line("coin", diagonal)
        labels.line("curve", curve)
        _dot(axes, labels, picked, "threshold")
        corners = (np.array([0.97, 0.03]), np.array([0.04, 0.96]))
        labels.write(f"AUROC {auroc}", "curve", "right_text", corners)
        labels.write("a coin", "coin", "muted")
        alt = f"ROC curve of the confidence, right against wrong answers; AUROC {auroc}. The diagonal is a coin's."
        return finished("roc", "Right against wrong (ROC)", alt, figure)


def reliability_picture(reliability: Reliability) -> Picture:
    """Accuracy over mean probability in each bin with Wilson's 95 % intervals, and how many items the bin holds."""
    edges, count = reliability.edges, reliability.count
    filled = count > 0
    probability, accuracy = reliability.probability[filled], reliability.accuracy[filled]
    # A square root, for the last bin often holds a hundred times the others.
    heights = np.sqrt(count / count.max())
    with new_figure(HEIGHT + 60) as figure:
        axes = add_axes(figure, bottom=156)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linestyle=DASHED, linewidth=1.2)
        intervals = np.array([_wilson(share, rows) for share, rows in zip(accuracy, count[filled], strict=True)]).T
        axes.vlines(probability, *intervals, color=PALETTE["right"], linewidth=1.4)
        axes.plot(probability, accuracy, "o", color=PALETTE["right"], markersize=6, clip_on=False)
        axes.tick_params(labelbottom=False)
        percent_ticks(axes, "y")
        axes.set_title("accuracy")
        below = add_axes(figure, top=HEIGHT + 60 - 142)
        below.set_xlim(0.0, 1.0)
        below.set_ylim(0.0, 2.1)
        below.grid(visible=False)
        below.spines["left"].set_visible(False)
        below.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color=PALETTE["right"], alpha=0.4)
        below.set_yticks([])
        for middle, height, rows in zip((edges[1:] + edges[:-1]) / 2, heights, count, strict=True):
            if rows:
                below.text(middle, height + 0.1, compact(int(rows)), ha="center", rotation=90)
        below.set_xlabel("probability, with the items in each bin")
        alt = "Reliability diagram: " + "; ".join(
            f"probability {mean:.2f}, right {percent(share)} of {rows:,}"
            for mean, share, rows in zip(probability, accuracy, count[filled], strict=True)
        )
        return finished("reliability", "Reliability", alt, figure)


def classes_picture(classes: Sequence[str], deferred: Floats, small: Floats, joint: Floats | None, of: int) -> Picture:
    """Deferral ratio and accuracy of some classes, each (K,), in the order given; `of` how many there are."""
    rows, shown = len(classes), [narrowed(name, 168.0) for name in classes]
    places = np.arange(rows)[::-1]
    left = 20 + max(text_width(name) for name in shown)
    middle = left + (WIDTH - left) * 0.46
    with new_figure(86 + 21.0 * rows) as figure:
        bars = add_axes(figure, left=left, right=WIDTH - middle + 8, bottom=56)
        reach = float(deferred.max()) or 1.0
        bars.barh(places, deferred, 0.68, color=PALETTE["deferred"])
        bars.set_xlim(0.0, 1.5 * reach)
        bars.set_xticks([])
        bars.set_yticks(places, [drawable(name) for name in shown])
        bars.grid(visible=False)
        bars.set_title("deferred")
        for row, (label, place) in enumerate(zip(bars.get_yticklabels(), places, strict=True)):
            label.set_gid(f"row{row}")
            label.set_color(PALETTE["ink"])
            bars.text(deferred[row] + 0.04 * reach, float(place), percent(deferred[row], 0), va="center")
        dots = add_axes(figure, left=middle + 8, right=24, bottom=56)
        lowest = float(min(small.min(), 1.0 if joint is None else joint.min()))
        dots.set_xlim(min(lowest - 0.04, 0.9), 1.02)
        if joint is not None:
            dots.hlines(places, small, joint, color=PALETTE["muted"], linewidth=1.0)
            ring = dots.plot(joint, places, "o", color=PALETTE["paper"], markersize=8, clip_on=False)[0]
            ring.set(markeredgecolor=PALETTE["best"], markeredgewidth=1.6)
        dots.plot(small, places, "o", color=PALETTE["right"], markersize=4.5, clip_on=False)
        dots.set_yticks(places, [""] * rows)
        percent_ticks(dots, "x", ticks=2)
        dots.set_title("right")
        bottom = 10 / figure.bbox.height
        figure.text(1.0 - 110 / WIDTH, bottom, "● small model", ha="right", color=PALETTE["right_text"])
        if joint is not None:
            figure.text(1.0 - 100 / WIDTH, bottom, "○ cascade", color=PALETTE["best_text"])
        for axes in (bars, dots):
            axes.set_ylim(-0.6, rows - 0.4)
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
    perfect = np.maximum(0.0, 1.0 - (1.0 - everything) / coverage)
    with new_figure() as figure:
        axes = add_axes(figure)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.15 * float(risk.max()) or 0.02)
        percent_ticks(axes, "x", "y")
        axes.set_title("risk: wrong among the accepted")
        axes.set_xlabel("coverage: share accepted")
        labels = Labels(axes)
        lines = {
            "random order": (np.full_like(risk, everything), "muted", DASHED, 1.2),
            "perfect order": (perfect, "best", LONG, 1.6),
            f"this gate, AURC {aurc}": (risk, "right", "solid", 2.2),
        }
        for text, (line, colour, dash, width) in lines.items():
            axes.plot(coverage, line, color=PALETTE[colour], linestyle=dash, linewidth=width)
            labels.line(text, (coverage, line))
        at_threshold = "nothing is accepted at the threshold"
        if picked is not None:
            _dot(axes, labels, picked, "threshold")
            at_threshold = f"{percent(picked[1])} of the {percent(picked[0])} accepted at the threshold are wrong"
        for text, (_, colour, _, _) in reversed(lines.items()):
            labels.write(text, text, f"{colour}_text" if colour != "muted" else colour)
        alt = f"Risk over coverage: {at_threshold}, {percent(everything)} of all answers are; AURC {aurc}."
        return finished("risk_coverage", "Risk and coverage", alt, figure)


def _wilson(share: float, count: int) -> tuple[float, float]:
    interval = binomtest(round(float(share) * int(count)), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _threshold_line(axes: Axes, labels: "Labels", place: float) -> None:
    low, high = axes.get_ylim()
    axes.axvline(place, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (2, 2)))
    labels.line("threshold", (np.full(2, place), np.array([high, low])))


def _dot(axes: Axes, labels: "Labels", at: tuple[float, float], text: str = "") -> None:
    axes.plot(*at, "o", color=PALETTE["right"], markersize=9, markeredgecolor=PALETTE["paper"], clip_on=False, zorder=5)
    labels.line("dot", (np.array([at[0]]), np.array([at[1]])))
    if text:
        labels.write(text, "dot", "ink")
