"""The numbers and curves of a cascade, from one row an item. Pure numpy; names as in the paper (equations 9-12).

Equal confidences: no threshold parts them, so inside a group of equal confidences every curve is a straight line, what
a random order would give on average. No number depends on the order of the rows.

A number that does not exist for the data (one class of outcome only, a large model no better than the small one) is NaN
in the functions and None in the dictionary of `measure`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import digamma
from sklearn.metrics import roc_auc_score

from models.errors import InputError
from models.numbers.bootstrap import Groups, Ranking, rank, resample
from models.numbers.density import overlapping_share
from models.numbers.predictions import Floats, Predictions, is_graded
from models.numbers.reliability import Reliability, calibration_error, calibration_error_interval, reliability
from models.numbers.verdict import bought, verdict

__all__ = [
    "measure",
    "gate_statistics",
    "deferral_curve",
    "deferral_performance",
    "oracle_performance",
    "overlap",
    "auroc",
    "risk_coverage_area",
    "calibration_error",
    "joint_accuracy_at_ratio",
    "curves",
    "Curves",
    "DeferralCurves",
    "Roc",
    "Reliability",
]

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
BY_SCORE = ("auroc", "aurc", "s_d", "joint_accuracy_at_0.1", "joint_accuracy_at_0.2", "joint_accuracy_at_0.3")
POINTS = 501  # of a curve


def measure(predictions: Predictions, threshold: float, seed: int = 0, resamples: int = 200) -> dict[str, Any]:
    """Every number of metrics.json, each {"value", "low", "high"} with a 95 % bootstrap interval over the items.

    Values come from all rows, intervals from merged ones where there are many (bootstrap.py). Intervals are
    percentiles, but for ece (reliability.py); a number that more than 5 % of the resamples lack has none. Without
    large_correct the numbers that need it are absent; Pearson's r stands in for s_o where correctness is graded.
    ece is that of max_softmax, else of a confidence within [0, 1]. "by_score" holds values under each score. "verdict"
    is a sentence where the large model is not clearly the better one (verdict.py), else empty; "ratios_between_ties"
    are the deferral ratios that no threshold comes near.
    Raises InputError for a threshold that is not finite.
    """
    if not np.isfinite(threshold):
        raise InputError(f"the threshold must be a finite number, not {threshold}")
    confidence, small = predictions.confidence, predictions.small_correct
    graded, binary = predictions.graded, not is_graded(small)
    ranking = rank(confidence, small, predictions.large_correct, threshold)
    values = statistics(ranking.groups(), graded, binary) | {"auroc": auroc(confidence, small)}
    intervals = _intervals(ranking, values, graded, binary, resamples, seed)
    probability = _probability(predictions)
    if probability is not None:
        values["ece"] = calibration_error(probability, small)
        intervals["ece"] = calibration_error_interval(probability, small, resamples, seed)
    numbers: dict[str, Any] = {"rows": len(confidence), "threshold": float(threshold), "graded": graded}
    for name, value in values.items():
        # An interval holds its value, also where a lopsided number would fall just beside it.
        low, high = np.minimum(intervals[name][0], value), np.maximum(intervals[name][1], value)
        numbers[name] = {"value": _or_none(value), "low": _or_none(low), "high": _or_none(high)}
    numbers["by_score"] = {}
    for name, score in predictions.scores.items():
        # As graded, because no s_o is wanted here.
        values = statistics(rank(score, small, predictions.large_correct).groups(), True, binary)
        numbers["by_score"][name] = {key: _or_none(values[key]) for key in BY_SCORE if key in values}
    if predictions.large_correct is not None:
        a_S, a_L, gain = (numbers[name] for name in ("a_S", "a_L", "large_gain"))
        best = bought(confidence, small, predictions.large_correct)
        numbers["verdict"] = verdict(a_S["value"], a_L["value"], (gain["low"], gain["high"]), best)
        numbers["ratios_between_ties"] = _between_ties(ranking.groups())
    return numbers | {"out_of_scope": None}


def _between_ties(groups: Groups) -> list[float]:
    """Those of RATIOS that no threshold comes near, because items share one confidence: there a curve is a mixture."""
    reached = np.append(0.0, np.cumsum(groups.rows)[:-1]) / groups.total
    near = max(0.005, 1.0 / groups.total)
    return [ratio for ratio in RATIOS if np.abs(reached - ratio).min() > near]


def _intervals(
    ranking: Ranking, values: dict[str, float], graded: bool, binary: bool, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of the values; by as much as merging the rows moves a value, they are moved back."""
    drawn = ranking.merged()
    merged = statistics(drawn.groups(), graded, binary)
    found = resample(lambda draw: statistics(drawn.groups(drawn.draw(draw)), graded, binary), resamples, seed)
    moved = {name: values[name] - merged[name] for name in found}
    return {name: (low + moved[name], high + moved[name]) for name, (low, high) in found.items()}


def _probability(predictions: Predictions) -> Floats | None:
    """What the calibration error is of: max_softmax, else the confidence, if it is within [0, 1]; None if graded."""
    probability = predictions.scores.get("max_softmax", predictions.confidence)
    fits = probability.min() >= 0.0 and probability.max() <= 1.0 and not is_graded(predictions.small_correct)
    return probability if fits else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def statistics(groups: Groups, graded: bool, binary: bool) -> dict[str, float]:
    """The numbers of one sample or resample, but the calibration error, which has other groups (NaN here).

    graded: Pearson's r in the place of s_o. binary: the small model's correctness is 0 or 1, so AUROC exists.
    """
    total, cut = groups.total, groups.accepted
    numbers = {"a_S": float(groups.small.sum() / total)}
    if groups.large is not None:
        numbers["a_L"] = float(groups.large.sum() / total)
        numbers["large_gain"] = float((groups.large.sum() - groups.small.sum()) / total)
        numbers["h"] = float((groups.gain_rows * np.maximum(-groups.gain, 0.0)).sum() / total)
        numbers["q"] = float((groups.gain_rows * np.maximum(groups.gain, 0.0)).sum() / total)
    numbers |= {"pearson": pearson(groups)} if graded else {"s_o": overlapping_share(groups)}
    if groups.large is not None:
        numbers["s_d"], numbers["s_d_oracle"] = _deferral_performance(groups)
    numbers["auroc"] = _auroc(groups) if binary else np.nan
    numbers |= {"aurc": _risk_coverage_area(groups), "ece": np.nan}
    numbers["deferral_ratio"] = float(groups.rows[:cut].sum() / total)
    if groups.large is not None:
        numbers["joint_accuracy"] = float((groups.large[:cut].sum() + groups.small[cut:].sum()) / total)
        at = np.interp(RATIOS, *_real_curve(groups))
        numbers |= {f"joint_accuracy_at_{ratio:g}": float(value) for ratio, value in zip(RATIOS, at, strict=True)}
        numbers["deferral_ratio_for_95_percent_gain"] = _ratio_for_gain(groups, 0.95)
    return numbers


def gate_statistics(groups: Groups) -> dict[str, float]:
    """The few numbers by which a study tells gates apart, for a resample of it: a third of the work of `statistics`."""
    at = np.interp(RATIOS, *_real_curve(groups))
    joint = {f"joint_accuracy_at_{ratio:g}": float(value) for ratio, value in zip(RATIOS, at, strict=True)}
    perfect = replace(groups, large=groups.rows)  # a large model that is always right
    s_d = {"s_d": _deferral_performance(groups)[0], "s_d_perfect": _deferral_performance(perfect)[0]}
    return {"a_S": float(groups.small.sum() / groups.total), "auroc": _auroc(groups)} | s_d | joint


def deferral_curve(confidence: Floats, small_correct: Floats, large_correct: Floats) -> Floats:
    """Joint accuracy after deferring the k least confident items, k = 0..N (acc_real of equation 11)."""
    curve = _real_curve(rank(confidence, small_correct, large_correct).groups())
    return np.interp(np.arange(len(confidence) + 1) / len(confidence), *curve)


def deferral_performance(confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """s_d, equations 10 and 11: area gained over random deferral, as a share of what ideal deferral would gain."""
    return _deferral_performance(rank(confidence, small_correct, large_correct).groups())[0]


def oracle_performance(confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """s_d with the oracle curve in the place of the ideal one: never above 1.

    The oracle defers in order of what the large model gains: first the items that it alone gets right (q of all), last
    those that it alone gets wrong (h). For 0/1 correctness that is a_S + min(r, q) - max(0, r - (1 - h)); for graded
    correctness q and h are the mean positive and negative part of the gain.
    """
    return _deferral_performance(rank(confidence, small_correct, large_correct).groups())[1]


def overlap(confidence: Floats, small_correct: Floats) -> float:
    """s_o, equation 9: shared area of the confidence densities of right and wrong answers; 0 is separated.

    Gaussian kernels, Scott's bandwidth in each class, over the whole line: kernels reach beyond [0, 1].
    """
    return overlapping_share(rank(confidence, small_correct).groups())


def auroc(confidence: Floats, small_correct: Floats) -> float:
    """AUROC of the confidence, right against wrong (equation 12)."""
    if is_graded(small_correct) or small_correct.min() == small_correct.max():
        return np.nan
    return float(roc_auc_score(small_correct == 1.0, confidence))


def risk_coverage_area(confidence: Floats, small_correct: Floats) -> float:
    """AURC (Geifman et al. 2019): mean over k = 1..N of the error rate among the k most confident."""
    return _risk_coverage_area(rank(confidence, small_correct).groups())


def joint_accuracy_at_ratio(ratio: float, confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """Joint accuracy after deferring this share of the items, the least confident first."""
    return float(np.interp(ratio, *_real_curve(rank(confidence, small_correct, large_correct).groups())))


def _real_curve(groups: Groups) -> tuple[Floats, Floats]:
    """Deferral ratio and joint accuracy (G + 1,) after deferring the g lowest groups."""
    assert groups.large is not None
    ratio = np.append(0.0, np.cumsum(groups.rows)) / groups.total
    gain = np.append(0.0, np.cumsum(groups.large - groups.small))
    return ratio, (groups.small.sum() + gain) / groups.total


def _oracle_curve(groups: Groups) -> tuple[Floats, Floats]:
    """Deferral ratio and joint accuracy (M + 1,) of deferring in descending order of the large model's gain."""
    ratio = np.append(0.0, np.cumsum(groups.gain_rows)) / groups.total
    gain = np.append(0.0, np.cumsum(groups.gain_rows * groups.gain))
    return ratio, (groups.small.sum() + gain) / groups.total


def _deferral_performance(groups: Groups) -> tuple[float, float]:
    assert groups.large is not None
    a_S, a_L = groups.small.sum() / groups.total, groups.large.sum() / groups.total
    random = (a_S + a_L) / 2.0
    real = _area(*_real_curve(groups)) - random
    oracle = _area(*_oracle_curve(groups)) - random
    ideal = (a_L - a_S) * a_S / 2.0  # equation 11 integrated, minus random
    # Below 1e-12 it is the rounding of a sum, not a gain.
    return float(real / ideal) if ideal > 1e-12 else np.nan, float(real / oracle) if oracle > 1e-12 else np.nan


def _area(ratio: Floats, accuracy: Floats) -> float:
    return float(np.trapezoid(accuracy, ratio))


def _ratio_for_gain(groups: Groups, share: float) -> float:
    """The least deferral ratio at which this share of the large model's advantage is won."""
    ratio, accuracy = _real_curve(groups)
    if accuracy[-1] - accuracy[0] < 1e-12:
        return np.nan
    target = accuracy[0] + share * (accuracy[-1] - accuracy[0])
    after = int(np.argmax(accuracy >= target))
    part = (target - accuracy[after - 1]) / (accuracy[after] - accuracy[after - 1])
    return float(ratio[after - 1] + part * (ratio[after] - ratio[after - 1]))


def _auroc(groups: Groups) -> float:
    """Share of pairs of a right and a wrong answer in the right order, a tie counting half."""
    wrong = groups.rows - groups.small
    pairs = groups.small.sum() * wrong.sum()
    return float((groups.small * (np.cumsum(wrong) - wrong / 2.0)).sum() / pairs) if pairs else np.nan


def _risk_coverage_area(groups: Groups) -> float:
    """In a group of m rows and e errors, after A surer rows with R errors: sum over j = 1..m of (R + j e/m) / (A + j),
    which is e + (R - A e/m) (H(A + m) - H(A)), with harmonic numbers H from the digamma function.
    """
    rows, errors = groups.rows[::-1], (groups.rows - groups.small)[::-1]
    rows, errors = rows[rows > 0], errors[rows > 0]
    surer, surer_errors = np.cumsum(rows) - rows, np.cumsum(errors) - errors
    harmonic = digamma(surer + rows + 1.0) - digamma(surer + 1.0)
    return float((errors + (surer_errors - surer * errors / rows) * harmonic).sum() / groups.total)


def pearson(groups: Groups) -> float:
    """Correlation of confidence and graded correctness."""
    mean, total = groups.small.sum() / groups.total, groups.total
    centred = groups.confidence - (groups.rows * groups.confidence).sum() / total
    spread = (groups.rows * centred**2).sum() / total
    grades = groups.small_squares / total - mean**2
    if np.count_nonzero(groups.rows) < 2 or grades < 1e-15:
        return np.nan
    return float((centred * (groups.small - groups.rows * mean)).sum() / total / np.sqrt(spread * grades))


@dataclass(frozen=True)
class DeferralCurves:
    """Joint accuracy over the deferral ratio, each (POINTS,)."""

    ratio: Floats
    real: Floats
    random: Floats
    ideal: Floats | None  # equation 11; None where the large model is no better than the small one
    oracle: Floats


@dataclass(frozen=True)
class Roc:
    """Shares of the wrong and of the right answers that are accepted, each (POINTS,), from no answer to all."""

    wrong_accepted: Floats
    right_accepted: Floats


@dataclass(frozen=True)
class Curves:
    """What the pictures of a report show; None where the data do not have it."""

    deferral: DeferralCurves | None
    roc: Roc | None
    reliability: Reliability | None
    coverage: Floats  # (POINTS - 1,), above 0
    risk: Floats  # error rate among the accepted, at each coverage


def curves(predictions: Predictions) -> Curves:
    """The curves on at most POINTS points each."""
    groups = rank(predictions.confidence, predictions.small_correct, predictions.large_correct).groups()
    probability = _probability(predictions)
    # Where the AUROC exists, which takes longer to compute than all the rest.
    both = not is_graded(predictions.small_correct) and 0.0 < groups.small.sum() < groups.total
    coverage = np.linspace(0.0, 1.0, POINTS)[1:]
    surer = np.append(0.0, np.cumsum(groups.rows[::-1])) / groups.total
    errors = np.append(0.0, np.cumsum((groups.rows - groups.small)[::-1])) / groups.total
    return Curves(
        None if groups.large is None else _deferral_curves(groups),
        _roc(groups) if both else None,
        None if probability is None else reliability(probability, predictions.small_correct),
        coverage,
        np.interp(coverage, surer, errors) / coverage,
    )


def _deferral_curves(groups: Groups) -> DeferralCurves:
    ratio = np.linspace(0.0, 1.0, POINTS)
    ends, real = _real_curve(groups)
    a_S, a_L = real[0], real[-1]
    ideal = np.minimum(a_S + ratio * (a_L - a_S) / (1.0 - a_S), a_L) if a_L > a_S else None
    random = a_S + ratio * (a_L - a_S)
    return DeferralCurves(ratio, np.interp(ratio, ends, real), random, ideal, np.interp(ratio, *_oracle_curve(groups)))


def _roc(groups: Groups) -> Roc:
    """Points at equal distances along the curve, so that its steep start is drawn as well as its end."""
    right = np.append(0.0, np.cumsum(groups.small[::-1])) / groups.small.sum()
    wrong = np.append(0.0, np.cumsum((groups.rows - groups.small)[::-1])) / (groups.total - groups.small.sum())
    along = np.linspace(0.0, 2.0, POINTS)
    return Roc(np.interp(along, right + wrong, wrong), np.interp(along, right + wrong, right))
