"""The classes of the test items: how often each is deferred and right, and which is taken for which."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.report.wording import one_line, percent
from models.numbers.predictions import Predictions
from models.operating_points import deferred as deferred_by

CONFUSIONS, MOST_ROWS = 12, 1000


@dataclass(frozen=True)
class ByClass:
    """Shares of each class (C,); `order` are the classes that occur, the most deferred first."""

    names: tuple[str, ...]
    items: NDArray[np.int64]
    deferred: NDArray[np.float64]
    small: NDArray[np.float64]
    joint: NDArray[np.float64] | None
    order: NDArray[np.int64]


def by_class(predictions: Predictions, threshold: float) -> ByClass | None:
    """None where the classes are not known."""
    if predictions.classes is None or predictions.label is None:
        return None
    label = predictions.label
    items: NDArray[np.int64] = np.bincount(label, minlength=len(predictions.classes))

    def share(values: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.bincount(label, values, len(items)) / np.maximum(items, 1)
        return means

    below = deferred_by(predictions.confidence, threshold)
    joint = None
    if predictions.large_correct is not None:
        joint = share(np.where(below, predictions.large_correct, predictions.small_correct))
    deferred = share(below.astype(np.float64))
    order = np.argsort(-deferred, kind="stable")
    return ByClass(
        predictions.classes, items, deferred, share(predictions.small_correct), joint, order[items[order] > 0]
    )


def class_table(predictions: Predictions, threshold: float) -> dict[str, Any] | None:
    """A row a class, at most MOST_ROWS; None where the classes are not known."""
    table = by_class(predictions, threshold)
    if table is None:
        return None
    head = ["class", "items", "deferred", "small right", *([] if table.joint is None else ["cascade right"])]
    columns = [table.deferred, table.small, *([] if table.joint is None else [table.joint])]
    rows = [
        [one_line(table.names[index], 80), f"{table.items[index]:,}", *(percent(column[index]) for column in columns)]
        for index in table.order[:MOST_ROWS]
    ]
    return {"head": head, "rows": rows, "count": len(table.order), "left_out": max(0, len(table.order) - MOST_ROWS)}


def confusion_table(predictions: Predictions, threshold: float) -> dict[str, Any] | None:
    """The pairs of classes that are taken for one another most often."""
    classes, label, prediction = predictions.classes, predictions.label, predictions.prediction
    if classes is None or label is None or prediction is None:
        return None
    wrong = np.flatnonzero(label != prediction)
    pairs, inverse, count = np.unique(
        label[wrong] * len(classes) + prediction[wrong], return_inverse=True, return_counts=True
    )
    deferred = np.bincount(inverse, deferred_by(predictions.confidence[wrong], threshold), len(pairs))
    first = np.argsort(-count, kind="stable")[:CONFUSIONS]
    rows = [
        [
            *(one_line(classes[index], 60) for index in divmod(int(pairs[k]), len(classes))),
            f"{count[k]:,}",
            percent(deferred[k] / count[k], 0),
        ]
        for k in first
    ]
    return {"head": ["expected", "predicted", "times", "deferred"], "rows": rows}
