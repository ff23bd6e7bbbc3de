"""Made-up cascades for the tests of the numbers: what each model got right, and how sure the small one was."""

import numpy as np

from models.numbers.predictions import Predictions


def cascade(count: int = 1_000, seed: int = 0, decimals: int | None = None, graded: bool = False) -> Predictions:
    """A small model that is right with probability g, a large one that is right in 93 %, with or without ties."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(5.0, 1.5, count)
    small = (generator.uniform(size=count) < confidence).astype(np.float64)
    large = (generator.uniform(size=count) < 0.93).astype(np.float64)
    if graded:
        small, large = (0.6 * values + 0.4 * generator.uniform(size=count) for values in (small, large))
    if decimals is not None:
        confidence = confidence.round(decimals)
    return Predictions(confidence, small, large, {"max_softmax": confidence, "energy": 9.0 * confidence**3})


def columns(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert predictions.large_correct is not None
    return predictions.confidence, predictions.small_correct, predictions.large_correct


def taken(predictions: Predictions, rows: np.ndarray) -> Predictions:
    scores = {name: values[rows] for name, values in predictions.scores.items()}
    return Predictions(*(values[rows] for values in columns(predictions)), scores)
