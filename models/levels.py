"""Level k of a cascade: the items that level k-1 defers, which is what it is tuned, calibrated and measured on."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data.datasets import LabelledDataset, Split
from models.data.images import ImageFiles
from models.errors import InputError
from models.inference.answers import answers
from models.inference.classifier import load_classifier
from models.operating_points import deferred

FEWEST = 20


def only_deferred(data: LabelledDataset, before: Bundle, threshold: float | None) -> LabelledDataset:
    """The dataset without what `before` accepts at the threshold (default: its own). Raises InputError.

    A model is surer of what it was trained on: of train it defers less than of the other splits.
    """
    tau = before.manifest.default_threshold if threshold is None else threshold
    if before.manifest.task != data.task:
        raise InputError(f"{before.manifest.name} does {before.manifest.task}, and {data.name} is {data.task}")
    classifier = load_classifier(before)
    splits: dict[str, Split] = {}
    for name in ("train", "select", "calibrate", "test"):
        split: Split = getattr(data, name)
        confidence = answers(classifier, before.manifest.name, split.inputs, name).confidence
        rows = np.flatnonzero(deferred(confidence, tau))
        if len(rows) < FEWEST:
            raise InputError(
                f"{before.manifest.name} defers {len(rows)} of the {len(split)} {name} items at threshold {tau:g}: "
                "too few for a level of their own; raise --threshold"
            )
        splits[name] = Split(_chosen(split.inputs, rows), tuple(split.labels[row] for row in rows))
    note = ", ".join(f"{len(split)} of {len(getattr(data, name))} {name}" for name, split in splits.items())
    key = f"{data.content_hash} deferred by {before.gate_digest} at {tau!r}"
    return replace(
        data,
        train=splits["train"],
        select=splits["select"],
        calibrate=splits["calibrate"],
        test=splits["test"],
        notes=(*data.notes, f"{before.manifest.name} defers at threshold {tau:g}: {note}"),
        content_hash=hashlib.sha256(key.encode()).hexdigest(),
    )


def _chosen(inputs: Sequence[Any], rows: NDArray[np.int64]) -> Sequence[Any]:
    """These rows in the form that the inputs had: an array, image files that are not decoded yet, or texts."""
    if isinstance(inputs, np.ndarray):
        some: NDArray[np.uint8] = inputs[rows]
        return cast("Sequence[Any]", some)
    if isinstance(inputs, ImageFiles):
        return inputs.take(rows.tolist())
    return tuple(inputs[row] for row in rows.tolist())
