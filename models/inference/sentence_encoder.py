"""A frozen sentence encoder from elsewhere, and the linear head of ours that stands on it (runtime `head`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.bundle import WEIGHTS, Base
from models.errors import BundleError
from models.inference.encoding import TextEncoder
from models.inference.hub import locate_base, transformers_library

HEAD = WEIGHTS["head"]


class FrozenBase:
    """A frozen sentence encoder: mean of the last hidden states over real tokens, scaled to length 1."""

    def __init__(self, base: Base, max_tokens: int) -> None:
        directory = locate_base(base)
        self._model = (
            transformers_library()
            .AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32)
            .eval()
        )
        self._encode = TextEncoder(directory / "tokenizer.json", max_tokens, self._model.config.pad_token_id or 0)
        self._encode.check_ids(self._model.get_input_embeddings().num_embeddings, ())

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, E) of length 1."""
        encodings = self._encode(texts)
        attention_mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        hidden = self._model(
            input_ids=torch.tensor([encoding.ids for encoding in encodings]), attention_mask=attention_mask
        ).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)


class HeadLogits:
    """texts -> logits (N, C)."""

    def __init__(self, base: FrozenBase, head: nn.Linear) -> None:
        self._base = base
        self._head = head

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return cast("Tensor", self._head(self._base.embed(texts)))


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
