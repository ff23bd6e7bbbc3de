"""Calibrate a bundle: its temperature, and the confidences from which every threshold is chosen (thresholds.py).

gatekeeper calibrate BUNDLE --large LARGE --data clinc150 --data-dir DIR     temperature and calibration data
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from models.bundle import CALIBRATION, SELECTION, Bundle, Calibration, rewrite_bundle, write_calibration
from models.classifier import Classifier, load_classifier, predict_all
from models.data.datasets import LabelledDataset, Split
from models.errors import InputError


def calibrate(bundle: Bundle, data: LabelledDataset, large: Bundle | None, say: Callable[[str], None]) -> Bundle:
    """Fit the temperature; write calibration.parquet, and selection.parquet of the select split.

    The temperature is fitted on the select split: a certificate needs calibration items whose labels nothing has seen
    that decides a confidence. The confidences change with it, and so does the gate digest; a former certificate goes.
    """
    check_task(bundle, data)
    if large is not None:
        check_task(large, data)
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
        confidence = small.scores(logits, temperature)[small.score]
        large_right = None if answering is None else correctness(answering, data.labels, split)
        files[file] = Calibration(confidence, right, large_right)

    def write(directory: Path) -> None:
        for file, rows in files.items():
            write_calibration(directory / file, rows)

    changes: dict[str, Any] = {
        "temperature": temperature,
        "certificate": None,
        "metrics": {},  # they were those of other confidences
        "calibrated_on": data.content_hash,
        "calibrated_with": large and large.gate_digest,
    }
    return rewrite_bundle(bundle, changes, write)


def check_task(bundle: Bundle, data: LabelledDataset) -> None:
    """Raise InputError where texts would meet a model of images, or the other way round."""
    if bundle.manifest.task != data.task:
        raise InputError(f"{bundle.manifest.name} does {bundle.manifest.task}, and {data.name} is {data.task}")


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
    if set(classifier.labels) != set(labels):
        differing = sorted(set(classifier.labels) ^ set(labels))
        raise InputError(f"the large model has other labels ({len(differing)} differ, such as {differing[0]!r})")
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
