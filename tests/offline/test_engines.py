"""Engines: who runs which bundle, NumPy at their boundary, and one that is not made of torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import tiny_images

from models.bundle import Bundle, load_bundle
from models.errors import BundleError
from models.inference.classifier import Classifier, predict_all
from models.inference.confidence import SCORES
from models.inference.engines import folded, head, registry, transformers
from models.inference.engines.engine import Engine
from models.inference.engines.registry import ENGINES, load_engine

PACKAGED = {
    "clinc150-small": folded,
    "clinc150-large": head,
    "fashion-mnist-small": folded,
    "fashion-mnist-large": folded,
}


@pytest.mark.parametrize("name", PACKAGED)
def test_each_packaged_bundle_has_its_engine_and_gives_numpy(bundles: Path, name: str) -> None:
    bundle = load_bundle(bundles / name)
    assert next(kind for kind in ENGINES if kind.takes(bundle)) is PACKAGED[name]
    engine = load_engine(bundle)
    texts = bundle.manifest.task == "text-classification"
    items: list[Any] = ["what is my balance", ""] if texts else [tiny_images(0, 1)[0], tiny_images(7, 1)[0]]
    logits = engine.logits(items)
    assert type(logits) is np.ndarray
    assert logits.dtype == np.float32
    assert logits.shape == (2, len(bundle.manifest.labels))
    assert engine.batch_free is (PACKAGED[name] is folded)
    assert (engine.prepare is None) is texts


def test_what_is_no_net_of_ours_goes_to_transformers(bundles: Path, tmp_path: Path) -> None:
    bundle = load_bundle(bundles / "clinc150-small")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    other = Bundle(tmp_path, bundle.manifest, bundle.gate_digest)
    assert [kind for kind in ENGINES if kind.takes(other)] == [transformers]


def test_without_an_engine_the_bundle_is_named(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ENGINES", (transformers,))
    with pytest.raises(BundleError, match="clinc150-large: no engine runs head for text-classification"):
        load_engine(load_bundle(bundles / "clinc150-large"))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("batch_free", [True, False])
def test_an_engine_of_numpy_alone_is_enough(score: str, batch_free: bool) -> None:
    """Confidences follow from its logits: alike for one item, for a batch and offline, rounded where it says so."""

    def logits(items: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array([[len(item), 2.0, item.count("a")] for item in items], dtype=np.float32)

    classifier = Classifier(("long", "plain", "a"), Engine(logits, batch_free=batch_free), 1.7, score)
    items = ["banana", "a", "", "aaa", "sesquipedalian"]
    together = classifier.predict(items)
    assert [prediction.label for prediction in together] == [0, 1, 1, 0, 0]
    alone = [classifier.predict([item])[0].confidence for item in items]
    outputs = predict_all(classifier, items, batch_size=2)
    assert alone == [prediction.confidence for prediction in together] == outputs.confidence.tolist()
    assert outputs.label.tolist() == [prediction.label for prediction in together]
    assert outputs.logits.tolist() == logits(items).tolist()
    if not batch_free:
        assert all((np.frexp(value)[0] * 2**16).is_integer() for value in alone)
