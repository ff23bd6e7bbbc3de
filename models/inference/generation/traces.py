"""An answer's tokens to its confidence: the scores of models that write text, the same in the job and in the edge.

A token's log-probability and entropy are of the raw distribution in float32: before a temperature, penalties or a
grammar, over the entries of the output that are tokens. The end token is one of the answer's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.generation import QuantileRule

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """The T >= 1 tokens of one greedy answer; log_prob and entropy (T,), in nats. ended: by an end token or stop text,
    not cut at the most tokens that an answer may have. state: (E,), the mean of the hidden states of which the output
    layer made the tokens, where it is kept."""

    tokens: tuple[int, ...]
    log_prob: Floats
    entropy: Floats
    ended: bool
    state: Floats | None = None


def negative_predictive_entropy(trace: Trace) -> float:
    """g(x) = 1/T sum_t sum_v p_tv log p_tv (arXiv 2502.19335, equation 8), from -log V to 0."""
    return -float(trace.entropy.mean())


def sum_log_prob(trace: Trace) -> float:
    """log p(answer): the sum over its tokens."""
    return float(trace.log_prob.sum())


def mean_log_prob(trace: Trace) -> float:
    """The mean over the answer's tokens."""
    return float(trace.log_prob.mean())


def min_log_prob(trace: Trace) -> float:
    """The least likely token's."""
    return float(trace.log_prob.min())


def first_max_softmax(trace: Trace) -> float:
    """The probability of the first token."""
    return float(np.exp(trace.log_prob[0]))


SCORES: dict[str, Callable[[Trace], float]] = {
    "negative_predictive_entropy": negative_predictive_entropy,
    "sum_log_prob": sum_log_prob,
    "mean_log_prob": mean_log_prob,
    "min_log_prob": min_log_prob,
    "first_max_softmax": first_max_softmax,
}
QUANTILES = tuple(position / 10 for position in range(11))


def scores_of(traces: Sequence[Trace], rule: QuantileRule | None) -> dict[str, Floats]:
    """Every score by name, each (N,); quantile_rule where there is a rule."""
    found = {name: np.array([score(trace) for trace in traces], dtype=np.float64) for name, score in SCORES.items()}
    return found if rule is None else found | {"quantile_rule": apply_rule(rule, features(traces, rule.quantiles))}


def features(traces: Sequence[Trace], quantiles: Sequence[float] = QUANTILES) -> Floats:
    """(N, Q + 1): quantiles of each answer's token log-probabilities, then the logarithm of its length."""
    rows = [[*np.quantile(trace.log_prob, quantiles), np.log(len(trace.tokens))] for trace in traces]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(quantiles) + 1)


def apply_rule(rule: QuantileRule, rows: Floats) -> Floats:
    """features (N, Q + 1) -> the probability of a right answer, (N,)."""
    scaled = (rows - np.array(rule.mean)) / np.array(rule.scale)
    # clipped: exp of a thousand is a warning, and a confidence of 0 or 1 either way
    logit = np.clip(scaled @ np.array(rule.coefficients) + rule.intercept, -700.0, 700.0)
    probability: Floats = 1.0 / (1.0 + np.exp(-logit))
    return probability
