"""What every peer of the accept path serves: this repository's bundle through this repository's classifier, so that the
tokeniser, the weights and the confidence are the same everywhere and only the server differs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from models.bundle import load_bundle
from models.inference.classifier import load_classifier

ROOT = Path(__file__).resolve().parent.parent.parent.parent
BUNDLE = ROOT / "models" / "bundles" / "clinc150-small"

Answer = dict[str, Any]


def load_answers() -> Callable[[Sequence[str]], list[Answer]]:
    """A batch of texts -> one answer a text, with the fields and so about the bytes of the edge's own answer."""
    torch.set_num_threads(1)  # one core, as the edge has
    bundle = load_bundle(BUNDLE)
    classifier = load_classifier(bundle)
    name, threshold = bundle.manifest.name, bundle.manifest.default_threshold

    def answers(texts: Sequence[str]) -> list[Answer]:
        found = []
        for prediction in classifier.predict(texts):
            label, accepted = classifier.labels[prediction.label], prediction.confidence >= threshold
            output = {
                "label": label,
                "score": prediction.score,
                "confidence": prediction.confidence,
                "decision": "accepted" if accepted else "degraded",
                "answered_by": "small",
                "reason": None if accepted else "remote_unavailable",
                "small": {"label": label, "score": prediction.score},
            }
            found.append({"model": name, "policy_version": 1, "threshold": threshold, "outputs": [output]})
        return found

    return answers
