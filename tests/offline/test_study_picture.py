"""The picture of `gatekeeper compare`: what is written in it can be read, and what does not exist is not drawn."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from support.figures import check_texts, shown

from models.plotting import PALETTE
from models.study.curves import curves_figure, study_curves
from models.study.findings import MEASURES, Findings, Number, Row
from models.study.picture import study_figure, study_picture

NOTHING = Number(None, None, None, None, None, None)


def number(value: float, difference: float, spread: float) -> Number:
    return Number(value, value - 0.02, value + 0.02, difference, difference - spread, difference + spread)


def row(name: str, difference: float = 0.0, spread: float = 0.002) -> Row:
    accuracy = 0.93 - difference
    values = {"accuracy": accuracy, "s_d": 0.9 + 20 * difference, "joint": 0.955 + difference}
    return Row(name, {}, {measure: number(values.get(measure, 0.9), difference, spread) for measure in MEASURES}, "")


def without(some: Row, *measures: str) -> Row:
    return replace(some, on_test=some.on_test | dict.fromkeys(measures, NOTHING))


def without_intervals(some: Row) -> Row:
    bare = {"low": None, "high": None, "difference_low": None, "difference_high": None}
    return replace(some, on_test={name: replace(one, **bare) for name, one in some.on_test.items()})


def findings(rows: Sequence[Row], chosen: float | None = None, seeds: int = 10) -> Findings:
    return Findings(tuple(rows), (), tuple(rows), chosen, "control", 1.0, seeds)


UNTUNED, CONTROL = row("untuned", -0.0031), row("control")
SWEPT = [row(f"gatekeeper {k / 10:g}", 0.004 - 0.001 * k, 0.0004 * k) for k in (1, 3, 5, 7, 9)]
OTHERS = [
    row("confidence-penalty", -0.0004),
    row("label-smoothing", -0.0051),
    row("focal", 0.0008),
    row("outlier-exposure", -0.1152),
    row("static-partition", -0.0028),
    row("aligned-gatekeeper", 0.0033),
]
CASES = {
    "everything": findings([UNTUNED, CONTROL, *SWEPT, *OTHERS], 0.1),
    "losses only": findings([UNTUNED, CONTROL, *OTHERS[:2]], seeds=1),
    "one alpha": findings([UNTUNED, CONTROL, SWEPT[1]], 0.3),
    "alphas at both ends": findings([UNTUNED, CONTROL, row("gatekeeper 0"), row("gatekeeper 1")]),
    "no s_d": findings([without(one, "s_d", "auroc") for one in (UNTUNED, CONTROL, *SWEPT)], 0.1),
    "some numbers missing": findings(
        [without(UNTUNED, "joint"), CONTROL, SWEPT[0], without(SWEPT[1], "s_d"), without_intervals(SWEPT[2])], 0.3
    ),
    "one value everywhere": findings([replace(one, on_test=CONTROL.on_test) for one in (UNTUNED, CONTROL, SWEPT[0])]),
    "the control alone": findings([CONTROL]),
    "a long foreign name": findings([CONTROL, row("$a_{b" + "x" * 90), row("日本語")]),
}


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in shown(figure)]


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title("left").startswith(title))


@pytest.mark.parametrize("case", CASES)
def test_every_text_is_in_the_picture_and_none_touches_another(case: str) -> None:
    with study_figure(CASES[case]) as figure:
        check_texts(figure)


def test_the_same_findings_give_the_same_bytes() -> None:
    first = study_picture(CASES["everything"])
    assert first == study_picture(CASES["everything"])
    assert first != study_picture(CASES["losses only"])
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.width) == ("PNG", 1600)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_curves_are_drawn_within_the_picture(case: str) -> None:
    with curves_figure(CASES[case]) as figure:
        check_texts(figure)
        lines = len(figure.axes[0].lines) - 1  # and the large model's
    assert lines == len(CASES[case].summary)
    first = study_curves(CASES[case])
    assert first == study_curves(CASES[case])


def test_a_row_says_its_difference_and_its_colour_whether_it_is_clear() -> None:
    rows = [CONTROL, row("focal", 0.0123, 0.004), row("untuned", -0.0031, 0.001), row("label-smoothing", 0.001, 0.002)]
    with study_figure(findings(rows)) as figure:
        colours = {text.get_text().replace("\u2212", "-"): to_hex(text.get_color()) for text in shown(figure)}
        low, high = figure.axes[-1].get_xlim()
    assert colours["+1.23 [+0.83, +1.63]"] == PALETTE["best_text"]
    assert colours["-0.31 [-0.41, -0.21]"] == PALETTE["wrong_text"]
    assert colours["+0.10 [-0.10, +0.30]"] == PALETTE["muted"]
    assert low < -0.0041
    assert high > 0.0163


def test_the_title_says_what_the_bars_are() -> None:
    with study_figure(CASES["everything"]) as figure:
        said = " ".join(written(figure))
    assert "Each method against the control" in said
    assert "Test split, 10 seeds" in said
    assert "95 % intervals" in said
    assert "chosen on select" in said
    with study_figure(CASES["losses only"]) as figure:
        said = " ".join(written(figure))
    assert "1 seed;" in said
    assert "chosen" not in said


def test_without_an_alpha_there_is_nothing_over_alpha() -> None:
    with study_figure(CASES["losses only"]) as figure:
        assert "alpha" not in written(figure)
        assert len(figure.axes) == 1
    with study_figure(CASES["one alpha"]) as figure:
        assert written(figure).count("alpha") == 2


def test_a_missing_number_parts_the_curve_and_is_said_where_nothing_is_left() -> None:
    with study_figure(CASES["some numbers missing"]) as figure:
        curve = next(line for line in panel(figure, "s_d").lines if len(line.get_xdata()) == 3)
        assert list(np.isnan(curve.get_ydata())) == [False, True, False]
        assert written(figure).count("does not exist") == 1
    with study_figure(CASES["no s_d"]) as figure:
        assert written(figure).count("does not exist for these data") == 1
        assert not panel(figure, "s_d").lines


def test_the_chosen_alpha_is_ringed_wherever_it_is_drawn() -> None:
    def ringed(case: str) -> list[float]:
        with study_figure(CASES[case]) as figure:
            rings = [line for axes in figure.axes for line in axes.lines if line.get_markersize() > 10]
            return [float(np.ravel(ring.get_xdata())[0]) for ring in rings]

    assert ringed("everything") == pytest.approx([0.1, 0.1, 0.003])
    assert ringed("some numbers missing") == pytest.approx([0.3, 0.001])  # its s_d is one of those
    assert ringed("losses only") == []
