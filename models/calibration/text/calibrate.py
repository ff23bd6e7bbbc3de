"""Calibrate a bundle that writes text: the learned rule, the choice of a score, and the calibration data.

    gatekeeper calibrate BUNDLE --data questions.jsonl --large oracle

Thresholds and certificates are chosen from the calibration data as for labels (calibration/thresholds.py, certify.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import CALIBRATION, SELECTION, Bundle, Calibration, rewrite_bundle, write_calibration
from models.calibration.text.drafts import bundle_writer
from models.calibration.text.large import TextLargeAnswers, reference_of
from models.calibration.text.rule import fit_rule
from models.data.prompts.examples import Example, PromptDataset
from models.errors import InputError
from models.generation import TEXT_SCORE_RANGES
from models.inference.generation.text_model import Draft
from models.inference.generation.traces import Floats, scores_of
from models.numbers.metrics import auroc
from models.scoring.scorer import Scorer

FILES = {"select": SELECTION, "calibrate": CALIBRATION}
OF_IMAGES = "image-text-to-text"


def calibrate_text(
    bundle: Bundle,
    data: PromptDataset,
    large: TextLargeAnswers | None,
    scorer: Scorer,
    work: Path,
    say: Callable[[str], None],
    score: str | None = None,
) -> Bundle:
    """Write the drafts, fit the rule on `select`, write calibration.parquet and selection.parquet.

    score: of TEXT_SCORE_RANGES, which the gate compares from now on; None: the bundle's. With another one the gate
    digest changes. A former certificate goes. Everything is computed before anything is written. Raises InputError.
    """
    check_text_task(bundle, data)
    if score is not None and score not in TEXT_SCORE_RANGES:
        raise InputError(f"--score {score}: there is {', '.join(TEXT_SCORE_RANGES)}")
    writer, chosen = bundle_writer(bundle, work), score or bundle.manifest.score
    drafts = {split: writer.drafts(getattr(data, split), split, data.content_hash) for split in FILES}
    right = {split: correctness(drafts[split], getattr(data, split), scorer) for split in FILES}
    large_right = {split: None if large is None else large.correct(data, split, scorer) for split in FILES}
    generation = bundle.manifest.generation
    assert generation is not None  # of a bundle that writes text
    rule = fit_rule([draft.trace for draft in drafts["select"]], right["select"])
    if chosen == "quantile_rule" and rule is None:
        raise InputError("quantile_rule cannot be learned: the select split's answers are all right, or all wrong")
    scores = {split: scores_of([draft.trace for draft in drafts[split]], rule) for split in FILES}
    say(_compared(scores["select"], right["select"], chosen))
    files = {
        file: Calibration(scores[split][chosen], right[split], large_right[split]) for split, file in FILES.items()
    }

    def write(directory: Path) -> None:
        for file, rows in files.items():
            write_calibration(directory / file, rows)

    changes: dict[str, Any] = {
        "score": chosen,
        "generation": generation.model_copy(update={"rule": rule}),
        "certificate": None,
        "metrics": {},
        "calibrated_on": data.content_hash,
        "calibrated_with": large and large.digest,
        "training": bundle.manifest.training | {"scorer": scorer.name},
    }
    if chosen != bundle.manifest.score:  # another score has another range: half of the items are deferred for now
        changes["default_threshold"] = float(np.median(scores["calibrate"][chosen]))
    return rewrite_bundle(bundle, changes, write)


def check_text_task(bundle: Bundle, data: PromptDataset) -> None:
    """Raise InputError where prompts with images would meet a model of texts, or the other way round."""
    if (bundle.manifest.task == OF_IMAGES) != (data.task == OF_IMAGES):
        raise InputError(f"{bundle.manifest.name} does {bundle.manifest.task}, and {data.name} is {data.task}")


def correctness(drafts: Sequence[Draft], examples: Sequence[Example], scorer: Scorer) -> Floats:
    """How right each draft is, (N,) in [0, 1]; one that was cut before its end is wrong. Raises InputError."""
    found = scorer([draft.answer for draft in drafts], [reference_of(example) for example in examples])
    return np.where([draft.trace.ended for draft in drafts], found, 0.0)


def _compared(scores: dict[str, Floats], right: Floats, chosen: str) -> str:
    """One line: how well each score tells right from wrong on the select split."""
    parts = []
    for name, values in scores.items():
        area = auroc(values, (right >= 0.5).astype(np.float64))
        parts.append(f"{name} {'-' if np.isnan(area) else f'{area:.4f}'}{' (the gate)' if name == chosen else ''}")
    return f"right on select: {right.mean():.4f}; AUROC of {', '.join(parts)}"
