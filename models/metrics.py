"""Numbers about a cascade from confidences and correctness. Pure numpy; names as in the paper (equations 9-12).

Every function takes confidence (N,), small_correct (N,) and large_correct (N,), correctness in [0, 1]; a number that
does not exist for the data (one class of outcome only, a large model no better than the small one) is NaN.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]


def deferral_curve(confidence: Floats, small_correct: Floats, large_correct: Floats) -> Floats:
    """Joint accuracy after deferring the k least confident items, k = 0..N (acc_real of equation 11)."""
    order = np.argsort(confidence, kind="stable")
    gain = np.cumsum((large_correct - small_correct)[order])
    curve: Floats = (small_correct.sum() + np.concatenate([[0.0], gain])) / len(confidence)
    return curve


def deferral_performance(confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """s_d, equation 10: area gained over random deferral, as a share of what ideal deferral would gain."""
    real = deferral_curve(confidence, small_correct, large_correct)
    ratio = np.linspace(0.0, 1.0, len(real))
    a_s, a_l = float(small_correct.mean()), float(large_correct.mean())
    if a_s >= 1.0 or a_l <= a_s:
        return float("nan")
    random = a_s + ratio * (a_l - a_s)
    ideal = np.minimum(a_s + ratio * (a_l - a_s) / (1.0 - a_s), a_l)
    return float(np.trapezoid(real - random, ratio) / np.trapezoid(ideal - random, ratio))


def overlap(confidence: Floats, small_correct: Floats) -> float:
    """s_o, equation 9: shared area of the confidence densities of right and wrong answers; 0 is separated."""
    right, wrong = confidence[small_correct >= 0.5], confidence[small_correct < 0.5]
    if min(len(right), len(wrong)) < 2 or np.ptp(right) == 0 or np.ptp(wrong) == 0:
        return float("nan")
    grid = np.linspace(confidence.min(), confidence.max(), 256)
    return float(np.trapezoid(np.minimum(gaussian_kde(right)(grid), gaussian_kde(wrong)(grid)), grid))


def auroc(confidence: Floats, small_correct: Floats) -> float:
    """AUROC of the confidence, right against wrong (equation 12)."""
    right = small_correct >= 0.5
    return float(roc_auc_score(right, confidence)) if 0 < right.sum() < len(right) else float("nan")


def joint_accuracy(threshold: float, confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """Accuracy of the cascade at a threshold (equation 6: accept iff g(x) >= tau)."""
    return float(np.where(confidence >= threshold, small_correct, large_correct).mean())


def joint_accuracy_at_ratio(ratio: float, confidence: Floats, small_correct: Floats, large_correct: Floats) -> float:
    """Joint accuracy after deferring this share of the items, the least confident first."""
    curve = deferral_curve(confidence, small_correct, large_correct)
    return float(curve[round(ratio * len(confidence))])


def bootstrap(
    measures: dict[str, Callable[[NDArray[np.int64]], float]], count: int, *, resamples: int = 200, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Each measure with a 95 % percentile interval. A measure maps row indices (N,) to a number."""
    generator = np.random.default_rng(seed)
    samples = [generator.integers(0, count, count) for _ in range(resamples)]
    everything = np.arange(count)
    result: dict[str, dict[str, float | None]] = {}
    for name, measure in measures.items():
        values = np.array([measure(sample) for sample in samples])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        numbers = {"value": measure(everything), "low": float(low), "high": float(high)}
        result[name] = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
    return result
