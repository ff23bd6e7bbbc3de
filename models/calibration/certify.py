"""Certified thresholds: accuracy at or above a target with a stated certainty, or the answer that none has it.

    gatekeeper calibrate BUNDLE --target-accuracy 0.94 --certainty 0.95
    gatekeeper calibrate BUNDLE --target-accuracy-loss 0.005 --certainty 0.95

Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing, which asks for no monotone
curve: a large model may be the worse one on some items. Each candidate threshold is a hypothesis, "the accuracy there
is below the target". The selection data decide which are tested and in what order; the calibration data test them, one
after the other, and the first that is not rejected ends it. The last rejected is the answer. A wrong one has to reject
the first true hypothesis of the sequence, and a single test does that with a probability of at most 1 - certainty.

What the certificate rests on: calibration items and traffic are drawn alike and independently; neither the model, the
temperature nor the selection data have seen the calibration items' labels; the target is named before looking.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np

from models.bundle import Calibration
from models.calibration.certificate import Certificate, why_not
from models.calibration.measures import JOINT, LOSS, SELECTIVE, Measure
from models.calibration.p_values import lower_bound, paired_p_value
from models.calibration.search import candidate_thresholds, fixed_sequence, testing_order
from models.errors import InputError, NoThreshold

# A small part of what may go wrong is spent on the rate of differing items, at any certainty.
NUISANCE_SHARE = 0.02


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
        raise NoThreshold(why_not(certificate, trials, len(calibration.confidence) - int(tally.deferred[-1])))
    return certificate


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
