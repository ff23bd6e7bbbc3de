"""P-values of "the accuracy at this threshold is below the target", each (K,) for a tally of K thresholds.

Exact for answers that are right or wrong: binomial, and paired where two models answer the same items. Hoeffding and
Bentkus for correctness that is graded. Their inverse is a lower bound of the accuracy.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, gammaln, rel_entr, xlog1py, xlogy

from models.calibration.tallies import Floats, Ints, Tally

PValue = Callable[[Tally, float], Floats]


def binomial_p_value(tally: Tally, target: float) -> Floats:
    """P(Bin(trials, target) >= correct): exact for 0/1 answers with an accuracy below the target; 1 without a trial."""
    return _binomial_tail(tally.correct, tally.trials, target)


def _binomial_tail(correct: Floats, trials: Ints | Floats, share: Floats | float) -> Floats:
    """P(Bin(trials, share) >= correct)."""
    # The tail as a regularised incomplete beta function; scipy.stats.binom.sf is the same at 30 times the overhead.
    tail = betainc(np.maximum(correct, 1.0), np.maximum(trials - correct, 0.0) + 1.0, share)
    p: Floats = np.where(correct > trials, 0.0, np.where(correct > 0, tail, 1.0))
    return p


def hoeffding_bentkus_p_value(tally: Tally, target: float) -> Floats:
    """The same for correctness graded in [0, 1] (Bates et al. 2021; Angelopoulos et al. 2021, section 3.1).

    min(exp(-n h(min(r, a), a)), e P(Bin(n, a) <= ceil(n r))), with r the mean loss, 1 - accuracy, a = 1 - target, and h
    the relative entropy of two Bernoulli variables.
    """
    n, limit = np.maximum(tally.trials, 1), 1.0 - target
    loss = np.minimum(1.0 - tally.correct / n, limit)
    hoeffding = np.exp(-n * (rel_entr(loss, limit) + rel_entr(1.0 - loss, 1.0 - limit)))
    p: Floats = np.minimum(hoeffding, np.e * _binomial_tail(np.floor(tally.correct), tally.trials, target))
    return np.where(tally.trials > 0, p, 1.0)


def paired_p_value(tally: Tally, target: float, nuisance: float = 1e-3) -> Floats:
    """The p-value of "the mean difference is below the target" for differences of -1, 0 and 1; target in (-1, 0].

    The sum of n such differences has one parameter more than its mean: how often they are not 0. The largest p-value
    over a confidence interval of that rate counts, plus the chance `nuisance` that the rate lies outside it (Berger and
    Boos 1994), on a grid of rates: five, or 33 where few items make the tail less smooth. Given that k differ, the sum
    is 2 Bin(k, .) - k.
    """
    assert tally.differing is not None
    # A threshold's neighbours mostly part items on which both models are right: few tallies are different.
    tallies, index = np.unique([np.round(tally.correct), tally.trials, tally.differing], axis=1, return_inverse=True)
    ps = [_trinomial_p_value(int(total), int(n), int(differing), target, nuisance) for total, n, differing in tallies.T]
    return np.array(ps)[index]


def _trinomial_p_value(total: int, n: int, differing: int, target: float, nuisance: float) -> float:
    if n == 0:
        return 1.0
    low = betaincinv(differing, n - differing + 1.0, nuisance / 2) if differing > 0 else 0.0
    high = betaincinv(differing + 1.0, n - differing, 1 - nuisance / 2) if differing < n else 1.0
    # A rate below the loss cannot make that loss.
    rates = np.linspace(max(low, -target), max(high, -target), 33 if n <= 300 else 5)
    return min(1.0, float(trinomial_tail(total, n, rates, target).max()) + nuisance)


def trinomial_tail(total: int, n: int, rates: Floats, mean: float) -> Floats:
    """P(sum >= total) of n differences of -1, 0, 1 with that mean, for each rate (K,) of not being 0; mean <= 0.

    What is further than seven standard deviations from the expected number of differences is left out.
    """
    spread = 7.0 * math.sqrt(n * rates.max()) + 25.0
    first, last = max(0, math.floor(n * rates.min() - spread)), min(n, math.ceil(n * rates.max() + spread))
    counts = np.arange(first, last + 1, dtype=np.float64)
    ways = gammaln(n + 1.0) - gammaln(counts + 1.0) - gammaln(n - counts + 1.0)
    chances = np.exp(ways + xlogy(counts, rates[:, None]) + xlog1py(n - counts, -rates[:, None]))
    up = ((1.0 + mean / np.maximum(rates, 1e-300)) / 2.0).clip(0.0, 1.0)
    tails: Floats = (chances * _binomial_tail(np.ceil((counts + total) / 2.0), counts, up[:, None])).sum(axis=1)
    return tails


def paired_graded_p_value(tally: Tally, target: float) -> Floats:
    """The same for differences of grades, which lie in [-1, 1]: brought to [0, 1]."""
    halved = replace(tally, correct=(tally.correct + tally.trials) / 2.0)
    return hoeffding_bentkus_p_value(halved, (1.0 + target) / 2.0)


def lower_bound(p_value: PValue, tally: Tally, certainty: float, least: float = 0.0) -> float:
    """The largest value that one threshold's items reject: a one-sided bound (Clopper and Pearson for 0/1)."""
    trials = int(tally.trials[0])
    seen = float(tally.correct[0]) / trials if trials else least

    def excess(value: float) -> float:
        return float(p_value(tally, value)[0]) - (1.0 - certainty)

    # The p-value rises with the value asked for; what is seen is the highest that is worth asking for.
    highest = min(seen, 0.0) if least < 0 else seen
    if highest <= least or excess(least) > 0:
        return least
    if excess(highest) <= 0:
        return highest
    return float(brentq(excess, least, highest, xtol=1e-9))
