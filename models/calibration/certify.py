"""Certified thresholds: accuracy at or above a target with a stated certainty, or the answer that none has it.

    gatekeeper calibrate BUNDLE --target-accuracy 0.94 --certainty 0.95
    gatekeeper calibrate BUNDLE --target-accuracy-loss 0.005 --certainty 0.95

Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing, which asks for no monotone
curve: a large model may be the worse one on some items. Each candidate threshold is a hypothesis, "the accuracy there
is below the target". The selection data decide which are tested and in what order; the calibration data test them, one
after the other, and the first that is not rejected ends it. The last rejected is the answer. A wrong one has to reject
the first true hypothesis of the sequence, and a single test does that with a probability of at most 1 - certainty.

The order is the Pareto front of Laufer-Goldshtein et al. 2022 (arXiv 2210.07913): from the threshold that looks safest
on the selection data to fewer deferrals, past every candidate that both defers more and looks worse than a later one.

What the certificate rests on: calibration items and traffic are drawn alike and independently; neither the model, the
temperature nor the selection data have seen the calibration items' labels; the target is named before looking.

One file because the three certificates share their tests, their order and their words.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, gammaln, rel_entr, xlog1py, xlogy

from models.bundle import SCORE_RANGES, Calibration
from models.errors import InputError, NoThreshold
from models.operating_points import parting

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Enough for a deferral ratio to the tenth of a percent; 200 lost up to 0.002 of it in simulation.
CANDIDATES = 1_000


@dataclass(frozen=True)
class Certificate:
    """A threshold whose accuracy is at least `target` with probability `certainty` over the calibration draws.

    deferral_ratio and accuracy are those of the calibration data, whose rows `items` counts. lower_bound is the
    one-sided confidence bound of the accuracy at this one threshold, for information.
    """

    measure: str
    threshold: float
    deferral_ratio: float
    accuracy: float
    target: float
    certainty: float
    items: int
    method: str
    lower_bound: float


@dataclass(frozen=True)
class Tally:
    """At each threshold: how many items are deferred, how many count, and the sum of their correctness; each (K,).

    differing: of a comparison with the large model, whose `correct` is a sum of differences, how many are not 0.
    """

    deferred: Ints
    trials: Ints
    correct: Floats
    differing: Ints | None = None

    def at(self, chosen: Ints) -> "Tally":
        """The tally at some of the thresholds."""
        parts = (self.deferred, self.trials, self.correct, self.differing)
        return Tally(*(None if part is None else part[chosen] for part in parts))  # type: ignore[arg-type]


Count = Callable[[Calibration, Floats], Tally]
PValue = Callable[[Tally, float], Floats]


@dataclass(frozen=True)
class Measure:
    """What is certified: its name, how it is counted, its least possible value, and the exact and the graded test."""

    name: str
    count: Count
    least: float
    exact: PValue
    exact_name: str
    graded: PValue


def certify_joint_accuracy(
    selection: Calibration, calibration: Calibration, target: float, certainty: float, score: str
) -> Certificate:
    """The threshold with the fewest deferrals that is certified for a joint accuracy of at least `target`.

    selection: the bundle's scores on the select split; calibration: on the calibrate split; score: in SCORE_RANGES.
    Raises InputError for data or a target that cannot be used, NoThreshold where none can be certified.
    """
    _check_target("--target-accuracy", target)
    _check_large(selection, calibration)
    return _certify(selection, calibration, target, certainty, score, JOINT)


def certify_accuracy_loss(
    selection: Calibration, calibration: Calibration, loss: float, certainty: float, score: str
) -> Certificate:
    """The threshold with the fewest deferrals whose joint accuracy is certainly at most `loss` below the large model's.

    Of both models on the same items, so only those count that the small model answers and where one of the two is
    wrong: a far closer test than that of a joint accuracy whose target is what the large model happens to reach. The
    certificate's target is -loss, its accuracy the joint accuracy minus the large model's.
    """
    if not 0.0 <= loss < 1.0:
        raise InputError(f"--target-accuracy-loss must be at least 0 and below 1, not {loss:g}")
    _check_large(selection, calibration)
    # A small part of what may go wrong is spent on the rate of differing items, at any certainty.
    exact = partial(paired_p_value, nuisance=NUISANCE_SHARE * (1.0 - certainty))
    return _certify(selection, calibration, 0.0 - loss, certainty, score, replace(LOSS, exact=exact))


def certify_selective_accuracy(
    selection: Calibration, calibration: Calibration, target: float, certainty: float, score: str
) -> Certificate:
    """The same for the accuracy among the accepted items alone, which needs no large model.

    One minus the selective risk of Geifman and El-Yaniv 2017. Given how many calibration items a threshold accepts,
    these are independent draws of accepted items, so the same tests hold.
    """
    _check_target("--target-selective-accuracy", target)
    selection, calibration = replace(selection, large_correct=None), replace(calibration, large_correct=None)
    return _certify(selection, calibration, target, certainty, score, SELECTIVE)


def _certify(
    selection: Calibration, calibration: Calibration, target: float, certainty: float, score: str, measure: Measure
) -> Certificate:
    _check(selection, calibration, certainty)
    candidates = candidate_thresholds(selection.confidence, score)
    order = testing_order(measure.count(selection, candidates), target)
    tally = measure.count(calibration, candidates)
    # Graded or not is a property of the task, not of the draw: both sets are asked, so that a small one cannot hide it.
    graded = any(_graded(data) for data in (selection, calibration))
    p_value = measure.graded if graded else measure.exact
    passed = fixed_sequence(p_value(tally.at(order), target), 1.0 - certainty)
    chosen = order[max(passed, 1) - 1]  # without a pass the first one, for what there is to say of it
    trials = int(tally.trials[chosen])
    certificate = Certificate(
        measure=measure.name,
        threshold=float(candidates[chosen]),
        deferral_ratio=float(tally.deferred[chosen] / len(calibration.confidence)),
        accuracy=float(tally.correct[chosen]) / trials if trials else 0.0,
        target=target,
        certainty=certainty,
        items=len(calibration.confidence),
        method=f"learn-then-test, fixed sequence, {'Hoeffding-Bentkus' if graded else measure.exact_name}",
        lower_bound=lower_bound(
            p_value, tally.at(order[max(passed, 1) - 1 : max(passed, 1)]), certainty, measure.least
        ),
    )
    if not passed:
        raise NoThreshold(_why_not(certificate, trials, len(calibration.confidence) - int(tally.deferred[-1])))
    return certificate


def candidate_thresholds(confidence: Floats, score: str) -> Floats:
    """Rising thresholds between neighbouring confidences and at the score's two ends. confidence: selection data (N,).

    At most CANDIDATES cuts, evenly spread over the items; rounded for people where that parts the same items.
    """
    ordered = np.sort(confidence)
    cuts = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1  # items deferred; equal confidences cannot be parted
    if len(cuts) > CANDIDATES:
        nearest = np.searchsorted(cuts, np.linspace(1, len(ordered) - 1, CANDIDATES)).clip(max=len(cuts) - 1)
        cuts = cuts[np.unique(nearest)]
    middle = parting(ordered[cuts - 1], ordered[cuts])
    low, high = SCORE_RANGES[score]
    thresholds: Floats = np.unique(np.concatenate([[low], middle.clip(low, high), [high]]))
    return thresholds


def testing_order(selection: Tally, target: float) -> Ints:
    """Indices of the candidates to test, first to last: the safest on the selection data, then ever fewer deferrals.

    A candidate is left out when one with fewer deferrals looks as safe. Safe is the distance from the target in
    standard errors, which, unlike a p-value, neither reaches 0 for many items nor 1 for a curve below the target.
    """
    trials = np.maximum(selection.trials, 1)
    spread = trials if selection.differing is None else np.maximum(selection.differing, 1)
    safety = np.where(selection.trials > 0, (selection.correct - trials * target) / np.sqrt(spread), -np.inf)
    best_so_far = np.maximum.accumulate(safety)
    front = np.concatenate([[True], safety[1:] > best_so_far[:-1]])
    order: Ints = np.flatnonzero(front)[::-1]
    return order


def fixed_sequence(p_values: Floats, level: float) -> int:
    """How many hypotheses are rejected, in their order, before the first that is not."""
    kept = np.flatnonzero(~(p_values <= level))
    return int(kept[0]) if len(kept) else len(p_values)


def joint_tally(data: Calibration, thresholds: Floats) -> Tally:
    """Every item counts: by the small model's answer where accepted, by the large one's where deferred (equation 6)."""
    assert data.large_correct is not None  # certify_joint_accuracy has checked it
    deferred, gained = _sum_deferred(data.confidence, data.large_correct - data.small_correct, thresholds)
    return _tally(deferred, np.full(len(thresholds), len(data.confidence)), data.small_correct.sum() + gained)


def loss_tally(data: Calibration, thresholds: Floats) -> Tally:
    """Every item counts: by the small model's correctness minus the large one's where accepted, by 0 where deferred."""
    assert data.large_correct is not None  # certify_accuracy_loss has checked it
    difference = data.small_correct - data.large_correct
    deferred, below = _sum_deferred(data.confidence, difference, thresholds)
    _, differing_below = _sum_deferred(data.confidence, (difference != 0).astype(np.float64), thresholds)
    differing = np.round((difference != 0).sum() - differing_below).astype(np.int64)
    whole = _tally(deferred, np.full(len(thresholds), len(data.confidence)), difference.sum() - below)
    return replace(whole, differing=differing)


def selective_tally(data: Calibration, thresholds: Floats) -> Tally:
    """The accepted items count, by the small model's answer."""
    deferred, lost = _sum_deferred(data.confidence, data.small_correct, thresholds)
    return _tally(deferred, len(data.confidence) - deferred, data.small_correct.sum() - lost)


def _tally(deferred: Ints, trials: Ints, correct: Floats) -> Tally:
    # The last digits of a sum of graded values depend on the order of the rows.
    return Tally(deferred, trials, np.round(correct, 6))


def _sum_deferred(confidence: Floats, values: Floats, thresholds: Floats) -> tuple[Ints, Floats]:
    """Number of items below each of the rising thresholds, and the sum of their values; each (K,)."""
    bins = np.searchsorted(thresholds, confidence, side="right")  # how many thresholds accept the item
    size = len(thresholds) + 1
    counts, sums = np.bincount(bins, minlength=size), np.bincount(bins, weights=values, minlength=size)
    return counts.cumsum()[:-1], sums.cumsum()[:-1]


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


NUISANCE_SHARE = 0.02


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


def _paired_graded_p_value(tally: Tally, target: float) -> Floats:
    """Differences of grades lie in [-1, 1]: brought to [0, 1]."""
    halved = replace(tally, correct=(tally.correct + tally.trials) / 2.0)
    return hoeffding_bentkus_p_value(halved, (1.0 + target) / 2.0)


JOINT = Measure("joint accuracy", joint_tally, 0.0, binomial_p_value, "exact binomial", hoeffding_bentkus_p_value)
SELECTIVE = Measure(
    "selective accuracy", selective_tally, 0.0, binomial_p_value, "exact binomial", hoeffding_bentkus_p_value
)
LOSS = Measure(
    "joint accuracy minus the large model's",
    loss_tally,
    -1.0,
    paired_p_value,
    "paired trinomial",
    _paired_graded_p_value,
)


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


def _why_not(first: Certificate, trials: int, stuck: int) -> str:
    """One line: what was tested first, what is certain there, and what would help.

    stuck: calibration items so high in their score that no threshold defers them.
    """
    wanted, easier, always = f"a {first.measure} of {first.target:g}", "a lower target", ""
    if first.measure == LOSS.name:
        wanted, easier = f"an accuracy loss of {0.0 - first.target:g} against the large model", "a larger loss"
        always = "; deferring everything loses nothing"
        if stuck:
            always = f"; {stuck:,} items have the highest score there is and can never be deferred"
    refused = f"no threshold can be certified for {wanted} with certainty {first.certainty:g}"
    if not trials:
        return f"{refused}: at {first.threshold:g}, the most promising, no calibration item is accepted"
    bound = math.floor(first.lower_bound * 1e4) / 1e4
    of = first.measure if always else "it"
    seen = (
        f"{refused}: at {first.threshold:g}, the most promising (deferral ratio {first.deferral_ratio:.3f}), {of} is "
        f"{first.accuracy:.4f} on {trials} calibration items, certainly at least {bound:.4f}"
    )
    if first.accuracy <= first.target:
        return f"{seen}; more items would not help, {easier} or better models would{always}"
    # The distance of the bound shrinks with the root of the number of items.
    factor = ((first.accuracy - first.lower_bound) / (first.accuracy - first.target)) ** 2
    count = int(float(f"{first.items * factor:.1e}"))
    return f"{seen}; with such an accuracy about {count:,} items would be needed{always}"


def _graded(data: Calibration) -> bool:
    columns = [column for column in (data.small_correct, data.large_correct) if column is not None]
    return any(bool(((column != 0) & (column != 1)).any()) for column in columns)


def _check_target(option: str, target: float) -> None:
    if not 0.0 < target <= 1.0:
        raise InputError(f"{option} must be above 0 and at most 1, not {target:g}")


def _check_large(selection: Calibration, calibration: Calibration) -> None:
    for data, split in ((selection, "selection"), (calibration, "calibration")):
        if data.large_correct is None:
            raise InputError(
                f"the {split} data do not know the large model: run `gatekeeper calibrate` with --large and --data"
            )


def _check(selection: Calibration, calibration: Calibration, certainty: float) -> None:
    if not 0.5 < certainty < 1.0:
        raise InputError(f"--certainty must be above 0.5 and below 1, such as 0.95, not {certainty:g}")
    for data, split in ((selection, "selection"), (calibration, "calibration")):
        if not len(data.confidence):
            raise InputError(f"the {split} data have no rows: run `gatekeeper calibrate` with --data")
        _check_column(data, "confidence", split, -math.inf, math.inf)
        _check_column(data, "small_correct", split, 0.0, 1.0)
        if data.large_correct is not None:
            _check_column(data, "large_correct", split, 0.0, 1.0)


def _check_column(data: Calibration, name: str, split: str, low: float, high: float) -> None:
    column = getattr(data, name)
    if column.shape != (len(data.confidence),):
        raise InputError(f"the {split} data: {name} has {len(column)} rows, confidence {len(data.confidence)}")
    wrong = np.flatnonzero(~(np.isfinite(column) & (column >= low) & (column <= high)))
    if len(wrong):
        expected = "finite" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise InputError(f"the {split} data: {name} in row {wrong[0]} is {column[wrong[0]]}, not {expected}")
