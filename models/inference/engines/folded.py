"""Our own nets, folded for inference: an item's logits are its own in every batch. Without transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.bundle import Bundle
from models.inference.encoding import TextEncoder
from models.inference.engines.engine import Engine, check_outputs, config_of, from_torch, padding_of
from models.inference.folded import MODEL_TYPE, FoldedTextNet
from models.inference.folded_cnn import MODEL_TYPE as CNN_MODEL_TYPE
from models.inference.folded_cnn import FoldedCNN
from models.inference.processors import load_pixel_encoder

NETS = {"text-classification": MODEL_TYPE, "image-classification": CNN_MODEL_TYPE}


def takes(bundle: Bundle) -> bool:
    """A net of ours, for what it classifies."""
    manifest = bundle.manifest
    if manifest.runtime != "transformers":
        return False
    return config_of(bundle.directory).get("model_type") == NETS[manifest.task]


def load(bundle: Bundle) -> Engine:
    """From its files alone."""
    return _load_images(bundle) if bundle.manifest.task == "image-classification" else _load_texts(bundle)


def _load_images(bundle: Bundle) -> Engine:
    encode = load_pixel_encoder(bundle.directory)
    net = FoldedCNN.load(bundle.directory)
    check_outputs(bundle, net.num_labels)
    return Engine(from_torch(lambda images: net(encode(images))), encode.fitted, batch_free=True)


def _load_texts(bundle: Bundle) -> Engine:
    assert bundle.manifest.max_tokens is not None  # load_bundle has checked it
    pad_id, empty_id = padding_of(config_of(bundle.directory))
    encode = TextEncoder(bundle.directory / "tokenizer.json", bundle.manifest.max_tokens, pad_id)
    net = FoldedTextNet.load(bundle.directory)
    check_outputs(bundle, net.num_labels)
    encode.check_ids(net.vocabulary, (pad_id, empty_id))
    return Engine(from_torch(_TextLogits(net, encode, pad_id, empty_id)), batch_free=True)


class _TextLogits:
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
