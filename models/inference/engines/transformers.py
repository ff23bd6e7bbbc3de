"""Classifiers of others, which transformers runs, by its Auto classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from models.bundle import Bundle
from models.inference.encoding import TextEncoder
from models.inference.engines.engine import Engine, check_outputs, config_of, from_torch, padding_of
from models.inference.hub import transformers_library
from models.inference.processors import load_pixel_encoder


def takes(bundle: Bundle) -> bool:
    """Runtime `transformers`."""
    return bundle.manifest.runtime == "transformers"


def load(bundle: Bundle) -> Engine:
    """The model with its own encoder."""
    return _load_images(bundle) if bundle.manifest.task == "image-classification" else _load_texts(bundle)


def _load_images(bundle: Bundle) -> Engine:
    encode = load_pixel_encoder(bundle.directory)
    model = _model("AutoModelForImageClassification", bundle.directory)
    check_outputs(bundle, model.config.num_labels)

    def forward(images: Sequence[Any]) -> Tensor:
        return cast("Tensor", model(pixel_values=encode(images)).logits)

    return Engine(from_torch(forward), encode.fitted)


def _load_texts(bundle: Bundle) -> Engine:
    assert bundle.manifest.max_tokens is not None  # load_bundle has checked it
    pad_id, empty_id = padding_of(config_of(bundle.directory))
    encode = TextEncoder(bundle.directory / "tokenizer.json", bundle.manifest.max_tokens, pad_id)
    model = _model("AutoModelForSequenceClassification", bundle.directory)
    check_outputs(bundle, model.config.num_labels)
    encode.check_ids(model.get_input_embeddings().num_embeddings, (pad_id, empty_id))

    def forward(input_ids: Tensor, mask: list[list[int]]) -> Tensor:
        return cast("Tensor", model(input_ids=input_ids, attention_mask=torch.tensor(mask)).logits)

    return Engine(from_torch(_TextLogits(forward, encode, empty_id)))


def _model(kind: str, directory: Path) -> Any:
    auto = getattr(transformers_library(), kind)
    return auto.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32).eval()


class _TextLogits:
    """A sequence classifier behind its fast tokenizer. forward: (input_ids (N, T), attention mask) -> logits (N, C)."""

    def __init__(
        self, forward: Callable[[Tensor, list[list[int]]], Tensor], encode: TextEncoder, empty_id: int
    ) -> None:
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
