"""The empty figure a picture is drawn on, in our colours and style, and how it is kept: as PNG, and as SVG for a page.

The colours drawn with are those of the light theme. In the SVG each of them becomes the CSS variable of its name, so
that the page decides; the PNG stays light. Sizes are in CSS pixels of the SVG. matplotlib is known here, where labels
find their places (lettering.py, confidence_axis.py) and where pictures are drawn (plots.py, study_*.py).
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
# Narrow, so that a telephone shows the letters at 10 pixels and more.
WIDTH, HEIGHT, FONT = 420.0, 290.0, 12.5
DASHED, DOTTED, LONG = (0, (4, 3)), (0, (1.5, 1.5)), (0, (6, 2))
STYLE: dict[str, Any] = {
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


@contextmanager
def new_figure(height: float = HEIGHT, width: float = WIDTH) -> Iterator[Figure]:
    """An empty figure, drawn under our style alone: neither pyplot nor a person's matplotlibrc has a say."""
    with style.context(["default", STYLE]):
        yield Figure(figsize=(width / 72, height / 72), dpi=72)  # 72: a point is a pixel of the SVG


def add_axes(figure: Figure, left: float = 58, right: float = 24, top: float = 30, bottom: float = 46) -> Axes:
    """Axes with these margins in pixels."""
    width, height = figure.get_size_inches() * 72
    across, along = width - left - right, height - top - bottom
    axes = figure.add_axes((left / width, bottom / height, across / width, along / height))
    # Where they would be anyway; matplotlib measures every tick to find that out.
    axes.xaxis.set_label_coords(0.5, -24.0 / along)
    axes.yaxis.set_label_coords(0.0, 0.5)
    return axes


def percent_ticks(axes: Axes, *which: str, ticks: int = 5) -> None:
    """Ticks in percent on an axis of shares; which: x, y or both."""
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def _tick(share: float) -> str:
    """Nothing beside a margin below 0 % or above 100 %."""
    return f"{round(100 * share, 6):g}\u00a0%" if -1e-9 <= share <= 1 + 1e-9 else ""


def frame_of(axes: Axes) -> dict[str, list[float]]:
    """Where the axes lie: data limits and pixels, y downwards as in SVG."""
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
    return {
        "x": [*axes.get_xlim(), round(left, 2), round(right, 2)],
        "y": [*axes.get_ylim(), round(HEIGHT - bottom, 2), round(HEIGHT - top, 2)],
    }


def finished(name: str, title: str, alt: str, figure: Figure, frame: dict[str, list[float]] | None = None) -> Picture:
    """The figure both ways; the same figure gives the same bytes."""
    png, svg = as_png(figure), io.StringIO()
    figure.savefig(svg, format="svg")  # its metadata, a date among them, are cut off below
    return Picture(name, title, alt, _themed(name, svg.getvalue(), alt), png, frame or {})


def as_png(figure: Figure) -> bytes:
    """Two pixels for each of the SVG, for sharp screens and for print."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return png.getvalue()


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


def with_labels(svg: str, prefix: str, labels: Sequence[str]) -> str:
    """A browser has more letters than the PNG's font: put the labels themselves into the SVG."""

    def real(match: re.Match[str]) -> str:
        return match[1] + html.escape(labels[int(match[2])]) + match[4]

    return re.sub(rf'(<g id="{prefix}(\d+)">\s*<text[^>]*>)([^<]*)(</text>)', real, svg)
