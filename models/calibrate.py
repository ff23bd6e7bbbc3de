"""Calibrate a bundle: temperature, calibration.parquet, and the threshold for what an operator wants.

gatekeeper calibrate BUNDLE --large LARGE --data clinc150 --data-dir DIR     temperature and calibration data
gatekeeper calibrate BUNDLE --target-deferral-ratio 0.2                      a threshold from that data
gatekeeper calibrate BUNDLE --target-accuracy 0.93 --write                   ... kept as the bundle's default
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from models.bundle import Bundle, Calibration, rewrite_bundle, write_calibration
from models.classifier import TextClassifier, load_classifier, predict_all
from models.confidence import SCORES
from models.datasets import TextDataset
from models.errors import InputError
from models.metrics import deferral_curve


class NoThreshold(InputError):
    """No threshold meets the target: an answer, not a failure."""


@dataclass(frozen=True)
class Choice:
    """A threshold and what the calibration data expect of it."""

    threshold: float
    deferral_ratio: float
    joint_accuracy: float | None


def calibrate(bundle: Bundle, data: TextDataset, large: Bundle | None, say: Callable[[str], None]) -> Bundle:
    """Fit the temperature on the calibrate split and write calibration.parquet.

    The confidences change with the temperature, and so does the gate digest.
    """
    if data.labels != bundle.manifest.labels:
        raise InputError(f"the labels of {data.name} are not those of the bundle {bundle.manifest.name}")
    texts, labels = data.calibrate.texts, np.array(data.calibrate.labels)
    untempered = replace(load_classifier(bundle), temperature=1.0)
    _, _, probabilities = predict_all(untempered, texts)
    temperature = fit_temperature(np.log(np.maximum(probabilities.astype(np.float64), 1e-45)), labels)
    say(f"temperature {temperature:.4f}, fitted on {len(texts)} texts")
    predicted, confidence, _ = predict_all(replace(untempered, temperature=temperature), texts)
    large_correct = None if large is None else correctness(load_classifier(large), data.labels, texts, labels)
    calibration = Calibration(confidence, (predicted == labels).astype(np.float64), large_correct)
    return rewrite_bundle(bundle, {"temperature": temperature}, lambda path: write_calibration(path, calibration))


def correctness(
    classifier: TextClassifier, labels: tuple[str, ...], texts: tuple[str, ...], expected: NDArray[np.int64]
) -> NDArray[np.float64]:
    """1.0 where the classifier's label, by name, is the expected one."""
    predicted, _, _ = predict_all(classifier, texts)
    names, wanted = np.array(classifier.labels), np.array(labels)
    correct: NDArray[np.float64] = (names[predicted] == wanted[expected]).astype(np.float64)
    return correct


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] with the least negative log-likelihood (Guo et al. 2017). logits: (N, C)."""

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
