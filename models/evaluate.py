"""Measure a cascade on the test split: what each model gets right, and what the gate makes of it.

    gatekeeper evaluate BUNDLE --large LARGE --data clinc150 --data-dir DIR --output DIR

Writes predictions.parquet (one row a test item) and metrics.json. endpoint.py does the same over HTTP.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from models import metrics
from models.bundle import CARD, Bundle, rewrite_bundle
from models.calibrate import correctness
from models.classifier import TextClassifier, load_classifier, predict_all
from models.confidence import SCORES
from models.datasets import TextDataset
from models.errors import InputError

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Evaluation:
    """Rows of the test split, each (N,), and the numbers drawn from them."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    small_correct: NDArray[np.float64]
    large_correct: NDArray[np.float64] | None
    numbers: dict[str, Any]


def evaluate(bundle: Bundle, data: TextDataset, large: Bundle | None, output: Path | None, seed: int = 0) -> Evaluation:
    """Predict the test split with both models; write the files if `output` is given."""
    if set(data.labels) != set(bundle.manifest.labels):
        raise InputError(f"the labels of {data.name} are not those of the bundle {bundle.manifest.name}")
    small = load_classifier(bundle)
    index = {label: position for position, label in enumerate(bundle.manifest.labels)}
    expected = np.array([index[data.labels[label]] for label in data.test.labels])
    predicted, confidence, probabilities = predict_all(small, data.test.texts)
    small_correct = (predicted == expected).astype(np.float64)
    large_correct = None
    if large is not None:
        large_correct = correctness(load_classifier(large), data.labels, data.test.texts, np.array(data.test.labels))
    threshold = bundle.manifest.default_threshold
    numbers = _numbers(confidence, small_correct, large_correct, threshold, seed)
    numbers["sentences_per_second"] = sentences_per_second(small, data.test.texts)
    numbers["out_of_scope"] = _out_of_scope(small, data, threshold)
    if output is not None:
        logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-45)))
        scores = {
            name: score.function(logits).numpy() for name, score in SCORES.items() if name != "energy"
        }  # the energy needs the logits' own scale, which probabilities have lost
        _write(output, numbers, predicted, confidence, small_correct, large_correct, scores)
    return Evaluation(predicted, confidence, small_correct, large_correct, numbers)


def _numbers(
    confidence: NDArray[np.float64],
    small_correct: NDArray[np.float64],
    large_correct: NDArray[np.float64] | None,
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    measures = {
        "a_S": lambda rows: float(small_correct[rows].mean()),
        "s_o": lambda rows: metrics.overlap(confidence[rows], small_correct[rows]),
        "auroc": lambda rows: metrics.auroc(confidence[rows], small_correct[rows]),
        "deferral_ratio": lambda rows: float((confidence[rows] < threshold).mean()),
    }
    if large_correct is not None:

        def cascade(function: Any, rows: NDArray[np.int64]) -> float:
            return float(function(confidence[rows], small_correct[rows], large_correct[rows]))

        measures["a_L"] = lambda rows: float(large_correct[rows].mean())
        measures["s_d"] = partial(cascade, metrics.deferral_performance)
        measures["joint_accuracy"] = partial(cascade, partial(metrics.joint_accuracy, threshold))
        for ratio in RATIOS:
            measures[f"joint_accuracy_at_{ratio:g}"] = partial(cascade, partial(metrics.joint_accuracy_at_ratio, ratio))
    return {"rows": len(confidence), "threshold": threshold} | metrics.bootstrap(measures, len(confidence), seed=seed)


def _out_of_scope(small: TextClassifier, data: TextDataset, threshold: float) -> dict[str, float | int] | None:
    if not data.out_of_scope:
        return None
    _, confidence, _ = predict_all(small, data.out_of_scope)
    return {"rows": len(confidence), "deferral_ratio": float((confidence < threshold).mean())}


def sentences_per_second(small: TextClassifier, texts: tuple[str, ...], batch_size: int = 32) -> float:
    """Median throughput in batches, tokenising included, on one thread; a figure to print, not to test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for start in range(0, min(len(texts), 100 * batch_size), batch_size):
            began = time.perf_counter()
            small.predict(texts[start : start + batch_size])
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return round(batch_size / float(np.median(seconds)), 1)


def _write(
    output: Path,
    numbers: dict[str, Any],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    small_correct: NDArray[np.float64],
    large_correct: NDArray[np.float64] | None,
    scores: dict[str, NDArray[np.float64]],
) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        table = {"confidence": confidence, "small_correct": small_correct, "prediction": predicted}
        if large_correct is not None:
            table["large_correct"] = large_correct
        pq.write_table(pa.table(table | scores), output / "predictions.parquet")
        (output / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error}") from error


def write_card(bundle: Bundle, data: TextDataset, numbers: dict[str, Any], large: Bundle | None) -> Bundle:
    """Put the measured numbers into the bundle's manifest and model card. The gate digest stays."""
    headline = {"threshold": numbers["threshold"]} | {
        name: round(entry["value"], 6)
        for name, entry in numbers.items()
        if isinstance(entry, dict) and entry.get("value") is not None
    }
    if numbers["out_of_scope"]:
        headline["out_of_scope_deferral_ratio"] = round(numbers["out_of_scope"]["deferral_ratio"], 6)
    card = _card(bundle, data, headline, large)
    return rewrite_bundle(bundle, {"metrics": headline}, lambda path: _write_text(path / CARD, card))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _card(bundle: Bundle, data: TextDataset, headline: dict[str, float], large: Bundle | None) -> str:
    manifest = bundle.manifest
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in headline.items())
    beside = f", with `{large.manifest.name}` as the large model" if large else ""
    base = f"\nA linear head on the frozen {manifest.base.hub_id or manifest.base.package}.\n" if manifest.base else ""
    return f"""# {manifest.name}

{manifest.task}, {len(manifest.labels)} labels, runtime `{manifest.runtime}`, loss {manifest.loss}\
{f" (alpha {manifest.alpha:g})" if manifest.alpha is not None else ""}, seed {manifest.seed}.
{base}
Data: {data.name}, {data.licence}; trained on its train split, calibrated on half of its validation split.

Measured on the {len(data.test)} in-scope test items of {data.name} at the threshold \
{headline["threshold"]:g} (temperature {manifest.temperature:g}){beside}:

| what | value |
| --- | --- |
{rows}

A query outside these {len(manifest.labels)} labels still gets one of them: a low confidence is the only sign.
"""
