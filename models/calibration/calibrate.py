"""Calibrate a bundle: its temperature, and the confidences from which every threshold is chosen (thresholds.py).

gatekeeper calibrate BUNDLE --large LARGE --data clinc150 --data-dir DIR     temperature and calibration data

LARGE is the large model's bundle or a table of its answers (large_answers.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from models.bundle import CALIBRATION, SELECTION, Bundle, Calibration, rewrite_bundle, write_calibration
from models.calibration.large_answers import LargeAnswers, LargeTable
from models.data.datasets import LabelledDataset, Split
from models.errors import InputError
from models.inference.answers import answers
from models.inference.classifier import load_classifier
from models.labels import check_same_labels, places

FILES = {"select": SELECTION, "calibrate": CALIBRATION}


def calibrate(bundle: Bundle, data: LabelledDataset, large: LargeAnswers | None, say: Callable[[str], None]) -> Bundle:
    """Fit the temperature; write calibration.parquet, and selection.parquet of the select split.

    The temperature is fitted on the select split: a certificate needs calibration items whose labels nothing has seen
    that decides a confidence. The confidences change with it, and so does the gate digest; a former certificate goes.
    Everything is computed and checked before anything is written. Raises InputError.
    """
    check_task(bundle, data)
    wanted = {split: expected_classes(bundle, data, getattr(data, split)) for split in FILES}
    if large is not None:
        large.check(data, tuple(FILES))
    small, name = load_classifier(bundle), bundle.manifest.name
    logits = {split: answers(small, name, getattr(data, split).inputs, split).logits for split in FILES}
    temperature = fit_temperature(logits["select"].astype(np.float64), wanted["select"])
    say(f"temperature {temperature:.4f}, fitted on {len(data.select)} items of the select split")
    files = {}
    for split, file in FILES.items():
        right = (logits[split].argmax(axis=1) == wanted[split]).astype(np.float64)
        confidence = small.scores(logits[split], temperature)[small.score]
        large_right = None if large is None else large.correct(data, split)
        files[file] = Calibration(confidence, right, large_right)
    if isinstance(large, LargeTable):
        say(large.note(data, tuple(FILES)))

    def write(directory: Path) -> None:
        for file, rows in files.items():
            write_calibration(directory / file, rows)

    changes: dict[str, Any] = {
        "temperature": temperature,
        "certificate": None,
        "metrics": {},  # they were those of other confidences
        "calibrated_on": data.content_hash,
        "calibrated_with": large and large.digest,
    }
    return rewrite_bundle(bundle, changes, write)


def check_task(bundle: Bundle, data: LabelledDataset) -> None:
    """Raise InputError where texts would meet a model of images, or the other way round."""
    if bundle.manifest.task != data.task:
        raise InputError(f"{bundle.manifest.name} does {bundle.manifest.task}, and {data.name} is {data.task}")


def expected_classes(bundle: Bundle, data: LabelledDataset, split: Split) -> NDArray[np.int64]:
    """The split's labels as the bundle numbers them, (N,). Raises InputError where the label sets differ."""
    own = bundle.manifest.labels
    check_same_labels(data.name, data.labels, f"the bundle {bundle.manifest.name}", own)
    return np.array(places(data.labels, own), dtype=np.int64)[list(split.labels)]


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
