"""`make savings`: what is counted, and a short run against a real edge and large model."""

import json

import pytest

from loadtests import savings
from loadtests.savings import Variant, summarise, table


def variant(name: str, right: list[bool], large: list[bool], odd: list[bool], **rest: object) -> Variant:
    return Variant(
        name, right=right, large=large, odd_large=odd, seconds=[0.01 * (1 + asked) for asked in large], **rest
    )  # type: ignore[arg-type]


def test_a_row_says_what_is_lost_and_what_is_saved() -> None:
    everything = variant("large model alone", [True] * 9 + [False], [True] * 10, [True] * 2)
    some = variant("plain", [True] * 8 + [False] * 2, [True] * 3 + [False] * 7, [True, False], threshold=0.5)
    none = Variant("certified", missing="no threshold can be certified")
    alone, row = summarise([everything, some, none])
    assert (alone.saved, alone.lost, alone.saved_mixed) == (0.0, 0.0, 0.0)
    assert row.accuracy == 0.8
    assert row.lost == pytest.approx(0.1)
    assert row.saved == pytest.approx(0.7)
    assert row.saved_mixed == pytest.approx(8 / 12)
    assert row.odd_deferred == 0.5
    assert row.mean_ms == pytest.approx(13.0)
    printed = table([everything, some, none], [alone, row], 10, 2)
    assert "| plain | 0.5 | 0.8000 | 70.0% | 66.7% | 50.0% | 13.0 | 10.0 | 20.0 |" in printed
    assert "| certified | none |" in printed
    assert "certified: no threshold can be certified" in printed


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_saves_calls_and_asks_the_large_model_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(savings, "RESULTS", tmp_path)
    monkeypatch.setattr(savings, "LOSSES", (0.01,))
    assert savings.main(["--every", "8"]) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "savings.json").read_text())["rows"]}  # type: ignore[operator]
    assert rows["large model alone"]["saved"] == 0.0
    for name in ("plain, at most 1 point lost", "certified, at most 1 point lost"):
        assert name in printed
        assert rows[name]["saved"] > 0.3
        assert rows[name]["odd_deferred"] > 0.3


def test_what_cannot_be_measured_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEKEEPER_DATA_DIR", raising=False)
    assert savings.main(["--sentences", "clinc150"]) == 1
    assert capsys.readouterr().err == (
        "savings: clinc150 needs GATEKEEPER_DATA_DIR, a folder that holds clinc150/data_full.json\n"
    )
