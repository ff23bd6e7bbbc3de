"""The one style of all pictures: where it is, what it names, and how names from outside are written in it."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import rc_params_from_file
from support.processes import ROOT

from loadtests.common import pictures
from models.plotting import DARK, FONT_SIZE, PALETTE, STYLE, drawable, legend_below, narrowed, new_figure


def test_the_style_has_the_colours_that_have_names() -> None:
    style = rc_params_from_file(STYLE, use_default_template=False)
    colours = {value for name, value in style.items() if "color" in name and value != "none"}
    colours |= set(style["axes.prop_cycle"].by_key()["color"])
    assert colours <= set(PALETTE.values())
    assert PALETTE.keys() == DARK.keys()
    assert style["font.size"] == FONT_SIZE


def test_the_load_tests_draw_in_the_same_style(tmp_path: Path) -> None:
    assert pictures.STYLE == STYLE
    with pictures.drawing(tmp_path / "there" / "drawn.png", 200, 100) as figure:
        assert mpl.rcParams["text.color"] == PALETTE["ink"]
        axes = figure.subplots()
        for colour, name in ((pictures.BLUE, "right"), (pictures.ORANGE, "wrong"), (pictures.GREY, "muted")):
            assert mpl.colors.to_hex(axes.plot([0, 1], color=colour)[0].get_color()) == PALETTE[name]
    assert (tmp_path / "there" / "drawn.png").stat().st_size > 1000
    assert mpl.rcParams["text.color"] == "black"


def test_who_draws_has_no_style_of_its_own() -> None:
    for package in ("models", "loadtests"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "matplotlib" in text and path != STYLE.with_suffix(".py"):
                assert re.findall(r'"#[0-9a-f]{6}"|rcParams|font\.size|figsize', text) in ([], ["figsize"]), path


def test_a_persons_own_settings_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    monkeypatch.setitem(mpl.rcParams, "legend.frameon", True)
    with new_figure(200, 100):
        assert not mpl.rcParams["text.usetex"]
        assert not mpl.rcParams["legend.frameon"]


def test_a_name_that_two_panels_have_is_in_the_legend_once() -> None:
    with new_figure(400, 200) as figure:
        for axes in figure.subplots(1, 2):
            axes.plot([0, 1], label="control")
            axes.plot([1, 0])
        legend_below(figure, 2)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["control"]


def test_a_long_name_is_narrowed_and_a_foreign_one_drawn_as_boxes() -> None:
    assert narrowed("wren", 200.0) == "wren"
    for name in ("x" * 300, "日本語" * 100, "W " * 100):
        short = narrowed(name, 200.0)
        assert short.endswith("…")
        assert name.startswith(short[:-1])
        with new_figure(400, 100) as figure:
            assert 180 < figure.text(0, 0, drawable(short)).get_window_extent().width <= 201
    assert drawable("crow 日本") == "crow □□"
