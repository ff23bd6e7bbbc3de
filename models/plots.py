"""The pictures of a report, each drawn once and kept twice: as SVG that follows the page's theme, and as PNG.

The colours drawn with are those of the light theme. In the SVG each of them becomes the CSS variable of its name, so
that the page decides; the PNG stays light. Sizes are in CSS pixels of the SVG. The only file that knows matplotlib.
"""

import html
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import binomtest

from models.metrics import DeferralCurves, Reliability, Roc
from models.predictions import Floats

Line = tuple[Floats, Floats]

# Okabe and Ito's colours, told apart by the colour-blind too; *_text are darker, to be read as small type on white.
PALETTE = {
    "ink": "#1b1f24",
    "muted": "#59636e",
    "rule": "#d8dde3",
    "paper": "#fefefe",
    "right": "#0072b2",
    "wrong": "#d55e00",
    "best": "#009e73",
    "deferred": "#cc79a7",
    "right_text": "#00659e",
    "wrong_text": "#ad4c00",
    "best_text": "#00785a",
    "deferred_text": "#98446f",
}
# The same roles on a dark page.
DARK = {
    "ink": "#e8ebee",
    "muted": "#9aa5b1",
    "rule": "#343c45",
    "paper": "#181d23",
    "right": "#56b4e9",
    "wrong": "#e69f00",
    "best": "#2bbd94",
    "deferred": "#cc79a7",
    "right_text": "#7cc5ee",
    "wrong_text": "#f0b43c",
    "best_text": "#45cda6",
    "deferred_text": "#dd9bc0",
}
NAMES = ("confidence", "deferral", "roc", "reliability", "classes", "risk_coverage")
MOST_CLASSES = 20
# Narrow, so that a telephone shows the letters at 10 pixels and more.
WIDTH, HEIGHT, FONT = 420.0, 290.0, 12.5
_DASHED, _DOTTED, _LONG = (0, (4, 3)), (0, (1.5, 1.5)), (0, (6, 2))
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "font.size": FONT,
    "text.parse_math": False,  # a label may hold a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "gatekeeper",  # the same ids every time
    "axes.titlesize": FONT,
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.titley": 1.0,  # where it is; looking for a place costs a fifth of the time
    "axes.titlecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.8,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["rule"],
    "ytick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "ytick.major.size": 0.0,
    "lines.linewidth": 2.2,
    "figure.facecolor": PALETTE["paper"],
    "savefig.facecolor": PALETTE["paper"],
}


@dataclass(frozen=True)
class Picture:
    """A drawn picture. `frame`, in the SVG's pixels, says where its axes lie, for a script that draws into it."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes
    frame: dict[str, list[float]] = field(default_factory=dict)


# ---- the pictures


def confidence_picture(confidence: Floats, right: NDArray[np.bool_], threshold: float, names: Sequence[str]) -> Picture:
    """Histograms of the confidence (N,) where `right` (N,) and where not, each in shares of its group (equation 9).

    names: what the two groups are called, right first.
    """
    scale = _Scale.of(confidence, threshold)
    place = scale.place(confidence)
    # Fewer columns where the smaller group would leave many of forty empty.
    fewest = min(int(right.sum()), int((~right).sum())) or len(right)
    edges = np.linspace(scale.low, scale.high, int(np.clip(2 * np.sqrt(fewest), 16, 40)) + 1)
    groups = list(zip(("right", "wrong"), (right, ~right), names, strict=True))
    with _canvas() as figure:
        axes = _axes(figure, left=48)
        axes.set_xlim(scale.low, scale.high)
        outlines: dict[str, Line] = {}
        for name, group, _ in groups:
            if group.any():
                shares = np.histogram(place[group], edges)[0] / group.sum()
                axes.stairs(shares, edges, fill=True, color=PALETTE[name], alpha=0.22, linewidth=0)
                axes.stairs(shares, edges, color=PALETTE[name], linewidth=1.8)
                outlines[name] = (np.repeat(edges, 2)[1:-1], np.repeat(shares, 2))
        axes.set_ylim(0.0, 1.18 * max(float(height.max()) for _, height in outlines.values()))
        _percent(axes, "y")
        scale.ticks(axes)
        axes.set_title("share of each group")
        axes.set_xlabel(f"confidence{scale.note}")
        labels = _Labels(axes)
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
        return _picture("confidence", "Confidence of right and wrong answers", alt, figure)


def deferral_picture(curves: DeferralCurves, picked: tuple[float, float], threshold: float) -> Picture:
    """Joint accuracy over the deferral ratio (equation 11); picked: both at the threshold."""
    looks: dict[str, tuple[str, str, Any, float]] = {
        "random": ("random", "muted", _DASHED, 1.6),
        "ideal": ("ideal", "best", _LONG, 1.8),
        "oracle": ("oracle", "deferred", _DOTTED, 1.8),
        "real": ("this gate", "right", "solid", 2.6),
    }
    lines = {name: line for name in looks if (line := getattr(curves, name)) is not None}
    large = float(curves.real[-1])
    with _canvas() as figure:
        axes = _axes(figure)
        axes.set_xlim(0.0, 1.0)
        low, high = min(float(line.min()) for line in lines.values()), max(float(line.max()) for line in lines.values())
        margin = 0.09 * (high - low) or 0.02
        axes.set_ylim(low - margin, high + margin)
        _percent(axes, "x", "y")
        axes.set_title("joint accuracy")
        axes.set_xlabel("deferral ratio")
        labels = _Labels(axes)
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
        return _picture("deferral", "What deferring buys", alt, figure, _frame(axes))


def roc_picture(roc: Roc, auroc: str, picked: tuple[float, float]) -> Picture:
    """Right over wrong answers accepted, for every threshold (equation 12); picked: (wrong, right) at the threshold."""
    with _canvas() as figure:
        axes = _axes(figure)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        _percent(axes, "x", "y")
        axes.set_title("right answers accepted")
        axes.set_xlabel("wrong answers accepted")
        labels = _Labels(axes)
        curve, diagonal = (roc.wrong_accepted, roc.right_accepted), (np.linspace(0, 1, 50), np.linspace(0, 1, 50))
        axes.plot(*diagonal, color=PALETTE["muted"], linestyle=_DASHED, linewidth=1.2)
        axes.plot(*curve, color=PALETTE["right"])
        labels.line("coin", diagonal)
        labels.line("curve", curve)
        _dot(axes, labels, picked, "threshold")
        corners = (np.array([0.97, 0.03]), np.array([0.04, 0.96]))
        labels.write(f"AUROC {auroc}", "curve", "right_text", corners)
        labels.write("a coin", "coin", "muted")
        alt = f"ROC curve of the confidence, right against wrong answers; AUROC {auroc}. The diagonal is a coin's."
        return _picture("roc", "Right against wrong (ROC)", alt, figure)


def reliability_picture(reliability: Reliability) -> Picture:
    """Accuracy over mean probability in each bin with Wilson's 95 % intervals, and how many items the bin holds."""
    edges, count = reliability.edges, reliability.count
    filled = count > 0
    probability, accuracy = reliability.probability[filled], reliability.accuracy[filled]
    # A square root, for the last bin often holds a hundred times the others.
    heights = np.sqrt(count / count.max())
    with _canvas(HEIGHT + 60) as figure:
        axes = _axes(figure, bottom=156)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linestyle=_DASHED, linewidth=1.2)
        intervals = np.array([_wilson(share, rows) for share, rows in zip(accuracy, count[filled], strict=True)]).T
        axes.vlines(probability, *intervals, color=PALETTE["right"], linewidth=1.4)
        axes.plot(probability, accuracy, "o", color=PALETTE["right"], markersize=6, clip_on=False)
        axes.tick_params(labelbottom=False)
        _percent(axes, "y")
        axes.set_title("accuracy")
        below = _axes(figure, top=HEIGHT + 60 - 142)
        below.set_xlim(0.0, 1.0)
        below.set_ylim(0.0, 2.1)
        below.grid(visible=False)
        below.spines["left"].set_visible(False)
        below.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color=PALETTE["right"], alpha=0.4)
        below.set_yticks([])
        for middle, height, rows in zip((edges[1:] + edges[:-1]) / 2, heights, count, strict=True):
            if rows:
                below.text(middle, height + 0.1, _compact(int(rows)), ha="center", rotation=90)
        below.set_xlabel("probability, with the items in each bin")
        alt = "Reliability diagram: " + "; ".join(
            f"probability {mean:.2f}, right {percent(share)} of {rows:,}"
            for mean, share, rows in zip(probability, accuracy, count[filled], strict=True)
        )
        return _picture("reliability", "Reliability", alt, figure)


def classes_picture(classes: Sequence[str], deferred: Floats, small: Floats, joint: Floats | None, of: int) -> Picture:
    """Deferral ratio and accuracy of some classes, each (K,), in the order given; `of` how many there are."""
    rows, shown = len(classes), [_narrow(name, 168.0) for name in classes]
    places = np.arange(rows)[::-1]
    left = 20 + max(_width(name) for name in shown)
    middle = left + (WIDTH - left) * 0.46
    with _canvas(86 + 21.0 * rows) as figure:
        bars = _axes(figure, left=left, right=WIDTH - middle + 8, bottom=56)
        reach = float(deferred.max()) or 1.0
        bars.barh(places, deferred, 0.68, color=PALETTE["deferred"])
        bars.set_xlim(0.0, 1.5 * reach)
        bars.set_xticks([])
        bars.set_yticks(places, [_drawable(name) for name in shown])
        bars.grid(visible=False)
        bars.set_title("deferred")
        for row, (label, place) in enumerate(zip(bars.get_yticklabels(), places, strict=True)):
            label.set_gid(f"row{row}")
            label.set_color(PALETTE["ink"])
            bars.text(deferred[row] + 0.04 * reach, float(place), percent(deferred[row], 0), va="center")
        dots = _axes(figure, left=middle + 8, right=24, bottom=56)
        lowest = float(min(small.min(), 1.0 if joint is None else joint.min()))
        dots.set_xlim(min(lowest - 0.04, 0.9), 1.02)
        if joint is not None:
            dots.hlines(places, small, joint, color=PALETTE["muted"], linewidth=1.0)
            ring = dots.plot(joint, places, "o", color=PALETTE["paper"], markersize=8, clip_on=False)[0]
            ring.set(markeredgecolor=PALETTE["best"], markeredgewidth=1.6)
        dots.plot(small, places, "o", color=PALETTE["right"], markersize=4.5, clip_on=False)
        dots.set_yticks(places, [""] * rows)
        _percent(dots, "x", ticks=2)
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
        picture = _picture("classes", "The classes deferred most", alt, figure)
        return replace(picture, svg=_real_labels(picture.svg, "classes-row", shown))


def risk_picture(coverage: Floats, risk: Floats, aurc: str, picked: tuple[float, float] | None) -> Picture:
    """Risk, the share of wrong answers among the accepted, over coverage, the share accepted, each (K,).

    Coverage rises to 1. picked: both at the threshold; None where it accepts nothing.
    """
    everything = float(risk[-1])
    perfect = np.maximum(0.0, 1.0 - (1.0 - everything) / coverage)
    with _canvas() as figure:
        axes = _axes(figure)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.15 * float(risk.max()) or 0.02)
        _percent(axes, "x", "y")
        axes.set_title("risk: wrong among the accepted")
        axes.set_xlabel("coverage: share accepted")
        labels = _Labels(axes)
        lines = {
            "random order": (np.full_like(risk, everything), "muted", _DASHED, 1.2),
            "perfect order": (perfect, "best", _LONG, 1.6),
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
        return _picture("risk_coverage", "Risk and coverage", alt, figure)


# ---- axes, numbers and labels


def percent(share: float, digits: int = 1) -> str:
    """0.955 -> 95.5 %, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def _compact(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.{0 if number >= 10 * size else 1}f}{unit}"
    return str(number)


def _wilson(share: float, count: int) -> tuple[float, float]:
    interval = binomtest(round(float(share) * int(count)), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@contextmanager
def _canvas(height: float = HEIGHT) -> Iterator[Figure]:
    """An empty figure, drawn under our style alone: neither pyplot nor a person's matplotlibrc has a say."""
    with style.context(["default", _STYLE]):
        yield Figure(figsize=(WIDTH / 72, height / 72), dpi=72)  # 72: a point is a pixel of the SVG


def _axes(figure: Figure, left: float = 58, right: float = 24, top: float = 30, bottom: float = 46) -> Axes:
    """Axes with these margins in pixels."""
    width, height = figure.get_size_inches() * 72
    across, along = width - left - right, height - top - bottom
    axes = figure.add_axes((left / width, bottom / height, across / width, along / height))
    # Where they would be anyway; matplotlib measures every tick to find that out.
    axes.xaxis.set_label_coords(0.5, -24.0 / along)
    axes.yaxis.set_label_coords(0.0, 0.5)
    return axes


def _percent(axes: Axes, *which: str, ticks: int = 5) -> None:
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def _tick(share: float) -> str:
    """Nothing beside a margin below 0 % or above 100 %."""
    return f"{round(100 * share, 6):g}\u00a0%" if -1e-9 <= share <= 1 + 1e-9 else ""


def _frame(axes: Axes) -> dict[str, list[float]]:
    """Where the axes lie: data limits and pixels, y downwards as in SVG."""
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
    return {
        "x": [*axes.get_xlim(), round(left, 2), round(right, 2)],
        "y": [*axes.get_ylim(), round(HEIGHT - bottom, 2), round(HEIGHT - top, 2)],
    }


def _threshold_line(axes: Axes, labels: "_Labels", place: float) -> None:
    low, high = axes.get_ylim()
    axes.axvline(place, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (2, 2)))
    labels.line("threshold", (np.full(2, place), np.array([high, low])))


def _dot(axes: Axes, labels: "_Labels", at: tuple[float, float], text: str = "") -> None:
    axes.plot(*at, "o", color=PALETTE["right"], markersize=9, markeredgecolor=PALETTE["paper"], clip_on=False, zorder=5)
    labels.line("dot", (np.array([at[0]]), np.array([at[1]])))
    if text:
        labels.write(text, "dot", "ink")


@dataclass(frozen=True)
class _Scale:
    """The axis of a confidence: linear, or log-odds where most of it crowds at the upper end of [0, 1] or [-1, 0]."""

    low: float
    high: float
    shift: float | None  # what makes a probability of the confidence; None: a linear axis

    @classmethod
    def of(cls, confidence: Floats, threshold: float) -> "_Scale":
        lowest, highest = float(confidence.min()), float(confidence.max())
        shift = 0.0 if lowest >= 0 and highest <= 1 else 1.0 if lowest >= -1 and highest <= 0 else None
        if shift is not None and np.mean(confidence + shift > 0.9) < 0.5:
            shift = None
        scale = cls(-np.inf, np.inf, shift)
        # The last half percent would take half the axis, and a point at 1.0 all of it.
        low, high = np.quantile(scale.place(confidence), [0.001, 0.995])
        cut = float(scale.place(np.array([threshold]))[0])
        low, high = min(float(low), cut), max(float(high), cut)
        margin = 0.04 * (high - low) or 0.5
        return cls(low - margin, high + margin, shift)

    @property
    def note(self) -> str:
        return "" if self.shift is None else ", log-odds scale"

    def place(self, confidence: Floats) -> Floats:
        """Where on the axis; what lies outside of it is at its ends."""
        place = confidence if self.shift is None else logit(np.clip(confidence + self.shift, 1e-6, 1 - 1e-6))
        clipped: Floats = np.clip(place, self.low, self.high)
        return clipped

    def ticks(self, axes: Axes) -> None:
        """Round confidences, no two labels closer than they are wide."""
        if self.shift is None:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            return
        tails = 10.0 ** -np.arange(1, 7)
        chances = np.concatenate([tails[::-1], [0.5], 1 - tails])
        places, names = [], []
        free = np.inf
        for chance in chances[::-1]:
            place, name = float(logit(chance)), f"{chance - self.shift:.9g}"
            pixel = axes.transData.transform((place, 0.0))[0]
            half = _width(name) / 2
            if self.low <= place <= self.high and pixel + half < free:
                places.append(place)
                names.append(name)
                free = pixel - half - 4
        axes.set_xticks(places, names)


class _Labels:
    """Writes labels beside their lines where they hide nothing: of many places the one with the most air."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._lines: dict[str, Floats] = {}  # points six pixels apart, each line (P, 2)

    def line(self, name: str, line: Line) -> None:
        """What labels keep off, in data coordinates."""
        self._lines[name] = self._points(line)

    def _points(self, line: Line) -> Floats:
        corners = self._axes.transData.transform(np.column_stack(line))
        lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
        steps = np.arange(0.0, lengths[-1] + 6.0, 6.0)
        return np.column_stack([np.interp(steps, lengths, corners[:, side]) for side in (0, 1)])

    def write(self, text: str, name: str, colour: str, part: Line | None = None) -> None:
        """Write beside one of the points of a line, or of this part of it; rather close to it than far."""
        anchors = self._lines[name] if part is None else self._points(part)
        anchors = anchors[np.linspace(0, len(anchors) - 1, min(24, len(anchors))).astype(int)]
        half = np.array([_width(text) / 2, 0.55 * FONT])
        sides = np.array([(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)])
        centres = np.concatenate([(anchors[:, None] + sides * (half + gap)).reshape(-1, 2) for gap in (6.0, 20.0)])
        score = self._air(centres, half, name)
        score[len(score) // 2 :] -= 5.0
        centre = centres[int(np.argmax(score))]
        behind = {"facecolor": PALETTE["paper"], "edgecolor": "none", "pad": 1.0}  # no grid line through the letters
        x, y = self._axes.transData.inverted().transform(centre)
        self._axes.text(x, y, text, ha="center", va="center", color=PALETTE[colour], bbox=behind)
        box = centre + half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)])
        corners = self._axes.transData.inverted().transform(box)
        self.line(f"label {text}", (corners[:, 0], corners[:, 1]))

    def _air(self, centres: Floats, half: Floats, own: str) -> Floats:
        """Pixels from each box to the nearest other line, up to 10; below 0 where it hides one or leaves the axes."""
        score = np.full(len(centres), 10.0)
        for name, points in self._lines.items():
            apart = np.maximum(np.abs(points[None] - centres[:, None]) - half, 0.0)
            distance = np.hypot(apart[..., 0], apart[..., 1])
            score -= (distance == 0.0).sum(axis=1)
            if name != own:
                score = np.minimum(score, distance.min(axis=1))
        (left, bottom), (right, top) = self._axes.transAxes.transform([(0, 0), (1, 1)])
        out = np.maximum([left + 2, bottom + 2] - (centres - half), (centres + half) - [right - 2, top - 2])
        spilled: Floats = score - 4.0 * np.maximum(out, 0.0).sum(axis=1)
        return spilled


# ---- text that matplotlib can draw, and files


@cache
def _font() -> FT2Font:
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    font.set_size(FONT, 72)
    return font


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(_font().get_charmap())


def one_line(text: str, length: int) -> str:
    """A text as one line of at most this many characters, without control characters."""
    line = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    return (line if len(line) <= length else line[: length - 1].rstrip() + "…") or "(no name)"


@cache
def _advance(letter: str) -> float:
    """How wide a letter is, in pixels; one that the font does not have as wide as it is high."""
    return _font().load_char(ord(letter)).linearHoriAdvance / 65536 if ord(letter) in _glyphs() else FONT


def _width(text: str) -> float:
    return sum(_advance(letter) for letter in text)


def _narrow(text: str, width: float) -> str:
    """As much of a text as is no wider than this."""
    line = one_line(text, 100)
    length = len(line)
    while _width(line) > width:
        length -= 1
        line = one_line(line, length)
    return line


def _drawable(text: str) -> str:
    """What DejaVu Sans has no letter for becomes a box: the PNG cannot do better on every machine."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)


def _real_labels(svg: str, prefix: str, labels: Sequence[str]) -> str:
    """A browser has more letters than the PNG's font: put the labels themselves into the SVG."""

    def real(match: re.Match[str]) -> str:
        return match[1] + html.escape(labels[int(match[2])]) + match[4]

    return re.sub(rf'(<g id="{prefix}(\d+)">\s*<text[^>]*>)([^<]*)(</text>)', real, svg)


def _picture(name: str, title: str, alt: str, figure: Figure, frame: dict[str, list[float]] | None = None) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    figure.savefig(svg, format="svg")  # its metadata, a date among them, are cut off below
    return Picture(name, title, alt, _themed(name, svg.getvalue(), alt), png.getvalue(), frame or {})


def _themed(name: str, svg: str, alt: str) -> str:
    """The SVG as part of a page: colours and font are the page's, ids are unique in it, nothing else is named."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{html.escape(alt)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: (\w+ )?([\d.]+px) [^;\"]*", r"font: \1\2 var(--font)", svg)
    for role, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg.strip()
