"""The fitted gates that a plain confidence is compared with; the scores in confidence.py need no fitting.

A head that predicts the small model's error (Narasimhan et al. 2022), and one on quantiles of the log probabilities
(Gupta et al. 2024).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Gate = Callable[[Any], NDArray[np.float64]]


def fit_posthoc_head(logits: NDArray[np.float32], correct: NDArray[np.float64]) -> Gate:
    """A linear head on the frozen small model's log probabilities that predicts whether it is right."""
    return _fit(logits, correct, lambda log_p: np.concatenate([log_p, np.sort(log_p, axis=1)[:, ::-1][:, :5]], axis=1))


def fit_quantile_gate(logits: NDArray[np.float32], correct: NDArray[np.float64]) -> Gate:
    """A linear head on the quantile vector of the log probabilities.

    The paper's vector is over the tokens of an answer; a class has one token, so here it is over the classes.
    """
    return _fit(logits, correct, lambda log_p: np.quantile(log_p, np.linspace(0.0, 1.0, 11), axis=1).T)


def _fit(logits: NDArray[np.float32], correct: NDArray[np.float64], features: Callable[[Any], Any]) -> Gate:
    def rows(some: NDArray[np.float32]) -> Any:
        return features(np.maximum(log_softmax(some.astype(np.float64), axis=1), -30.0))

    head = fit_head(rows(logits), correct)
    return lambda some: head(rows(some))


def fit_head(features: NDArray[np.floating], correct: NDArray[np.float64]) -> Gate:
    """A linear head on (N, F) that predicts whether the answer is right; a grade counts as right above a half."""
    right = correct > 0.5
    if right.all() or not right.any():  # nothing to learn
        return lambda some: np.zeros(len(some))
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    head.fit(features, right)
    return lambda some: np.asarray(head.predict_proba(some)[:, 1], dtype=np.float64)
