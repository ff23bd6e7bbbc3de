"""Models of many kinds: tuned, adapted by LoRA, imported, and the answers of what comes of it, alone and in a batch."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from support.processes import spawn_edge, stopping
from support.tiny import tiny_images, write_csv, write_tiny_csv, write_tiny_images
from support.tiny_models import KINDS, LAST, write_model

from models.bundle import load_bundle, rewrite_bundle
from models.data.datasets import LabelledDataset, load_dataset
from models.errors import InputError
from models.inference.classifier import load_classifier
from models.training.adapter import trained_whole
from models.training.importing import import_model
from models.training.model import Shape, open_backbone
from models.training.pretrained import longest_text, open_model, read_config
from service.cli import main

TEXTS = ["rain", "what is with my savings " * 30, "</s>", "a </s> b [SEP] c <s>", "[SEP]", "<pad><pad>", "", " ", "🐟"]
NO_ADAPTER = {"resnet", "mobilenet-v2"}
QUICK = {"distilbert", "llama", "bart"}  # the others take a minute
MOST_SLOWLY = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    return load_dataset(str(write_tiny_csv(tmp_path_factory.mktemp("texts") / "rows.csv")), None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    return load_dataset(str(write_tiny_images(tmp_path_factory.mktemp("images"))), None)


def check_answers(directory: Path, text: bool) -> None:
    """The bundle answers each of the oddest inputs as it answers it beside the others."""
    classifier = load_classifier(load_bundle(directory))
    items: list[Any] = [tiny_images(label, 1, size)[0] for label, size in ((0, 28), (7, 60))]
    items += [np.repeat(tiny_images(3, 1)[0][..., None], 3, axis=-1)]
    items = list(TEXTS) if text else items
    together = classifier.predict(items)
    for item, prediction in zip(items, together, strict=True):
        (alone,) = classifier.predict([item])
        np.testing.assert_allclose(alone.probabilities, prediction.probabilities, atol=1e-5)
    assert all(0 < prediction.confidence <= 1 for prediction in together)


@pytest.mark.parametrize("kind", MOST_SLOWLY)
def test_a_fine_tuned_one_is_imported_and_answers(tmp_path: Path, kind: str) -> None:
    source = write_model(kind, tmp_path / "tuned", ["a", "b", "c"])
    bundle = import_model(str(source), tmp_path / "bundle")
    assert bundle.manifest.labels == ("a", "b", "c")
    check_answers(bundle.directory, KINDS[kind].tokenizer is not None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOST_SLOWLY)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_base_model_is_tuned_and_answers(tmp_path: Path, kind: str, rank: int) -> None:
    text = KINDS[kind].tokenizer is not None
    data = write_tiny_csv(tmp_path / "rows.csv") if text else write_tiny_images(tmp_path / "images")
    base = write_model(kind, tmp_path / "base")
    options = ["--epochs", "1", "--tuning-epochs", "1", "--max-tokens", "100", "--lora-rank", str(rank)]
    code = main(["tune", "--data", str(data), "--model", str(base), *options, "--output", str(tmp_path / "bundle")])
    if rank and kind in NO_ADAPTER:
        assert code == 2
        return
    assert code == 0
    check_answers(tmp_path / "bundle", text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NO_ADAPTER])
def test_what_starts_from_random_numbers_is_trained_whole(
    tmp_path: Path, kind: str, texts: LabelledDataset, images: LabelledDataset
) -> None:
    """The head has another name in each family; BERT's pooler is new, too, where the checkpoint has none."""
    data = texts if KINDS[kind].tokenizer is not None else images
    directory = write_model(kind, tmp_path / "base")
    fresh = open_model(directory, read_config(directory), data.task, id2label=dict(enumerate("abc"))).fresh
    assert fresh
    adapted = open_backbone(str(directory), data, Shape(lora_rank=2)).model
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for name in fresh:
        owner, _, weight = name.rpartition(".")
        whole = [found for found in trained if found.endswith(weight) and "modules_to_save" in found]
        assert any(owner in found.replace(".modules_to_save.default", "") for found in whole), name
    assert any("lora_A" in name for name in trained)


@pytest.mark.parametrize("kind", sorted(NO_ADAPTER))
def test_a_model_that_lora_cannot_adapt_is_one_line(tmp_path: Path, kind: str, images: LabelledDataset) -> None:
    directory = write_model(kind, tmp_path / "base")
    with pytest.raises(InputError, match="has none but its head: tune it without"):
        open_backbone(str(directory), images, Shape(lora_rank=2))


def test_a_head_is_trained_whole_where_nothing_is_new(tmp_path: Path) -> None:
    directory = write_model("distilbert", tmp_path / "tuned", ["a", "b"])
    opened = open_model(directory, read_config(directory), "text-classification")
    assert opened.fresh == frozenset()
    assert trained_whole(opened.model, opened.fresh) == ["pre_classifier", "classifier"]


@pytest.mark.parametrize(
    ("kind", "longest"),
    [
        ("bert", 64),
        ("mpnet", 62),
        ("roberta", 62),
        ("longformer", 62),
        ("data2vec-text", 62),
        ("bart", 64),
        ("opt", 64),
    ],
)
def test_no_text_is_longer_than_the_positions(tmp_path: Path, kind: str, longest: int) -> None:
    directory = write_model(kind, tmp_path / "tuned", ["a", "b"])
    opened = open_model(directory, read_config(directory), "text-classification")
    assert longest_text(opened.model, 1000) == longest
    ids = torch.full((1, longest), 9)
    ids[0, -1] = LAST
    assert opened.model.eval()(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "padding"),
    [({}, LAST), ({"eos_token_id": LAST}, LAST), ({"eos_token_id": None}, 0), ({"pad_token_id": 4}, 4)],
)
def test_a_decoder_without_a_padding_token_pads_with_its_first_end(
    tmp_path: Path, changes: dict[str, Any], padding: int
) -> None:
    directory = write_model("llama", tmp_path / "tuned", ["a", "b"], **changes)
    assert import_model(str(directory), tmp_path / "bundle")
    assert f'"pad_token_id": {padding},' in (tmp_path / "bundle" / "config.json").read_text()
    check_answers(tmp_path / "bundle", text=True)


def test_a_text_that_ends_itself_is_trained_on(tmp_path: Path) -> None:
    """BART counts the ends of a text, and one row that had two of them ended the training."""
    rows = [(f"{'</s> ' * (number % 3)}row {number} <s>", "ab"[number % 2]) for number in range(40)]
    data = load_dataset(str(write_csv(tmp_path / "rows.csv", rows)), None)
    for kind in ("bart", "t5"):
        backbone = open_backbone(str(write_model(kind, tmp_path / kind)), data, Shape())
        prepared = backbone.prepare(data.train.inputs)
        assert all((row == LAST).sum() == 1 for row in prepared)
        assert backbone.logits(prepared).isfinite().all()


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", ["distilbert", "llama", "bart"])
def test_an_edge_serves_it(tmp_path: Path, kind: str) -> None:
    source = write_model(kind, tmp_path / "tuned", ["a", "b", "c"])
    bundle = import_model(str(source), tmp_path / "bundle")
    rewrite_bundle(bundle, {"default_threshold": 0.0}, lambda _: None)
    service = spawn_edge(tmp_path, "http://127.0.0.1:9", BUNDLE=str(tmp_path / "bundle"))
    with stopping(service):
        service.wait_ready(within_s=100.0)  # transformers takes half a minute to import on a busy machine
        answer = httpx.post(f"{service.url}/v1/classify", json={"inputs": [text for text in TEXTS if text]}).json()
    expected = load_classifier(load_bundle(tmp_path / "bundle"))
    for text, output in zip([text for text in TEXTS if text], answer["outputs"], strict=True):
        (prediction,) = expected.predict([text])
        assert output["label"] == expected.labels[prediction.label]
        assert output["confidence"] == pytest.approx(prediction.confidence, abs=1e-4)
