"""Pretrained models from a directory: fine-tuned whole, or by LoRA; accumulation; what cannot be tuned."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.tiny import write_tiny_clinc150, write_tiny_csv, write_tiny_images
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from models.bundle import load_bundle
from models.data.datasets import load_dataset
from models.inference.classifier import load_classifier
from models.inference.pixels import PixelEncoder
from models.training.tune import Recipe
from models.training.vocabulary import train_tokenizer
from service.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    directory = write_tiny_clinc150(tmp_path_factory.mktemp("texts"))
    return "--data", "clinc150", "--data-dir", str(directory)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, data: tuple[str, ...]) -> Path:
    """A BERT of two small layers, without dropout, and the tokenizer that it was made for."""
    directory = tmp_path_factory.mktemp("model") / "bert"
    texts = load_dataset("clinc150", Path(data[-1])).train.inputs
    tokenizer = train_tokenizer(texts, 200)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def tune(*arguments: object) -> int:
    return main(["tune", *map(str, arguments)])


QUICK = ("--epochs", 2, "--tuning-epochs", 1, "--learning-rate", 1e-3)


def test_a_pretrained_model_becomes_a_bundle(tmp_path: Path, bert: Path, data: tuple[str, ...]) -> None:
    assert tune(*data, "--model", bert, *QUICK, "--precision", "bf16", "--output", tmp_path / "one") == 0
    bundle = load_bundle(tmp_path / "one")
    assert bundle.manifest.max_tokens == 24
    assert bundle.manifest.training["model"] == "bert"
    (prediction,) = load_classifier(bundle).predict(["what is with my savings " * 20])
    assert prediction.label in range(3)
    # The same model, started from the bundle: its head is kept, so nothing is left to do in stage 1.
    assert (
        tune(*data, "--model", tmp_path / "one", "--epochs", 0, "--tuning-epochs", 0, "--output", tmp_path / "two") == 0
    )
    (again,) = load_classifier(load_bundle(tmp_path / "two")).predict(["what is with my savings " * 20])
    assert again.confidence == pytest.approx(prediction.confidence, abs=1e-6)


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_bundle(tmp_path: Path, bert: Path, data: tuple[str, ...]) -> None:
    adapted = (*data, "--model", bert, *QUICK, "--lora-rank", 4)
    assert tune(*adapted, "--output", tmp_path / "one") == 0
    # In a sweep the second alpha starts from the adapter, not from what was merged for the first.
    assert tune(*adapted, "--alpha", "0.2,0.5", "--output", tmp_path / "sweep") == 0
    digests = [load_bundle(tmp_path / name).gate_digest for name in ("one", "sweep/alpha-0.5-seed-0")]
    assert digests[0] == digests[1]
    with (
        safe_open(tmp_path / "one" / "model.safetensors", "pt") as tuned,
        safe_open(bert / "model.safetensors", "pt") as before,
    ):
        assert set(tuned.keys()) == set(before.keys())
        name = "bert.encoder.layer.0.attention.self.query.weight"
        change = tuned.get_tensor(name) - before.get_tensor(name)
        assert change.abs().max() > 0
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 4
        # What LoRA does not adapt is as it was.
        name = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(tuned.get_tensor(name), before.get_tensor(name))
    assert load_classifier(load_bundle(tmp_path / "one")).predict(["rain"])


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, bert: Path, data: tuple[str, ...]) -> None:
    """Without dropout, 16 rows at once and twice 8 rows give the same weights, but for the order of summation."""
    for name, options in (("whole", (16, 1)), ("parts", (8, 2))):
        size = ("--batch-size", options[0], "--gradient-accumulation", options[1])
        assert tune(*data, "--model", bert, *QUICK, *size, "--output", tmp_path / name) == 0
    confidences = [
        [
            prediction.confidence
            for prediction in load_classifier(load_bundle(tmp_path / name)).predict(["rain", "alarm"])
        ]
        for name in ("whole", "parts")
    ]
    assert confidences[0] == pytest.approx(confidences[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_share_a_batch(tmp_path: Path, bert: Path, data: tuple[str, ...]) -> None:
    """Twice 8 rows in two processes give the weights of 16 in one; one of them writes."""
    common = [str(part) for part in ("tune", *data, "--model", bert, *QUICK)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "service.cli"]
    subprocess.run([*launch, *common, "--batch-size", "8", "--output", tmp_path / "two"], check=True, timeout=110)
    assert main([*common, "--batch-size", "16", "--output", str(tmp_path / "one")]) == 0
    bundles = [load_bundle(tmp_path / name) for name in ("one", "two")]
    assert [bundle.manifest.training["processes"] for bundle in bundles] == [1, 2]
    one, two = (
        [prediction.confidence for prediction in load_classifier(bundle).predict(["rain", "alarm"])]
        for bundle in bundles
    )
    assert one == pytest.approx(two, abs=1e-4)


def test_losses_are_written_for_tensorboard(tmp_path: Path, data: tuple[str, ...]) -> None:
    board = tmp_path / "board"
    assert tune(*data, "--epochs", 2, "--tuning-epochs", 1, "--tensorboard", board, "--output", tmp_path / "one") == 0
    stages = {path.parent.name.split("-")[0] for path in board.rglob("events.out.tfevents.*")}
    assert stages == {"first", "second"}


def test_an_image_model_keeps_its_own_processor(tmp_path: Path) -> None:
    images = write_tiny_images(tmp_path / "images")
    model = tmp_path / "resnet"
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(model)
    PixelEncoder(32, 32, (0.5,) * 3, (0.5,) * 3).save(model)
    assert tune("--data", images, "--model", model, *QUICK, "--output", tmp_path / "one") == 0
    bundle = load_bundle(tmp_path / "one")
    assert (tmp_path / "one" / "preprocessor_config.json").read_bytes() == (
        model / "preprocessor_config.json"
    ).read_bytes()
    assert len(load_classifier(bundle).predict(load_dataset(str(images), None).test.inputs[:3])) == 3


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "config.json").write_text('{"model_type": "no such"}'), "cannot be loaded"),
        (lambda path: (path / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
        (lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), "cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, bert: Path, data: tuple[str, ...], capsys: pytest.CaptureFixture[str], break_it: object, words: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in bert.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    break_it(model)  # type: ignore[operator]
    capsys.readouterr()
    assert tune(*data, "--model", model, "--output", tmp_path / "one") == 2
    complaint = capsys.readouterr().err
    assert words in complaint
    assert len(complaint.strip().splitlines()) == 1


def test_a_net_for_few_rows_is_trained_for_enough_steps(tmp_path: Path) -> None:
    """The default number of epochs is meant for thousands of rows; a csv file of ninety gets as many steps."""
    data = load_dataset(str(write_tiny_csv(tmp_path / "rows.csv")), None)
    first, second = Recipe().schedules(len(data.train))
    assert first.epochs == 600
    assert second.epochs == 200
    assert Recipe(epochs=3).schedules(len(data.train))[0].epochs == 3
    assert Recipe().schedules(15_000)[0].epochs == 25
