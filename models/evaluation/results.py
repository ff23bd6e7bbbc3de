"""What an evaluation leaves: predictions.parquet (one row a test item), metrics.json, report.html and plots/.

    gatekeeper evaluate --predictions table.csv --threshold 0.8 --output DIR

scores a cascade from elsewhere by its table; neither torch nor a model is loaded for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluation.report.page import write_report
from models.numbers.metrics import measure
from models.numbers.predictions import Predictions, write_predictions
from models.replacing import write_whole_text, writing

DEFAULT_RATIO = 0.2  # a table from elsewhere has no threshold: this share of it is deferred then


@dataclass(frozen=True)
class Evaluation:
    """The rows of the test split, and the numbers drawn from them (metrics.json)."""

    predictions: Predictions
    numbers: dict[str, Any]


def write_evaluation(output: Path, evaluation: Evaluation, about: dict[str, str]) -> None:
    """Write predictions.parquet, metrics.json, report.html and plots/. about: facts for the report's head."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_predictions(output / "predictions.parquet", evaluation.predictions)
        numbers = json.dumps(evaluation.numbers, indent=2, allow_nan=False)
        write_whole_text(output / "metrics.json", numbers + "\n")
    write_report(output, evaluation.predictions, evaluation.numbers, about)


def evaluate_table(predictions: Predictions, threshold: float | None, seed: int) -> Evaluation:
    """Measure a table at a threshold; without one, at that which defers a fifth of it."""
    if threshold is None:
        threshold = float(np.quantile(predictions.confidence, DEFAULT_RATIO, method="inverted_cdf"))
    return Evaluation(predictions, measure(predictions, threshold, seed))


def about_table(name: str, evaluation: Evaluation, seed: int) -> dict[str, str]:
    """What a report says of a table from elsewhere."""
    return {
        "Table": f"{name}, {evaluation.numbers['rows']:,} rows",
        "Gate": f"threshold {evaluation.numbers['threshold']:g}",
        "Bootstrap": f"200 resamples of the rows, seed {seed}",
    }
