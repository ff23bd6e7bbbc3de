"""The letters of a picture: how wide a text is, which letters there are, and where a label hides nothing."""

from functools import cache

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ft2font import FT2Font

from models.evaluation.report.canvas import FONT, PALETTE
from models.evaluation.report.wording import one_line
from models.numbers.predictions import Floats

Line = tuple[Floats, Floats]


class Labels:
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
        half = np.array([text_width(text) / 2, 0.55 * FONT])
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


@cache
def _font() -> FT2Font:
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    font.set_size(FONT, 72)
    return font


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@cache
def _advance(letter: str) -> float:
    """How wide a letter is, in pixels; one that the font does not have as wide as it is high."""
    return _font().load_char(ord(letter)).linearHoriAdvance / 65536 if ord(letter) in _glyphs() else FONT


def text_width(text: str) -> float:
    """In pixels of the SVG."""
    return sum(_advance(letter) for letter in text)


def narrowed(text: str, width: float) -> str:
    """As much of a text as is no wider than this."""
    line = one_line(text, 100)
    length = len(line)
    while text_width(line) > width:
        length -= 1
        line = one_line(line, length)
    return line


def drawable(text: str) -> str:
    """What DejaVu Sans has no letter for becomes a box: the PNG cannot do better on every machine."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)
