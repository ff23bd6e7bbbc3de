"""The committed bundles on the real test split, offline and over HTTP. Needs GATEKEEPER_DATA_DIR."""

import os
from pathlib import Path

import pytest
from support.processes import ROOT, Service

from service.cli import main

DATA_DIR = os.environ.get("GATEKEEPER_DATA_DIR", "")
pytestmark = [
    pytest.mark.skipif(
        not (Path(DATA_DIR) / "clinc150" / "data_full.json").is_file(), reason="GATEKEEPER_DATA_DIR has no clinc150"
    ),
    pytest.mark.timeout(300),
    pytest.mark.slow,
]


def test_the_running_pair_decides_as_the_offline_evaluation(edge: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """All 4,500 sentences at three thresholds: no decision differs, no answer is degraded (exit code 0)."""
    _same_decisions("clinc150", edge, capsys)


@pytest.mark.skipif(not (Path(DATA_DIR) / "fashion-mnist").is_dir(), reason="GATEKEEPER_DATA_DIR has no fashion-mnist")
def test_the_running_pair_of_images_does_too(image_edge: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """All 10,000 images."""
    _same_decisions("fashion-mnist", image_edge, capsys)


def _same_decisions(data: str, edge: Service, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = ROOT / "models" / "bundles"
    code = main(
        f"evaluate {bundles}/{data}-small --large {bundles}/{data}-large "
        f"--data {data} --data-dir {DATA_DIR} --endpoint {edge.url}".split()
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    rows = [line.split() for line in printed.split("in confidence\n")[1].splitlines()]
    assert len(rows) == 3
    for threshold, offline_ratio, online_ratio, offline_accuracy, online_accuracy, different, *_ in rows:
        assert offline_ratio == online_ratio, threshold
        assert offline_accuracy == online_accuracy
        assert int(different) == 0
