"""Inference for text and image classifiers: a bundle in, predictions out. One thread calls it, one batch at a time.

The edge, the large-model service and the job all predict through this file, so that a confidence is the same number
everywhere. transformers is imported by what needs it: three seconds and 100 MB that the default edge does without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from models.bundle import Bundle
from models.errors import BundleError
from models.files import MIB, read_json
from models.inference.confidence import SCORES, rounded
from models.inference.encoding import TextEncoder
from models.inference.folded import MODEL_TYPE, FoldedTextNet
from models.inference.folded_cnn import MODEL_TYPE as CNN_MODEL_TYPE
from models.inference.folded_cnn import FoldedCNN
from models.inference.hub import transformers_library
from models.inference.pixels import PixelEncoder
from models.inference.sentence_encoder import HEAD, FrozenBase, HeadLogits, load_head


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
    """logits(items) with the bundle's temperature and score on top. Items are texts, or uint8 images.

    prepare: the part of the work on an item that any thread may do before; logits takes items with and without it, and
    gives the same. For images, arrays or Pillow's, it is what makes them small; for texts there is none.

    batch_free: an item's logits are the same numbers in every batch. Where they are not, confidences are rounded.
    """

    labels: tuple[str, ...]
    logits: Callable[[Sequence[Any]], Tensor]
    temperature: float
    score: str
    prepare: Callable[[Any], Any] | None = None
    batch_free: bool = False

    def predict(self, items: Sequence[Any]) -> list[Prediction]:
        """Predictions in order. Confidences are what the gate compares with its threshold."""
        with torch.inference_mode():
            scaled = self.logits(items) / self.temperature
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

    def scores(self, logits: NDArray[np.float32], temperature: float | None = None) -> dict[str, NDArray[np.float64]]:
        """Every score by name, each (N,), as the gate would see it, from logits (N, C) before the temperature.

        temperature: instead of the bundle's.
        """
        scaled = torch.from_numpy(logits) / (self.temperature if temperature is None else temperature)
        return {name: self._settled(score(scaled)).double().numpy() for name, score in SCORES.items()}

    def _settled(self, confidences: Tensor) -> Tensor:
        return confidences if self.batch_free else rounded(confidences)


def load_classifier(bundle: Bundle) -> Classifier:
    """The classifier of a bundle, on the CPU, in evaluation mode. Raises BundleError with the file's name."""
    manifest = bundle.manifest
    try:
        logits: Callable[[Sequence[Any]], Tensor]
        prepare = None
        if manifest.task == "image-classification":
            logits, prepare = _load_image_logits(bundle)
        elif manifest.runtime == "transformers":
            logits = _load_text_logits(bundle)
        else:
            assert manifest.base is not None  # load_bundle has checked both
            assert manifest.max_tokens is not None
            head = load_head(bundle.directory / HEAD, len(manifest.labels))
            logits = HeadLogits(FrozenBase(manifest.base, manifest.max_tokens), head)
        classifier = Classifier(
            manifest.labels, logits, manifest.temperature, manifest.score, prepare, _is_folded(bundle)
        )
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


def _is_folded(bundle: Bundle) -> bool:
    """Whether it is a net of our own, for which inference is written so that an item's logits are its own."""
    if bundle.manifest.runtime != "transformers":
        return False
    return _config(bundle.directory).get("model_type") in (MODEL_TYPE, CNN_MODEL_TYPE)


Forward = Callable[[Tensor, list[list[int]]], Tensor]


class _FoldedLogits:
    """A folded net behind its tokenizer, which needs no attention mask: to get them takes a tenth of a batch's time."""

    def __init__(self, net: FoldedTextNet, encode: TextEncoder, pad_id: int, empty_id: int) -> None:
        self._net = net
        self._encode = encode
        self._pad_id = pad_id
        self._empty_id = empty_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = [encoding.ids for encoding in self._encode(texts)]
        for row in ids:
            if not row:
                row.append(self._empty_id)  # then none of them has a token
            elif row[0] == self._pad_id:
                row[0] = self._empty_id
        return self._net(torch.tensor(ids))


class _TextLogits:
    """A sequence classifier behind its fast tokenizer. forward: (input_ids (N, T), attention mask) -> logits (N, C)."""

    def __init__(self, forward: Forward, encode: TextEncoder, empty_id: int) -> None:
        self._forward = forward
        self._encode = encode
        self._empty_id = empty_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        encodings = self._encode(texts)
        ids = [encoding.ids for encoding in encodings]
        masks = [encoding.attention_mask for encoding in encodings]
        if not all(mask and mask[0] for mask in masks):
            # A text without a single token, such as white space, would be judged by its padding, and so by its batch.
            ids = [
                row if mask and mask[0] else [self._empty_id, *row[1:]] for row, mask in zip(ids, masks, strict=True)
            ]
            masks = [mask if mask and mask[0] else [1, *mask[1:]] for mask in masks]
        return self._forward(torch.tensor(ids), masks)


def _load_text_logits(bundle: Bundle) -> _FoldedLogits | _TextLogits:
    assert bundle.manifest.max_tokens is not None
    config = _config(bundle.directory)
    pad_id = config.get("pad_token_id") or 0
    empty_id = config.get("unk_token_id") or pad_id
    encode = TextEncoder(bundle.directory / "tokenizer.json", bundle.manifest.max_tokens, pad_id)
    if config.get("model_type") == MODEL_TYPE:
        net = FoldedTextNet.load(bundle.directory)
        _check_outputs(bundle, net.num_labels)
        encode.check_ids(net.vocabulary, (pad_id, empty_id))
        return _FoldedLogits(net, encode, pad_id, empty_id)
    forward, outputs, rows = _load_auto_text(bundle.directory)
    _check_outputs(bundle, outputs)
    encode.check_ids(rows, (pad_id, empty_id))
    return _TextLogits(forward, encode, empty_id)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = read_json(path, MIB)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} is no JSON object")
    return config


def _check_outputs(bundle: Bundle, outputs: int) -> None:
    labels = len(bundle.manifest.labels)
    if outputs != labels:
        raise BundleError(f"{bundle.directory / 'config.json'}: {outputs} outputs for {labels} labels")


def _load_auto_text(directory: Path) -> tuple[Forward, int, int]:
    """(forward, outputs, rows of the embedding)."""
    model = _load_auto("AutoModelForSequenceClassification", directory)

    def forward(input_ids: Tensor, mask: list[list[int]]) -> Tensor:
        return cast("Tensor", model(input_ids=input_ids, attention_mask=torch.tensor(mask)).logits)

    return forward, model.config.num_labels, model.get_input_embeddings().num_embeddings


def _load_auto(kind: str, directory: Path) -> Any:
    auto = getattr(transformers_library(), kind)
    return auto.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32).eval()


def _load_image_logits(bundle: Bundle) -> tuple[Callable[[Sequence[Any]], Tensor], Callable[[Any], Any]]:
    encode = load_pixel_encoder(bundle.directory)
    config = _config(bundle.directory)
    load_forward = _load_folded_cnn if config.get("model_type") == CNN_MODEL_TYPE else _load_auto_image
    forward, outputs = load_forward(bundle.directory)
    _check_outputs(bundle, outputs)
    return lambda images: forward(encode(images)), encode.fitted


def _load_folded_cnn(directory: Path) -> tuple[Callable[[Tensor], Tensor], int]:
    folded = FoldedCNN.load(directory)
    return folded, folded.num_labels


def _load_auto_image(directory: Path) -> tuple[Callable[[Tensor], Tensor], int]:
    model = _load_auto("AutoModelForImageClassification", directory)
    return lambda pixels: cast("Tensor", model(pixel_values=pixels).logits), model.config.num_labels


class LibraryEncoder:
    """transformers' own processor, one image at a time: it works through a batch that way too."""

    def __init__(self, directory: Path) -> None:
        self._processor = transformers_library().AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )

    def __call__(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor:
        """uint8 images, or what `fitted` made of them -> pixel values (N, C, H, W)."""
        return torch.stack([image if isinstance(image, Tensor) else self.fitted(image) for image in images])

    def fitted(self, image: NDArray[np.uint8] | Image) -> Tensor:
        """The pixel values (C, H, W) of one image, grey or RGB."""
        array = np.asarray(image)
        colour = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)
        return cast("Tensor", self._processor(colour, return_tensors="pt")["pixel_values"][0])


def load_pixel_encoder(directory: Path) -> PixelEncoder | LibraryEncoder:
    """uint8 images -> pixel values (N, C, H, W): our own arithmetic where it does the same, else transformers'."""
    return PixelEncoder.load(directory) or LibraryEncoder(directory)


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
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            raw = classifier.logits([items[position] for position in chosen])
            scaled = raw / classifier.temperature
            logits[chosen] = raw.numpy()
            label[chosen] = torch.softmax(scaled, dim=-1).argmax(dim=-1).numpy()
            progress(len(chosen))
    return Outputs(label, classifier.scores(logits)[classifier.score], logits)


def confidences(logits: NDArray[np.float32], temperature: float) -> dict[str, NDArray[np.float64]]:
    """Every score by name, each (N,), from logits (N, C) before the temperature."""
    scaled = torch.from_numpy(logits) / temperature
    return {name: score(scaled).double().numpy() for name, score in SCORES.items()}
