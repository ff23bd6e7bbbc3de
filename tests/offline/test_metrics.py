"""The numbers of the evaluation, each against another way to compute it, and what there is for which data."""

import json
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import gaussian_kde, pearsonr
from sklearn.metrics import roc_auc_score
from support.cascades import cascade, columns, taken

from models.errors import InputError
from models.numbers import metrics
from models.numbers.bootstrap import rank
from models.numbers.metrics import measure, statistics
from models.numbers.predictions import Predictions
from models.operating_points import joint_accuracy

WITH_LARGE = {"a_L", "h", "q", "s_d", "s_d_oracle", "joint_accuracy", "deferral_ratio_for_95_percent_gain"}


# ---- the deferral curve and what is drawn from it


def test_the_deferral_curve_is_the_definition() -> None:
    confidence, small, large = columns(cascade(50))
    curve = metrics.deferral_curve(confidence, small, large)
    order = np.argsort(confidence)
    for deferred in range(51):
        answers = small.copy()
        answers[order[:deferred]] = large[order[:deferred]]
        assert curve[deferred] == pytest.approx(answers.mean())


def test_in_a_tie_the_curve_is_the_mean_over_all_orders() -> None:
    """And so are the joint accuracy at a ratio and AURC, which are linear in it or in the errors."""
    confidence = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.9])
    small, large = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    curves, areas = [], []
    for middle in permutations(range(1, 5)):
        order = [0, *middle, 5]
        curves.append([np.concatenate([large[order[:k]], small[order[k:]]]).mean() for k in range(7)])
        areas.append(np.mean([1.0 - small[order[6 - k :]].mean() for k in range(1, 7)]))
    assert metrics.deferral_curve(confidence, small, large) == pytest.approx(np.mean(curves, axis=0))
    assert metrics.joint_accuracy_at_ratio(0.5, confidence, small, large) == pytest.approx(np.mean(curves, axis=0)[3])
    assert metrics.risk_coverage_area(confidence, small) == pytest.approx(np.mean(areas))


def test_s_d_is_one_for_the_ideal_gate_and_zero_for_a_random_one() -> None:
    """With a large model that is never wrong, and a confidence that knows the errors, or knows nothing."""
    generator = np.random.default_rng(0)
    small = (generator.uniform(size=20_000) < 0.7).astype(np.float64)
    large = np.ones(20_000)
    knowing = small + generator.uniform(size=20_000) * 0.1
    assert metrics.deferral_performance(knowing, small, large) == pytest.approx(1.0)
    assert metrics.oracle_performance(knowing, small, large) == pytest.approx(1.0)
    assert metrics.deferral_performance(generator.uniform(size=20_000), small, large) == pytest.approx(0.0, abs=0.05)
    assert metrics.deferral_performance(np.full(20_000, 0.5), small, large) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(metrics.deferral_performance(knowing, small, small))


@pytest.mark.parametrize("graded", [False, True])
def test_s_d_is_the_ratio_of_areas_on_a_fine_grid(graded: bool) -> None:
    confidence, small, large = columns(cascade(20_000, graded=graded))
    a_s, a_l = small.mean(), large.mean()
    ratio = np.linspace(0.0, 1.0, 20_001)
    real = metrics.deferral_curve(confidence, small, large)
    random = a_s + ratio * (a_l - a_s)
    ideal = np.minimum(a_s + ratio * (a_l - a_s) / (1.0 - a_s), a_l)
    expected = np.trapezoid(real - random, ratio) / np.trapezoid(ideal - random, ratio)
    assert metrics.deferral_performance(confidence, small, large) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("graded", [False, True])
def test_the_oracle_gains_what_the_best_subset_of_every_size_gains(graded: bool) -> None:
    confidence, small, large = columns(cascade(9, seed=3, graded=graded))
    gain = large - small
    best = [max(sum(gain[list(rows)]) for rows in combinations(range(9), size)) for size in range(10)]
    random = (small.mean() + large.mean()) / 2
    oracle = np.trapezoid(small.mean() + np.array(best) / 9, dx=1 / 9) - random
    real = np.trapezoid(metrics.deferral_curve(confidence, small, large), dx=1 / 9) - random
    assert oracle > 0.0
    assert metrics.oracle_performance(confidence, small, large) == pytest.approx(real / oracle)
    assert metrics.oracle_performance(-gain, small, large) == pytest.approx(1.0)


def test_for_right_and_wrong_the_oracle_curve_is_the_formula() -> None:
    """a_S + min(r, q) - max(0, r - (1 - h))."""
    predictions = cascade(2_000)
    _, small, large = columns(predictions)
    q, h = (large > small).mean(), (small > large).mean()
    drawn = metrics.curves(predictions).deferral
    assert drawn is not None
    formula = small.mean() + np.minimum(drawn.ratio, q) - np.maximum(0.0, drawn.ratio - (1.0 - h))
    assert drawn.oracle == pytest.approx(formula)


def test_a_collapsed_model_looks_good_by_equation_11_and_bad_by_the_oracle() -> None:
    """Right in 2 %, its ideal curve is all but the random one: a slight order by difficulty seems perfect."""
    generator = np.random.default_rng(0)
    small = (generator.uniform(size=50_000) < 0.02).astype(np.float64)
    large = (generator.uniform(size=50_000) < 0.756).astype(np.float64)
    confidence = generator.normal(size=50_000) - 0.15 * large
    assert metrics.deferral_performance(confidence, small, large) > 0.9
    assert 0.0 < metrics.oracle_performance(confidence, small, large) < 0.15


def test_joint_accuracy_is_the_gate_of_equation_6() -> None:
    confidence, small, large = np.array([0.2, 0.5, 0.8]), np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0])
    assert joint_accuracy(0.5, confidence, small, large) == 1.0
    assert joint_accuracy(0.81, confidence, small, large) == pytest.approx(1 / 3)


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_ratio_for_95_percent_of_the_gain_is_the_first_that_has_it(decimals: int | None) -> None:
    predictions = cascade(400, decimals=decimals)
    confidence, small, large = columns(predictions)
    ratio = measure(predictions, 0.5, resamples=2)["deferral_ratio_for_95_percent_gain"]["value"]
    target = small.mean() + 0.95 * (large.mean() - small.mean())
    assert metrics.joint_accuracy_at_ratio(ratio, confidence, small, large) == pytest.approx(target)
    below = [metrics.joint_accuracy_at_ratio(r, confidence, small, large) for r in np.linspace(0.0, ratio - 1e-6, 200)]
    assert max(below) < target


# ---- separation and calibration


@pytest.mark.parametrize("decimals", [None, 1])
def test_auroc_is_scikit_learns_also_with_weights(decimals: int | None) -> None:
    confidence, small, _ = columns(cascade(3_000, decimals=decimals))
    assert metrics.auroc(confidence, small) == roc_auc_score(small, confidence)
    order = np.lexsort((small, confidence))
    weight = np.random.default_rng(1).poisson(1.0, 3_000)
    weighted = statistics(rank(confidence, small).groups(weight), graded=False, binary=True)
    expected = roc_auc_score(small[order], confidence[order], sample_weight=weight)
    assert weighted["auroc"] == pytest.approx(expected)


def test_aurc_is_the_mean_risk_over_all_coverages() -> None:
    confidence, small, _ = columns(cascade(3_000))
    errors = 1.0 - small[np.argsort(-confidence)]
    assert metrics.risk_coverage_area(confidence, small) == pytest.approx(
        np.mean(np.cumsum(errors) / np.arange(1, 3_001))
    )


@pytest.mark.parametrize("shape", ["apart", "together", "skewed", "few", "outlier"])
def test_s_o_is_the_overlap_of_scipys_density_estimates(shape: str) -> None:
    generator = np.random.default_rng(0)
    right, wrong = {
        "apart": (generator.normal(0.9, 0.02, 900), generator.normal(0.4, 0.05, 500)),
        "together": (generator.normal(0.5, 0.1, 900), generator.normal(0.5, 0.1, 500)),
        "skewed": (generator.beta(30.0, 0.5, 1_000), generator.beta(4.0, 2.0, 150)),
        "few": (generator.uniform(size=5), generator.uniform(size=3)),
        "outlier": (np.append(generator.normal(0.0, 1.0, 500), 300.0), generator.normal(1.0, 1.0, 500)),
    }[shape]
    confidence = np.concatenate([right, wrong])
    margin = 0.6 * np.ptp(confidence)
    grid = np.linspace(confidence.min() - margin, confidence.max() + margin, 8_001)
    expected = np.trapezoid(np.minimum(gaussian_kde(right)(grid), gaussian_kde(wrong)(grid)), grid)
    small = np.repeat([1.0, 0.0], [len(right), len(wrong)])
    assert metrics.overlap(confidence, small) == pytest.approx(expected, abs=1e-3)


def test_s_o_is_zero_apart_and_near_one_together() -> None:
    generator = np.random.default_rng(0)
    right = np.repeat([1.0, 0.0], 2_000)
    apart = np.concatenate([generator.normal(0.9, 0.01, 2_000), generator.normal(0.1, 0.01, 2_000)])
    assert metrics.overlap(apart, right) < 0.01
    assert metrics.overlap(generator.normal(0.5, 0.1, 4_000), right) > 0.95
    assert np.isnan(metrics.overlap(apart, np.ones(4_000)))


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("count", [500, 25_000])
def test_no_number_depends_on_the_order_of_the_rows(count: int, graded: bool) -> None:
    """Not even with heavy ties, and no end of an interval either."""
    predictions = cascade(count, decimals=1, graded=graded)
    order = np.random.default_rng(4).permutation(count)
    shuffled = measure(taken(predictions, order), 0.7, resamples=10)
    for name, entry in measure(predictions, 0.7, resamples=10).items():
        if isinstance(entry, dict) and "low" in entry:
            assert shuffled[name] == pytest.approx(entry, abs=1e-9), name
        elif name == "by_score":
            for score, values in entry.items():
                assert shuffled[name][score] == pytest.approx(values, abs=1e-9)


# ---- what there is for which data


def test_the_numbers_are_those_of_the_document() -> None:
    numbers = measure(cascade(300), 0.7, resamples=5)
    ratios = [f"joint_accuracy_at_{0.05 * step:g}" for step in range(1, 11)]
    assert list(numbers) == [
        *("rows", "threshold", "graded", "a_S", "a_L", "large_gain", "h", "q", "s_o", "s_d", "s_d_oracle"),
        *("auroc", "aurc", "ece"),
        *("deferral_ratio", "joint_accuracy", *ratios, "deferral_ratio_for_95_percent_gain"),
        *("by_score", "verdict", "ratios_between_ties", "out_of_scope"),
    ]
    assert set(numbers["by_score"]) == {"max_softmax", "energy"}
    assert numbers["by_score"]["max_softmax"] == {
        name: pytest.approx(numbers[name]["value"]) for name in numbers["by_score"]["energy"]
    }
    assert numbers["a_L"]["value"] == pytest.approx(
        numbers["a_S"]["value"] + numbers["q"]["value"] - numbers["h"]["value"]
    )


def test_without_the_large_model_its_numbers_are_absent() -> None:
    predictions = cascade(300)
    numbers = measure(Predictions(predictions.confidence, predictions.small_correct, None, {}), 0.7, resamples=5)
    assert not WITH_LARGE & set(numbers)
    assert not [name for name in numbers if name.startswith("joint")]
    assert numbers["auroc"] == measure(predictions, 0.7, resamples=5)["auroc"]


def test_graded_answers_have_pearsons_r_and_no_auroc() -> None:
    predictions = cascade(2_000, graded=True, decimals=2)
    numbers = measure(predictions, 0.7, resamples=50)
    assert numbers["graded"] is True
    assert "s_o" not in numbers
    r = pearsonr(predictions.confidence, predictions.small_correct)
    assert numbers["pearson"]["value"] == pytest.approx(r.statistic)
    interval = r.confidence_interval()
    assert numbers["pearson"]["low"] == pytest.approx(interval.low, abs=0.03)
    assert numbers["pearson"]["high"] == pytest.approx(interval.high, abs=0.03)
    assert numbers["auroc"] == numbers["ece"] == {"value": None, "low": None, "high": None}
    _, small, large = columns(predictions)
    assert numbers["q"]["value"] == pytest.approx(np.maximum(large - small, 0.0).mean())
    assert numbers["h"]["value"] == pytest.approx(np.maximum(small - large, 0.0).mean())


def test_a_graded_large_model_leaves_the_small_ones_auroc() -> None:
    confidence, small, large = columns(cascade(300))
    numbers = measure(Predictions(confidence, small, 0.5 * large, {}), 0.7, resamples=5)
    assert "pearson" in numbers
    assert numbers["auroc"]["value"] == metrics.auroc(confidence, small)


@pytest.mark.parametrize(
    ("small", "large", "confidence", "missing"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], [0.1, 0.2, 0.3, 0.4], {"s_o", "s_d", "s_d_oracle", "auroc"}),
        ([0, 0, 0, 0], [1, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], {"s_o", "s_d", "auroc"}),
        ([1, 1, 1, 0], [1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], {"s_d", "s_o", "deferral_ratio_for_95_percent_gain"}),
        ([1, 0, 1, 0], [1, 1, 1, 0], [0.5, 0.5, 0.5, 0.5], {"s_o"}),
        ([1], [0], [0.5], {"s_o", "s_d", "auroc", "deferral_ratio_for_95_percent_gain"}),
        ([1, 0, 1, 0], [1, 1, 1, 0], [7.0, 5.0, 3.0, 1.0], {"ece"}),
        ([0.7, 0.7, 0.7, 0.7], [0.9, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4], {"pearson", "auroc", "ece"}),
        ([0.7, 0.3, 0.2, 0.6], [0.9, 0.9, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5], {"pearson", "auroc", "ece"}),
    ],
)
def test_what_does_not_exist_is_none(
    small: list[float], large: list[float], confidence: list[float], missing: set[str]
) -> None:
    """All right, all wrong, a worse large model, one confidence, one row, no probability, one grade: never NaN."""
    scores = {"margin": np.array(confidence)}
    numbers = measure(Predictions(np.array(confidence), np.array(small, float), np.array(large, float), scores), 0.25)
    json.dumps(numbers, allow_nan=False)
    none = {name for name, entry in numbers.items() if isinstance(entry, dict) and entry.get("value", 0) is None}
    assert missing <= none
    assert not {"a_S", "a_L", "h", "q", "aurc", "deferral_ratio", "joint_accuracy"} & none
    for name in none:
        assert numbers[name] == {"value": None, "low": None, "high": None}
    curves = metrics.curves(Predictions(np.array(confidence), np.array(small, float), np.array(large, float), {}))
    assert (curves.roc is None) == ("auroc" in none)


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("scale", [1e307, 1e-300, 1.0])
def test_confidences_of_any_size_are_measured(scale: float, graded: bool) -> None:
    """Log-probabilities come with sentinels such as the least float; neither s_o nor r depends on the scale."""
    confidence, small, large = columns(cascade(200, graded=graded))
    numbers = measure(Predictions(confidence * scale, small, large, {}), 0.0, resamples=5)
    plain = measure(Predictions(confidence, small, large, {}), 0.0, resamples=5)
    for name in ("pearson" if graded else "s_o", "s_d", "aurc"):
        assert numbers[name] == pytest.approx(plain[name], abs=1e-6)
    rounded = 0.3 + 1e-16 * np.arange(200)
    json.dumps(measure(Predictions(rounded, small, large, {}), 0.3, resamples=5), allow_nan=False)


def test_a_number_that_many_resamples_lack_has_no_interval() -> None:
    """One wrong answer among thirty is in 64 % of the resamples."""
    small = np.append(0.0, np.ones(29))
    numbers = measure(Predictions(np.linspace(0.1, 0.9, 30), small, None, {}), 0.5)
    assert numbers["auroc"] == {"value": 1.0, "low": None, "high": None}


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        measure(cascade(10), threshold)


# ---- the curves of the pictures


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_curves_are_what_the_numbers_say(decimals: int | None) -> None:
    predictions = cascade(2_000, decimals=decimals)
    numbers = measure(predictions, 0.7, resamples=2)
    drawn = metrics.curves(predictions)
    assert drawn.deferral is not None
    assert drawn.deferral.ideal is not None
    assert drawn.roc is not None
    assert drawn.reliability is not None
    ratio, real = drawn.deferral.ratio, drawn.deferral.real
    assert np.interp(0.2, ratio, real) == pytest.approx(numbers["joint_accuracy_at_0.2"]["value"])
    gained = [np.trapezoid(curve - drawn.deferral.random, ratio) for curve in (real, drawn.deferral.ideal)]
    assert gained[0] / gained[1] == pytest.approx(numbers["s_d"]["value"], abs=1e-3)
    assert (drawn.deferral.oracle >= real - 1e-12).all()
    assert np.trapezoid(drawn.roc.right_accepted, drawn.roc.wrong_accepted) == pytest.approx(
        numbers["auroc"]["value"], abs=1e-4
    )
    bins = drawn.reliability
    assert (bins.count * np.abs(bins.accuracy - bins.probability)).sum() / 2_000 == pytest.approx(
        numbers["ece"]["value"]
    )
    assert drawn.risk[-1] == pytest.approx(1.0 - numbers["a_S"]["value"])
    assert drawn.risk.mean() == pytest.approx(numbers["aurc"]["value"], abs=2e-3)
    assert max(len(ratio), len(drawn.roc.right_accepted), len(drawn.risk)) <= 512
