"""What enters a model's output layer, so that a loss can be computed without the logits over the vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class HeadInputs:
    """The last forward pass's hidden states, (B, T, E), scaled as the output layer takes them.

    While `taken`, the output layer itself is given none of them: its logits, and what a model does to them, are empty.
    That works for every architecture, as each of them calls its output layer.
    """

    def __init__(self, model: Any) -> None:
        """model: of transformers, with a language model's head."""
        self.head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._fixed_bias: Tensor | None = getattr(model, "final_logits_bias", None)  # BART's, a buffer
        self._hidden: Tensor | None = None
        self._taking = False
        self.head.register_forward_pre_hook(self._take)

    @property
    def weight(self) -> Tensor:
        """(V, E)."""
        weight: Tensor = self.head.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """(V,), or none."""
        own: Tensor | None = getattr(self.head, "bias", None)
        if own is None and self._fixed_bias is not None and bool(self._fixed_bias.any()):
            return self._fixed_bias[0]
        return own

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hidden states in the place of logits."""
        self._taking = True
        try:
            yield
        finally:
            self._taking, self._hidden = False, None

    def hidden(self) -> Tensor:
        """Those of the forward pass that has just been, once."""
        assert self._hidden is not None
        found, self._hidden = self._hidden, None
        return found

    def _take(self, head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:  # noqa: ARG002  torch's names
        if not self._taking:
            return None
        self._hidden = given[0]
        return (given[0][:, :0], *given[1:])

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, E) -> (N, V) float32: what the model would have made of them."""
        found: Tensor = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        return found if self.softcap is None else torch.tanh(found / self.softcap) * self.softcap
