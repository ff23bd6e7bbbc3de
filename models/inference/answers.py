"""A classifier's answers to the items of a split, checked: NaN must reach neither a threshold nor a file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.errors import InputError
from models.inference.classifier import Classifier, Outputs, predict_all
from models.printing import shown
from models.progress import Waiting
from models.threads import threads_in_words


def answers(classifier: Classifier, name: str, items: Sequence[Any], split: str) -> Outputs:
    """The outputs for every item. name and split: what progress and errors call the model and the items.

    Raises InputError that names the first item without a finite confidence.
    """
    with Waiting(f"{name} on {len(items):,} {split} items, on {threads_in_words()}", len(items)) as progress:
        outputs = predict_all(classifier, items, progress=progress)
    check_finite(outputs, name, items, split)
    return outputs


def check_finite(outputs: Outputs, name: str, items: Sequence[Any], split: str) -> None:
    """Raise InputError where the model gave NaN, or a confidence that is not finite."""
    bad = np.isnan(outputs.logits).any(axis=1) | ~np.isfinite(outputs.confidence)
    if not bad.any():
        return
    first = int(bad.argmax())
    others = f" and {int(bad.sum()) - 1:,} more" if bad.sum() > 1 else ""
    raise InputError(
        f"{name} gives no finite number for {split} item {first + 1} of {len(bad):,} ({shown(items, first)}){others}: "
        "its weights or what they make of this input are NaN or infinite; nothing was written"
    )
