"""How a drawn picture is kept: as PNG, and as SVG for a page.

In the SVG each colour of the light theme becomes the CSS variable of its name, so that the page decides; the PNG stays
light.
"""

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from matplotlib.figure import Figure

from models.plotting import PALETTE, as_png, new_figure

# In CSS pixels of the SVG; narrow, so that a telephone shows the letters at 10 pixels and more.
WIDTH, HEIGHT = 420.0, 330.0


@dataclass(frozen=True)
class Picture:
    """A drawn picture. `frame`, in the SVG's pixels, says where its first axes lie, for a script that draws into it."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes
    frame: dict[str, list[float]]


def report_figure(height: float = HEIGHT) -> AbstractContextManager[Figure]:
    """An empty figure as wide as all of a report."""
    return new_figure(WIDTH, height)


def finished(name: str, title: str, alt: str, figure: Figure) -> Picture:
    """The figure both ways; the same figure gives the same bytes."""
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine("none")  # once for both files: it takes as long as drawing one
    png, svg = as_png(figure), io.StringIO()
    figure.savefig(svg, format="svg")  # its metadata, a date among them, are cut off below
    return Picture(name, title, alt, _themed(name, svg.getvalue(), alt), png, _frame(figure))


def _frame(figure: Figure) -> dict[str, list[float]]:
    """Data limits and pixels, y downwards as in SVG; where the axes lie is known when they are drawn."""
    axes, height = figure.axes[0], figure.bbox.height
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
    return {
        "x": [*axes.get_xlim(), round(left, 2), round(right, 2)],
        "y": [*axes.get_ylim(), round(height - bottom, 2), round(height - top, 2)],
    }


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
