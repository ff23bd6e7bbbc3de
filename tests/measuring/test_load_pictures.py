"""The pictures of the load tests: what is written in them can be read."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.figures import check_texts

from loadtests.common.pictures import batching_picture, overload_picture, sweep_picture
from loadtests.compare.plot import save_plot
from loadtests.compare.report import PathReport
from loadtests.compare.summary import Row, Spread

FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


def target(name: str) -> dict[str, Any]:
    summary = [
        {"factor": f, "goodput_per_s": 5200 / f, "p50_ms": 40 * f, "p99_ms": 300 * f, "refusal_p99_ms": None}
        for f in FACTORS
    ]
    summary[-1]["refusal_p99_ms"] = 80.0
    times = {"batch_mean": 3.0, "queue_mean_ms": 0.1, "forward_mean_ms": 1.0, "p50_ms": 2.0, "p99_ms": 5.0}
    rows = [{"factor": None}, *({"factor": f / 10} | times for f in FACTORS)]
    return {"name": name, "runner": "inline", "capacity_per_s": 5400.0, "summary": summary, "rows": rows}


def path_report(path: str, references: dict[str, str | None]) -> PathReport:
    rates = [
        (server, connections, 10 ** (4.9 - place) * (1 + connections / 64))
        for place, server in enumerate(references)
        for connections in (1, 32, 128)
    ]
    nothing = Spread(0, 0, 0)
    rows = [
        Row(server, connections, 3, Spread(rate, 0.8 * rate, 1.2 * rate), nothing, nothing, *[None] * 6)
        for server, connections, rate in rates
    ]
    return PathReport(path, 100, references, {}, {}, {}, (), rows, {}, ())


@pytest.fixture(autouse=True)
def texts_checked(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Each figure is looked at as it is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def checked(figure: Figure, *arguments: Any, **options: Any) -> None:
        check_texts(figure)
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", checked)
    return saved


@pytest.mark.parametrize("names", [["default", "model-bound"], ["default"]])
def test_overload_and_batching(names: list[str], tmp_path: Path, texts_checked: list[Figure]) -> None:
    report = {"targets": [target(name) for name in names], "deadline_s": 1.0}
    overload_picture(report, tmp_path / "there" / "overload.png")
    batching_picture(report, tmp_path / "batching.png")
    named = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in texts_checked]
    assert named == [
        ["deadline", "answered in time, p50", "answered in time, p99", "refused, p99"],
        ["in the queue, mean", "one batch through the model, mean", "whole request, p50", "whole request, p99"],
    ]
    assert (tmp_path / "there" / "overload.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("joint", [None, 0.95])
def test_a_sweep_with_labels_and_without(joint: float | None, tmp_path: Path, texts_checked: list[Figure]) -> None:
    sweep_picture([(t / 10, t / 12, joint and joint + t / 300, joint) for t in range(1, 10)], tmp_path / "sweep.png")
    (figure,) = texts_checked
    assert len(figure.axes) == (1 if joint is None else 2)


def test_a_benchmark_says_each_rate(tmp_path: Path, texts_checked: list[Figure]) -> None:
    reports = [
        path_report("accept", {"bare": None, "gatekeeper": "bare", "litserve": "bare", "ray-all-cores": "bare"}),
        path_report("defer", {"direct": None, "gatekeeper": "direct", "direct-openai": None}),
    ]
    save_plot(reports, tmp_path / "plot.png")
    said = {text.get_text() for axes in texts_checked[0].axes for text in axes.texts}
    assert said == {f"{row.requests_per_s.median:,.0f}" for report in reports for row in report.rows}
