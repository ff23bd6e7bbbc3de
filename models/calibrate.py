"""Calibrate a bundle: temperature, calibration.parquet, and the threshold for what an operator wants.

gatekeeper calibrate BUNDLE --large LARGE --data clinc150 --data-dir DIR     temperature and calibration data
gatekeeper calibrate BUNDLE --target-deferral-ratio 0.2                      a threshold from that data
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --write                   ... kept as the bundle's default
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --certainty 0.95          ... with a guarantee (certify.py)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from models.bundle import CALIBRATION, SELECTION, Bundle, Calibration, rewrite_bundle, write_calibration
from models.classifier import Classifier, confidences, load_classifier, predict_all
from models.confidence import SCORES
from models.datasets import LabelledDataset, Split
from models.errors import InputError, NoThreshold
from models.metrics import deferral_curve


@dataclass(frozen=True)
class Choice:
    """A threshold and what the calibration data expect of it."""

    threshold: float
    deferral_ratio: float
    joint_accuracy: float | None


def calibrate(bundle: Bundle, data: LabelledDataset, large: Bundle | None, say: Callable[[str], None]) -> Bundle:
    """Fit the temperature; write calibration.parquet, and selection.parquet of the select split.

    The temperature is fitted on the select split: a certificate needs calibration items whose labels nothing has seen
    that decides a confidence. The confidences change with it, and so does the gate digest; a former certificate goes.
    """
    small = load_classifier(bundle)
    selected = predict_all(small, data.select.inputs).logits
    temperature = fit_temperature(selected.astype(np.float64), expected_classes(bundle, data, data.select))
    say(f"temperature {temperature:.4f}, fitted on {len(selected)} items of the select split")
    answering = None if large is None else load_classifier(large)
    files = {}
    for file, split, logits in (
        (SELECTION, data.select, selected),
        (CALIBRATION, data.calibrate, predict_all(small, data.calibrate.inputs).logits),
    ):
        right = (logits.argmax(axis=1) == expected_classes(bundle, data, split)).astype(np.float64)
        confidence = confidences(logits, temperature)[small.score]
        large_right = None if answering is None else correctness(answering, data.labels, split)
        files[file] = Calibration(confidence, right, large_right)

    def write(directory: Path) -> None:
        for file, rows in files.items():
            write_calibration(directory / file, rows)

    return rewrite_bundle(bundle, {"temperature": temperature, "certificate": None}, write)


def expected_classes(bundle: Bundle, data: LabelledDataset, split: Split) -> NDArray[np.int64]:
    """The split's labels as the bundle numbers them, (N,). Raises InputError where the label sets differ."""
    if set(data.labels) != set(bundle.manifest.labels):
        differing = sorted(set(data.labels) ^ set(bundle.manifest.labels))
        raise InputError(
            f"the labels of {data.name} are not those of the bundle {bundle.manifest.name} "
            f"({len(differing)} differ, such as {differing[0]!r})"
        )
    index = {label: place for place, label in enumerate(bundle.manifest.labels)}
    return np.array([index[data.labels[label]] for label in split.labels], dtype=np.int64)


def correctness(
    classifier: Classifier, labels: Sequence[str], split: Split, progress: Callable[[int], None] = lambda _: None
) -> NDArray[np.float64]:
    """1.0 where the classifier's label, by name, is the split's, (N,)."""
    predicted = predict_all(classifier, split.inputs, progress=progress).label
    names, wanted = np.array(classifier.labels), np.array(labels)
    correct: NDArray[np.float64] = (names[predicted] == wanted[list(split.labels)]).astype(np.float64)
    return correct


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] with the least negative log-likelihood (Guo et al. 2017). logits: (N, C).

    1 where every item is right: the likelihood would rise until every confidence is the same.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(found.x)), 6)


def threshold_for_ratio(calibration: Calibration, ratio: float, score: str) -> Choice:
    """The threshold that defers this share of the calibration items (the nearest that ties allow)."""
    if not 0.0 <= ratio <= 1.0:
        raise InputError(f"--target-deferral-ratio must be in [0, 1], not {ratio:g}")
    return _choice(calibration, round(ratio * len(calibration.confidence)), score)


def threshold_for_accuracy(calibration: Calibration, accuracy: float, score: str) -> Choice:
    """The threshold that reaches this joint accuracy on the calibration items with the fewest deferrals.

    Raises NoThreshold with the best there is.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise InputError(f"--target-accuracy must be in [0, 1], not {accuracy:g}")
    if calibration.large_correct is None:
        raise InputError("the calibration data do not know the large model: run `gatekeeper calibrate` with --large")
    curve = deferral_curve(calibration.confidence, calibration.small_correct, calibration.large_correct)
    ordered = np.sort(calibration.confidence)
    # A threshold cannot part two equal confidences: only cuts between different ones exist.
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    reached = np.flatnonzero((curve >= accuracy) & possible)
    if not len(reached):
        best = int(np.argmax(np.where(possible, curve, -1.0)))
        raise NoThreshold(
            f"no threshold reaches a joint accuracy of {accuracy:g} on the calibration data; "
            f"the best is {curve[best]:.4f} at a deferral ratio of {best / len(ordered):.3f}"
        )
    return _choice(calibration, int(reached[0]), score)


def expectation(calibration: Calibration, threshold: float) -> Choice:
    """What the calibration data expect of a given threshold."""
    return Choice(threshold, calibration.deferral_ratio(threshold), calibration.joint_accuracy(threshold))


def _choice(calibration: Calibration, deferred: int, score: str) -> Choice:
    """A threshold half-way between the last deferred and the first accepted confidence."""
    ordered = np.sort(calibration.confidence)
    low, high = SCORES[score].low, SCORES[score].high
    below = ordered[deferred - 1] if deferred > 0 else low
    above = ordered[deferred] if deferred < len(ordered) else high
    threshold = float(below + above) / 2 if deferred > 0 else low
    # Rounded for people where it parts the same items.
    rounded = round(threshold, 4)
    return expectation(calibration, rounded if below < rounded <= above else threshold)
