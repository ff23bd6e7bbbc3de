"""The pictures of a report: what is written in them can be read, and the slider draws where they were drawn."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.figures import check_texts
from support.reports import FOREIGN, birds, report

from models.evaluation.report import canvas
from models.numbers.predictions import Predictions

CASES = ["usual", "crowded", "shifted", "foreign names", "graded", "unknown", "constant", "one"]


@pytest.mark.parametrize("case", CASES)
def test_every_text_is_in_its_picture_and_none_touches_another(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(figure: Figure) -> bytes:
        check_texts(figure)
        drawn.append(figure)
        return b""

    drawn: list[Figure] = []
    monkeypatch.setattr(canvas, "as_png", checked)
    usual, one = birds(), np.ones(1)
    crowded = 1.0 - (1.0 - usual.confidence) ** 8
    predictions, threshold = {
        "usual": (birds(names=tuple(f"a bird with the number {bird}" for bird in range(40))), 0.123456),
        "crowded": (replace(usual, confidence=crowded), 0.9999),
        "shifted": (replace(usual, confidence=crowded - 1.0), -0.000123456),
        "foreign names": (birds(names=FOREIGN), 0.7),
        "graded": (Predictions(-1e4 * usual.confidence, usual.confidence, usual.large_correct, {}), -12.3456),
        "unknown": (Predictions(usual.confidence, usual.small_correct, None, {}), 0.7),
        "constant": (replace(usual, confidence=np.ones(400), scores={}), 1.5),
        "one": (Predictions(0.9 * one, one, one, {}), 0.7),
    }[case]
    report(tmp_path, predictions, threshold)
    assert len(drawn) == len(list((tmp_path / "plots").iterdir()))


def test_the_sliders_mark_lies_on_the_drawn_threshold(tmp_path: Path) -> None:
    html = report(tmp_path, birds())
    steps = json.loads(re.findall(r'<script type="application/json" id="steps">(.*?)</script>', html)[0])
    low, high, left, right = steps["frame"]["x"]
    at = left + (right - left) * (steps["points"][steps["start"]][1] - low) / (high - low)
    svg = next(svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "Joint accuracy over" in svg)
    lines = [[float(part) for part in line] for line in re.findall(r'd="M (\S+) (\S+) \s*L (\S+) (\S+) \s*"', svg)]
    assert [at, steps["frame"]["y"][2], at, steps["frame"]["y"][3]] in [pytest.approx(line, abs=0.01) for line in lines]
