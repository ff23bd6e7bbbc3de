"""A TextNet for inference, from its files alone: quicker to run, and to load, because transformers is not needed.

Embedding and convolution are both linear, so every token goes through every convolution once, at load time, and a
forward pass only adds: whole multiples of one step, so that the order does not matter and a text's logits are the same
numbers in every batch. Equal to the TextNet but for the rounding (1e-6).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from models.errors import BundleError
from models.inference.exact import ExactLinear, largest, step_for, stepped

MODEL_TYPE = "gatekeeper_text_net"


class FoldedTextNet:
    """input_ids (N, T) -> logits (N, num_labels); padding is pad_id.

    Costs sum(widths) * channels floats of memory for each vocabulary entry. Not a Module: at one text a call, looking
    up its parts would cost as much as adding them.
    """

    def __init__(self, weights: dict[str, Tensor], widths: tuple[int, ...], pad_id: int) -> None:
        """weights: a TextNet's state dict. Raises KeyError or RuntimeError where they are not one of these widths."""
        self._pad_id = pad_id
        vocabulary = self.vocabulary = len(weights["embedding.weight"])
        bias = torch.cat([weights[f"convolutions.{index}.bias"] for index in range(len(widths))]).double()
        most = bias.abs() + torch.cat(
            [
                torch.stack([largest(table) for table in _tables(weights, index, width)]).sum(dim=0)
                for index, width in enumerate(widths)
            ]
        )
        step = step_for(float(most.max()))
        self._layers: list[tuple[int, Tensor, Tensor]] = []
        for index, width in enumerate(widths):
            # Rows [place * V, (place + 1) * V): what each token adds when it stands at that place of the window.
            rows = torch.cat([stepped(table, step).float() for table in _tables(weights, index, width)])
            # A window around padding can never be the maximum; padding beside a token still adds nothing.
            rows[(width - 1) // 2 * vocabulary + pad_id] = -torch.inf
            self._layers.append((width, rows, torch.arange(0, width * vocabulary, vocabulary)))
        self._convolution_bias = stepped(bias, step).float()
        self._classify = ExactLinear(weights["classifier.weight"], weights["classifier.bias"], most=most, step=step)
        self.num_labels = len(weights["classifier.bias"])

    @classmethod
    def load(cls, directory: Path) -> "FoldedTextNet":
        """From config.json and model.safetensors, as TextNet.save_pretrained writes them.

        Raises BundleError for weights that are no numbers: the whole multiples would be none either.
        """
        config = json.loads((directory / "config.json").read_bytes())
        weights = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
        if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise BundleError(f"{directory}: the model holds NaN or infinite numbers in {broken[0]}: it is damaged")
        return cls(weights, tuple(config["kernel_sizes"]), config["pad_token_id"])

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Logits of a batch."""
        count, length = input_ids.shape
        pooled = []
        for width, table, places in self._layers:
            if width == 1:
                pooled.append(F.embedding(input_ids, table).amax(dim=1))
                continue
            padded = F.pad(input_ids, ((width - 1) // 2, width // 2), value=self._pad_id)
            windows = padded.unfold(1, width, 1) + places
            sums = F.embedding_bag(windows.reshape(-1, width), table, mode="sum")
            pooled.append(sums.view(count, length, -1).amax(dim=1))
        # Bias and ReLU after the maximum, with which they change places: one row a sentence, not one a token.
        features = torch.cat(pooled, dim=-1).add_(self._convolution_bias).relu_()
        return self._classify(features)


def _tables(weights: dict[str, Tensor], index: int, width: int) -> Iterator[Tensor]:
    """(V, channels) float64 for each place of the window, one after the other: together they would take memory that a
    process keeps for good."""
    embedding = weights["embedding.weight"].double()
    convolution = weights[f"convolutions.{index}.weight"].view(-1, width, embedding.shape[1]).double()
    for weight in convolution.unbind(dim=1):
        yield embedding @ weight.T
