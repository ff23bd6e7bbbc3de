"""The quantile rule of Gupta et al. 2024, fitted on the select split."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from models.generation import QuantileRule
from models.inference.generation.traces import QUANTILES, Trace, features

Floats = NDArray[np.float64]


def fit_rule(traces: Sequence[Trace], correct: Floats) -> QuantileRule | None:
    """Logistic regression on quantiles of token log-probabilities and the length; None where all is right, or wrong.

    correct: (N,) in [0, 1]; a grade counts as so much of a right answer and the rest of a wrong one.
    """
    if correct.min() == correct.max():
        return None
    rows = features(traces)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale[scale < 1e-9] = 1.0  # a quantile that is the same everywhere says nothing
    scaled = (rows - mean) / scale
    regression = LogisticRegression(C=1.0, max_iter=1000)
    regression.fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], len(rows)),
        sample_weight=np.concatenate([correct, 1.0 - correct]),
    )
    return QuantileRule(
        quantiles=QUANTILES,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
    )
