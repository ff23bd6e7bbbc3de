"""Measure a cascade on the test split: what each model gets right, and what the gate makes of it.

    gatekeeper evaluate BUNDLE --large LARGE --data clinc150 --data-dir DIR --output DIR

results.py writes what comes of it; endpoint.py does the same over HTTP.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import CALIBRATION, CARD, Bundle, Manifest, rewrite_bundle
from models.calibration.calibrate import check_task, expected_classes
from models.calibration.large_answers import LargeAnswers
from models.data.datasets import LabelledDataset
from models.data.prompts.examples import PromptDataset
from models.evaluation.results import Evaluation
from models.inference.answers import answers
from models.inference.classifier import Classifier, load_classifier
from models.numbers.metrics import measure
from models.numbers.predictions import Predictions
from models.operating_points import deferral_ratio
from models.progress import Waiting


def evaluate(bundle: Bundle, data: LabelledDataset, large: LargeAnswers | None, seed: int = 0) -> Evaluation:
    """Predict the test split with both models and measure. Raises InputError, also for a model that gives NaN."""
    check_task(bundle, data)
    expected = expected_classes(bundle, data, data.test)
    if large is not None:
        large.check(data, ("test",))
    small = load_classifier(bundle)
    outputs = answers(small, bundle.manifest.name, data.test.inputs, "test")
    predictions = Predictions(
        confidence=outputs.confidence,
        small_correct=(outputs.label == expected).astype(np.float64),
        large_correct=None if large is None else large.correct(data, "test"),
        scores=small.scores(outputs.logits),
        classes=bundle.manifest.labels,
        label=expected,
        prediction=outputs.label,
        items=data.test.inputs,
    )
    threshold = bundle.manifest.default_threshold
    with Waiting(f"measuring {len(expected):,} items, with 200 resamples"):
        numbers = measure(predictions, threshold, seed)
    numbers["items_per_second"] = items_per_second(small, data.test.inputs)
    numbers["certificate"] = bundle.manifest.certificate
    numbers["out_of_scope"] = _out_of_scope(bundle, small, data, threshold)
    return Evaluation(predictions, numbers)


def _out_of_scope(
    bundle: Bundle, small: Classifier, data: LabelledDataset, threshold: float
) -> dict[str, float | int] | None:
    if not data.out_of_scope:
        return None
    confidence = answers(small, bundle.manifest.name, data.out_of_scope, "out-of-scope").confidence
    return {"rows": len(confidence), "deferral_ratio": deferral_ratio(confidence, threshold)}


def items_per_second(small: Classifier, items: Sequence[Any], batch_size: int = 32) -> float:
    """Median throughput in batches, tokenising included, on one thread; a figure to print, not to test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for start in range(0, min(len(items), 100 * batch_size), batch_size):
            batch = items[start : start + batch_size]
            began = time.perf_counter()
            small.predict(batch)
            seconds.append((time.perf_counter() - began) / len(batch))
    finally:
        torch.set_num_threads(threads)
    return round(1 / float(np.median(seconds)), 1)


def about_bundle(bundle: Bundle, data: LabelledDataset, large: LargeAnswers | None, seed: int) -> dict[str, str]:
    """What a report says of where its numbers come from."""
    manifest = bundle.manifest
    return {
        "Small model": f"{manifest.name} ({made(manifest)})",
        "Large model": large.name if large else "unknown",
        "Data": f"{data.name}, test split of {len(data.test):,} items; {data.licence}",
        "Gate": f"{manifest.score} at temperature {manifest.temperature:g}, threshold {manifest.default_threshold:g}",
        "Certificate": certified(manifest.certificate),
        "Gate digest": bundle.gate_digest,
        "Bootstrap": f"200 resamples of the items, seed {seed}",
    }


def made(manifest: Manifest) -> str:
    """How its weights came about."""
    if manifest.loss is None:
        return "fine-tuned elsewhere" if "imported_from" in manifest.training else "of unknown origin"
    alpha = "" if manifest.alpha is None else f" (alpha {manifest.alpha:g})"
    return f"loss {manifest.loss}{alpha}, seed {manifest.seed}"


def certified(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "none: the threshold was not certified"
    return (
        f"{certificate['measure']} >= {certificate['target']:g} with certainty {certificate['certainty']:g}, "
        f"from {certificate['items']:,} calibration items"
    )


def write_card(
    bundle: Bundle, data: LabelledDataset | PromptDataset, numbers: dict[str, Any], large: str | None
) -> Bundle:
    """Put the measured numbers into the bundle's manifest and model card. large: its name. The gate digest stays."""
    headline = {"threshold": numbers["threshold"]} | {
        name: round(entry["value"], 6)
        for name, entry in numbers.items()
        if isinstance(entry, dict) and entry.get("value") is not None
    }
    if numbers.get("out_of_scope"):
        headline["out_of_scope_deferral_ratio"] = round(numbers["out_of_scope"]["deferral_ratio"], 6)
    card = _card(bundle, data, headline, large)

    def write(directory: Path) -> None:
        (directory / CARD).write_text(card, encoding="utf-8")

    return rewrite_bundle(bundle, {"metrics": headline}, write)


def _card(bundle: Bundle, data: LabelledDataset | PromptDataset, headline: dict[str, float], large: str | None) -> str:
    manifest = bundle.manifest
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in headline.items())
    beside = f", with `{large}` as the large model" if large else ""
    what = "LoRA adapter" if manifest.writes_text else "linear head"
    base = manifest.base
    stands = f"\nA {what} on the frozen {base.fetch or base.hub_id or base.package}.\n" if base else ""
    if isinstance(data, PromptDataset):
        kind, items = f"score {manifest.score}", f"{len(data.test)} test prompts"
        warning = "Every prompt gets an answer: a low confidence is the only sign that it may be wrong."
    else:
        kind, scope = f"{len(manifest.labels)} labels", "in-scope " if data.out_of_scope else ""
        items = f"{len(data.test)} {scope}test items"
        outside = f"An input outside these {len(manifest.labels)} labels still gets one of them"
        warning = f"{outside}: a low confidence is the only sign."
    calibrated = "calibrated" if CALIBRATION in manifest.files else "not calibrated"
    return f"""# {manifest.name}

{manifest.task}, {kind}, runtime `{manifest.runtime}`, {made(manifest)}.
{stands}
Trained on {manifest.dataset or "unknown data"}; {calibrated}. \
Data of this measurement: {data.name}, {data.licence}.

Measured on the {items} of {data.name} at the threshold \
{headline["threshold"]:g} (temperature {manifest.temperature:g}){beside}:

| what | value |
| --- | --- |
{rows}

{warning}
"""
