"""Weights in the place of resampled rows, merged rows in the place of very many, and the intervals they give."""

import numpy as np
import pytest
from support.cascades import cascade, columns, taken

from models import operating_points
from models.numbers.bootstrap import rank, resample
from models.numbers.metrics import measure, statistics


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("decimals", [None, 1])
def test_weights_are_repeated_rows(decimals: int | None, graded: bool) -> None:
    """What every interval rests on: a resample as weights has the numbers of the table with its rows repeated."""
    confidence, small, large = columns(cascade(700, decimals=decimals, graded=graded))
    order = np.lexsort((large, small, confidence))
    weight = np.random.default_rng(2).poisson(1.0, 700)
    rows = np.repeat(order, weight)
    assert len(set(rows)) < 600
    weighted = statistics(rank(confidence, small, large, 0.7).groups(weight), graded, not graded)
    repeated = statistics(rank(confidence[rows], small[rows], large[rows], 0.7).groups(), graded, not graded)
    if not graded:  # its grid spans the confidences of the table
        assert weighted.pop("s_o") == pytest.approx(repeated.pop("s_o"), abs=1e-6)
    assert weighted == pytest.approx(repeated, abs=1e-9, nan_ok=True)
    assert weighted["joint_accuracy"] == pytest.approx(
        operating_points.joint_accuracy(0.7, confidence[rows], small[rows], large[rows])
    )


def test_a_resample_has_as_many_items_as_the_table_and_draws_each_row_equally_often() -> None:
    ranking = rank(*columns(cascade(30_000, decimals=2)))
    for drawn in (ranking, ranking.merged()):
        weights = [drawn.draw(np.random.default_rng(seed)) for seed in range(50)]
        assert {int(weight.sum()) for weight in weights} == {30_000}
        shares = np.mean(weights, axis=0) / drawn.count
        assert np.average(shares, weights=drawn.count) == pytest.approx(1.0)
        # Poisson(1) to a good approximation: standard deviation sqrt(1 / (50 count)) of each row's share
        assert np.std((shares - 1.0) * np.sqrt(50 * drawn.count)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("decimals", [None, 2])
@pytest.mark.parametrize("graded", [False, True])
def test_merged_rows_have_the_same_numbers_to_a_hair(decimals: int | None, graded: bool) -> None:
    ranking = rank(*columns(cascade(60_000, decimals=decimals, graded=graded)), 0.7)
    merged = ranking.merged()
    assert len(merged.count) < 60_000
    exact, coarse = (statistics(drawn.groups(), graded, not graded) for drawn in (ranking, merged))
    assert coarse["deferral_ratio"] == exact["deferral_ratio"]
    # The first crossing of a rough curve is a little earlier than that of a smoothed one.
    first = "deferral_ratio_for_95_percent_gain"
    assert coarse.pop(first) == pytest.approx(exact.pop(first), abs=5e-3)
    # Gains and losses inside a level of grades cancel; `measure` moves its intervals back by the difference.
    assert coarse == pytest.approx(exact, abs=3e-3 if graded else 2e-4, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("graded", [False, True])
def test_merged_rows_have_the_intervals_of_the_plain_bootstrap(graded: bool) -> None:
    predictions = cascade(30_000, graded=graded)
    numbers = measure(predictions, 0.7, seed=1, resamples=150)
    rows = rank(*columns(predictions), 0.7)
    plain = resample(lambda draw: statistics(rows.groups(rows.draw(draw)), graded, not graded), 150, 2)
    for name, (low, high) in plain.items():
        if np.isfinite(low):
            found = numbers[name]
            assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.25 * (high - low)), name
            assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.25), name


def test_an_interval_lies_around_its_value_also_where_merging_moves_the_number() -> None:
    """Of 400,000 graded rows, h and q of the merged ones are too small by half an interval."""
    predictions = cascade(400_000, graded=True)
    ranking = rank(*columns(predictions))
    numbers = measure(predictions, 0.7, resamples=60)
    for name in ("h", "q"):
        value, low, high = (numbers[name][key] for key in ("value", "low", "high"))
        merged = statistics(ranking.merged().groups(), graded=True, binary=False)[name]
        assert merged < value - 0.4 * (high - low)
        assert (low + high) / 2 == pytest.approx(value, abs=0.2 * (high - low))


def test_an_interval_holds_its_value() -> None:
    """That of a calibration error which is all noise would lie just below it."""
    for seed in range(12):
        for name, entry in measure(cascade(800, seed=seed), 0.7, resamples=20).items():
            if isinstance(entry, dict) and entry.get("low") is not None:
                assert entry["low"] <= entry["value"] <= entry["high"], name


def test_the_intervals_are_those_of_resampled_tables() -> None:
    """Resampling the rows themselves and measuring each table."""
    predictions = cascade(300)
    generator = np.random.default_rng(9)
    tables = [taken(predictions, generator.integers(0, 300, 300)) for _ in range(400)]
    measured = [statistics(rank(*columns(table), 0.7).groups(), graded=False, binary=True) for table in tables]
    numbers = measure(predictions, 0.7, resamples=400)
    for name in set(measured[0]) - {"ece"}:
        low, high = np.nanquantile([table[name] for table in measured], [0.025, 0.975])
        found = numbers[name]
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.2 * (high - low)), name


def test_the_interval_of_an_accuracy_is_the_normal_one() -> None:
    entry = measure(cascade(5_000), 0.7)["a_S"]
    deviation = (entry["value"] * (1.0 - entry["value"]) / 5_000) ** 0.5
    assert entry["low"] < entry["value"] < entry["high"]
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.2)


@pytest.mark.slow
def test_the_intervals_cover() -> None:
    """Of 30 small tables, nearly all have the true value of each number inside its interval."""
    true = statistics(rank(*columns(cascade(200_000, seed=99)), 0.7).groups(), graded=False, binary=True)
    covered = dict.fromkeys(("a_S", "q", "s_o", "s_d", "s_d_oracle", "auroc", "aurc", "joint_accuracy_at_0.2"), 0)
    for seed in range(30):
        numbers = measure(cascade(500, seed=seed), 0.7, resamples=60)
        for name in covered:
            covered[name] += numbers[name]["low"] <= true[name] <= numbers[name]["high"]
    assert min(covered.values()) >= 25
    assert sum(covered.values()) < 30 * len(covered)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_intervals() -> None:
    for count in (400, 30_000):
        predictions = cascade(count)
        first = measure(predictions, 0.7, seed=1, resamples=20)
        assert first == measure(predictions, 0.7, seed=1, resamples=20)
        other = measure(predictions, 0.7, seed=2, resamples=20)
        assert other["auroc"]["value"] == first["auroc"]["value"]
        assert other["auroc"]["low"] != first["auroc"]["low"]
        assert other["ece"]["low"] != first["ece"]["low"]
