"""The mistakes that a report shows one by one, texts as a line and images as thumbnails."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from models.evaluation.report.wording import one_line
from models.numbers.predictions import Predictions

MISTAKES, THUMBNAIL = 15, 64


def mistake_tables(predictions: Predictions, threshold: float) -> dict[str, Any]:
    """The wrong answers that say most: those the gate lets through with confidence, and those it nearly knows."""
    wrong = np.flatnonzero(predictions.small_correct < 0.5)
    if predictions.items is None:
        return {"reason": "The items themselves are not part of these predictions, so none can be shown.", "tables": []}
    if not len(wrong):
        return {"reason": "The small model makes no mistake on these items.", "tables": []}
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]
    confident = (
        "The small model is sure and wrong: a label to check, two classes that are hard to tell apart, or an item "
    )
    confident += "unlike those of training."
    unsure = "The small model is wrong and knows it: what the gate is for."
    tables = [("The most confident", confident, wrong[:MISTAKES])]
    if len(wrong) > MISTAKES:
        tables.append(("The least confident", unsure, wrong[: -MISTAKES - 1 : -1]))
    head = ["item", *(["expected", "predicted"] if _named(predictions) else []), "confidence", "large model", "gate"]
    return {
        "reason": "",
        "head": head,
        "tables": [
            {
                "title": f"{title} of {len(wrong):,} mistakes" if len(tables) > 1 else f"All mistakes: {len(wrong)}",
                "meaning": meaning,
                "rows": [_mistake(predictions, int(row), threshold) for row in rows],
            }
            for title, meaning, rows in tables
        ],
    }


def _named(predictions: Predictions) -> bool:
    if predictions.answers is not None:
        return True
    return predictions.classes is not None and predictions.label is not None and predictions.prediction is not None


def _mistake(predictions: Predictions, row: int, threshold: float) -> dict[str, Any]:
    assert predictions.items is not None
    item, expected, predicted = predictions.items[row], None, None
    if predictions.classes is not None and predictions.label is not None and predictions.prediction is not None:
        expected = one_line(predictions.classes[predictions.label[row]], 80)
        predicted = one_line(predictions.classes[predictions.prediction[row]], 80)
    if predictions.answers is not None:
        expected = one_line(predictions.answers.reference[row], 120)
        predicted = one_line(predictions.answers.answer[row], 120)
    large = None if predictions.large_correct is None else float(predictions.large_correct[row])
    words = {None: "unknown", 1.0: "right", 0.0: "wrong"}
    return {
        "position": row + 1,
        "text": one_line(item, 200) if isinstance(item, str) else None,
        "image": None if isinstance(item, str) else _thumbnail(item),
        "expected": expected,
        "predicted": predicted,
        "confidence": f"{predictions.confidence[row]:#.4g}",
        "large": words.get(large, f"{large:.2f}" if large is not None else ""),
        "large_class": "yes" if large == 1.0 else "no" if large == 0.0 else "",
        "decision": "accepted" if predictions.confidence[row] >= threshold else "deferred",
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    """An image, (H, W) grey or (H, W, 3), as a data URI; the page enlarges a small one without smoothing."""
    image, file = Pillow.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
