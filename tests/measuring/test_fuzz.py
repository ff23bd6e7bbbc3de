"""The fuzz of refusals: the same requests by the same seed, and a verdict that can be lost."""

import random
from collections import Counter

import pytest

from loadtests.stress import fuzz
from loadtests.stress.hostile import ACCEPTED, KINDS, Surface

SURFACE = Surface((("POST", "/v1/classify"), ("GET", "/livez")), ("inputs", "parameters", "top_k"), 100_000)
HEADERS = {"x-api-key": "gk_a_b"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != ACCEPTED])
def test_a_kind_is_the_same_by_its_seed_and_within_the_limits(kind: str) -> None:
    first, second = ([*KINDS[kind](SURFACE, HEADERS, random.Random(7))] for _ in range(2))
    assert first == second
    assert len(first) > 8
    if kind != "forms":
        assert max(map(len, first)) < SURFACE.max_body_bytes + 300_000
    if kind != "bytes turned, cut, repeated":
        assert all(b"x-api-key: gk_a_b\r\n" in request for request in first)


def test_the_verdict_can_be_lost() -> None:
    good = fuzz.Seen("edge", "forms", Counter({422: 5}), [], 40.0, 400.0, 410.0)
    slow = fuzz.Seen("edge", "many values", Counter({413: 5, 0: 1}), [], 400.0, 400.0, 500.0)
    large = fuzz.Seen("edge", ACCEPTED, Counter({200: 5}), [], 40.0, 400.0, 1_100.0)
    assert not any("MISSED" in line for line in fuzz._markdown([good]))
    lines = fuzz._markdown([good, slow, large])
    assert "| edge | many values | 6 | 1 x closed, 5 x 413 | 400 | 400 | 500 | 1.25 |" in lines
    assert lines[-4:] == [
        "- refusals: longest silence 400 ms: MISSED (250 ms)",
        "- refusals: memory 1.25 of before: MISSED (1.2)",
        "- all: longest silence 400 ms: MISSED (250 ms)",
        "- all: peak 1100 MiB: MISSED (1,024 MiB)",
    ]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_runs_against_a_real_edge(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--targets", "edge, spent key", "--kinds", "many values", "forms"]) == 0
    shown = capsys.readouterr()
    assert "| edge, spent key | many values | 22 |" in shown.out
    assert "x 429" in shown.out
    assert "nothing was answered with 500 or not at all" in shown.err
