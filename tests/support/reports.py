"""The predictions of a small cascade, and the report of them."""

from pathlib import Path

import numpy as np

from models.evaluation.report.page import write_report
from models.numbers.metrics import measure
from models.numbers.predictions import Predictions

HOSTILE = "</script><img src=x onerror=alert(1)>"
ABOUT = {"Small model": "birds-small", "Data": "birds, test split; CC0", "Command": "gatekeeper evaluate runs/birds"}
FOREIGN = (HOSTILE, "a$b$_{c}", "W" * 300, "مرحبا بالعالم", "日本語" * 20, "👩‍👩‍👧 \u202eleft\x00\ud800")


def birds(rows: int = 400, names: tuple[str, ...] = ("wren", "robin", "crow_or_raven")) -> Predictions:
    """A small model that is right in about four of five, a large one in nine of ten."""
    generator = np.random.default_rng(0)
    confidence = generator.beta(5.0, 1.5, rows)
    right = generator.uniform(size=rows) < confidence
    label = generator.integers(0, len(names), rows)
    return Predictions(
        confidence=confidence,
        small_correct=right.astype(np.float64),
        large_correct=(generator.uniform(size=rows) < 0.9).astype(np.float64),
        scores={"max_softmax": confidence, "margin": confidence**2},
        classes=names,
        label=label,
        prediction=np.where(right, label, (label + 1) % len(names)),
        items=tuple(f"what sings number {row}" for row in range(rows)),
    )


def report(directory: Path, predictions: Predictions, threshold: float = 0.7, about: dict[str, str] = ABOUT) -> str:
    write_report(directory, predictions, measure(predictions, threshold, resamples=20), about)
    return (directory / "report.html").read_text(encoding="utf-8")
