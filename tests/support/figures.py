"""What can be read in a figure of matplotlib, once it is laid out."""

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def shown(figure: Figure) -> list[Text]:
    """The texts that are drawn: matplotlib also keeps labels of ticks beyond the axes."""
    beyond: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    beyond |= {tick.label1, tick.label2}
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]


def check_texts(figure: Figure) -> None:
    """Every text is in the picture, and none touches another."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    beyond = [one for one in boxes if one[1].x0 < 8 or one[1].y0 < 4 or one[1].x1 > width - 8 or one[1].y1 > height - 4]
    assert not beyond, beyond
    touching = [
        (text, other)
        for place, (text, box) in enumerate(boxes)
        for other, near in boxes[place + 1 :]
        if _touch(box, near)
    ]
    assert not touching, touching


def _touch(box: Bbox, near: Bbox) -> bool:
    beside = min(box.x1, near.x1) - max(box.x0, near.x0), min(box.y1, near.y1) - max(box.y0, near.y0)
    return bool(beside[0] > 0 and beside[1] > 1)
