"""Inference for text and image classifiers: a bundle in, predictions out. One thread calls it, one batch at a time.

The edge, the large-model service and the job all predict through this file, so that a confidence is the same number
everywhere. An engine (engines/) gives the logits; what follows from them is computed here, whichever engine it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.errors import BundleError
from models.inference.confidence import SCORES, rounded
from models.inference.engines.engine import Engine, Logits
from models.inference.engines.registry import load_engine


class Prediction(NamedTuple):
    """What a classifier says of one item. `probabilities` (C,) is a view into its batch."""

    label: int
    score: float
    confidence: float
    probabilities: NDArray[np.float32]

    def top(self, count: int) -> list[tuple[int, float]]:
        """The `count` most probable labels with their probabilities, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(label), float(self.probabilities[label])) for label in best]


@dataclass(frozen=True)
class Classifier:
    """An engine's logits with the bundle's temperature and score on top. Items are texts, or uint8 images."""

    labels: tuple[str, ...]
    engine: Engine
    temperature: float
    score: str

    @property
    def prepare(self) -> Callable[[Any], Any] | None:
        """The part of the work on an item that any thread may do before `predict`; None: there is none."""
        return self.engine.prepare

    def predict(self, items: Sequence[Any]) -> list[Prediction]:
        """Predictions in order. Confidences are what the gate compares with its threshold."""
        with torch.inference_mode():
            scaled = torch.from_numpy(self.engine.logits(items)) / self.temperature
            probabilities = torch.softmax(scaled, dim=-1)
            scores, indices = probabilities.max(dim=-1)
            # max_softmax is the score that is there already; computing it again costs 20 us a batch
            confidences = self._settled(scores if self.score == "max_softmax" else SCORES[self.score](scaled))
            rows = probabilities.numpy()
        return [
            Prediction(label, score, confidence, row)
            for label, score, confidence, row in zip(
                indices.tolist(), scores.tolist(), confidences.tolist(), rows, strict=True
            )
        ]

    def scores(self, logits: Logits, temperature: float | None = None) -> dict[str, NDArray[np.float64]]:
        """Every score by name, each (N,), as the gate would see it, from logits (N, C) before the temperature.

        temperature: instead of the bundle's.
        """
        scaled = self._scaled(logits, temperature)
        return {name: self._settled(score(scaled)).double().numpy() for name, score in SCORES.items()}

    def most_probable(self, logits: Logits) -> NDArray[np.int64]:
        """The label of each row of logits (N, C), (N,): the one that `predict` gives."""
        label: NDArray[np.int64] = torch.softmax(self._scaled(logits), dim=-1).argmax(dim=-1).numpy()
        return label

    def _scaled(self, logits: Logits, temperature: float | None = None) -> Tensor:
        return torch.from_numpy(logits) / (self.temperature if temperature is None else temperature)

    def _settled(self, confidences: Tensor) -> Tensor:
        return confidences if self.engine.batch_free else rounded(confidences)


def load_classifier(bundle: Bundle) -> Classifier:
    """The classifier of a bundle, on the CPU, in evaluation mode. Raises BundleError with the file's name."""
    manifest = bundle.manifest
    if manifest.writes_text:
        raise BundleError(f"{bundle.directory}: {manifest.name} does {manifest.task}, and a classifier is needed here")
    try:
        classifier = Classifier(manifest.labels, load_engine(bundle), manifest.temperature, manifest.score)
        _try_out(classifier)
    except BundleError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise types of their own
        why = str(error) or type(error).__name__
        raise BundleError(f"{bundle.directory}: the model cannot be loaded ({why})") from error
    return classifier


def _try_out(classifier: Classifier) -> None:
    """Files can each be whole and not fit together, such as an image size that the weights do not take."""
    item: Any = "a word or two, and \N{SNOWMAN}, which few vocabularies have"
    if classifier.prepare is not None:
        item = classifier.prepare(np.zeros((32, 32), dtype=np.uint8))
    classifier.predict([item])


class Outputs(NamedTuple):
    """What a classifier says of N items: label (N,), confidence (N,), and logits (N, C) before the temperature."""

    label: NDArray[np.int64]
    confidence: NDArray[np.float64]
    logits: NDArray[np.float32]


def predict_all(
    classifier: Classifier,
    items: Sequence[Any],
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda _: None,
) -> Outputs:
    """Outputs in the order of the items; long texts are batched together. progress: told how many were done."""
    order = np.arange(len(items))
    if len(items) and isinstance(items[0], str):
        order = np.argsort([len(item) for item in items], kind="stable")
    label = np.zeros(len(items), dtype=np.int64)
    logits = np.zeros((len(items), len(classifier.labels)), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found = classifier.engine.logits([items[position] for position in chosen])
        logits[chosen], label[chosen] = found, classifier.most_probable(found)
        progress(len(chosen))
    return Outputs(label, classifier.scores(logits)[classifier.score], logits)
