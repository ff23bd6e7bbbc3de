"""How pictures are drawn: one style (plotting.mplstyle, the load tests' too), colours by name, empty figures."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.ticker import FuncFormatter, MaxNLocator

STYLE = Path(__file__).with_suffix(".mplstyle")
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
FONT_SIZE = 12.5
DASHED, DOTTED, LONG = (0, (4, 3)), (0, (1.5, 1.5)), (0, (6, 2))


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many points, drawn under our style alone: neither pyplot nor a matplotlibrc has a say."""
    with style.context(["default", STYLE]):
        yield Figure(figsize=(width / 72, height / 72))


def legend_below(figure: Figure | SubFigure, columns: int) -> None:
    """One legend below all axes, of those that have the most to name: what several axes show has the same look."""
    handles = max((axes.get_legend_handles_labels()[0] for axes in figure.axes), key=len)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def percent_ticks(axes: Axes, *which: str, ticks: int = 5) -> None:
    """Ticks in percent on an axis of shares; which: x, y or both."""
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def _tick(share: float) -> str:
    """Nothing beside a margin below 0 % or above 100 %."""
    return f"{round(100 * share, 6):g}\u00a0%" if -1e-9 <= share <= 1 + 1e-9 else ""


def as_png(figure: Figure) -> bytes:
    """Two pixels for each point; the same figure gives the same bytes."""
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return png.getvalue()


@cache
def _font() -> tuple[FT2Font, frozenset[int]]:
    """The style's font, and the letters that it has."""
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    font.set_size(FONT_SIZE, 72)
    return font, frozenset(font.get_charmap())


def _width(text: str) -> float:
    font, _ = _font()
    font.set_text(drawable(text), flags=LoadFlags.NO_HINTING)
    return font.get_width_height()[0] / 64


def drawable(text: str) -> str:
    """What the font has no letter for becomes a box: a PNG cannot do better on every machine."""
    return "".join(letter if ord(letter) in _font()[1] else "□" for letter in text)


def narrowed(line: str, width: float) -> str:
    """As much of a line as is no wider than so many points, with an ellipsis for the rest."""
    while _width(line) > width:
        line = line[:-2].rstrip() + "…"
    return line
