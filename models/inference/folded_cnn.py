"""A SmallCNN for inference, from its files alone: quicker to run, and to load, because transformers is not needed.

In evaluation a batch norm only scales and shifts each channel, so it goes into the convolution before it, once, at load
time. Equal to the SmallCNN but for rounding (2e-5 in a logit, 2e-6 in a confidence).

An image's logits are the same numbers in every batch: torch's convolutions of two images or more add in an order that
does not depend on their number, its matrix products do not. So the linear layers are convolutions here, and a lone
image goes through twice. A test holds that it is so.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

MODEL_TYPE = "gatekeeper_small_cnn"
BATCH_NORM_EPS = 1e-5  # what nn.BatchNorm2d adds to a variance, and what the SmallCNN leaves it at


class FoldedCNN:
    """pixel_values (N, num_channels, height, width) -> logits (N, num_labels)."""

    def __init__(self, weights: dict[str, Tensor], channels: Sequence[int], convolutions: int) -> None:
        """weights: a SmallCNN's state dict. Raises KeyError or RuntimeError where they are not one of that shape."""
        self._blocks: list[list[tuple[Tensor, Tensor]]] = []
        index = 0  # in `features`: each convolution with its batch norm and ReLU, and a maximum after each block
        for _ in channels:
            block = []
            for _ in range(convolutions):
                block.append(_folded(weights, index))
                index += 3
            self._blocks.append(block)
            index += 1
        self._hidden = weights["hidden.weight"][:, None, None], weights["hidden.bias"]
        self._classifier = weights["classifier.weight"][:, None, None], weights["classifier.bias"]
        self.num_labels = len(weights["classifier.bias"])

    @classmethod
    def load(cls, directory: Path) -> "FoldedCNN":
        """From config.json and model.safetensors, as SmallCNN.save_pretrained writes them."""
        config = json.loads((directory / "config.json").read_bytes())
        weights = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
        return cls(weights, config["channels"], config["convolutions"])

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Logits of a batch."""
        if len(pixel_values) == 1:
            return self(pixel_values.expand(2, -1, -1, -1))[:1]
        # Half the time of the usual order of dimensions on a CPU.
        features = pixel_values.to(memory_format=torch.channels_last)
        for block in self._blocks:
            for weight, bias in block[:-1]:
                features = F.relu_(F.conv2d(features, weight, bias, padding=1))
            weight, bias = block[-1]
            # ReLU after the maximum, with which it changes places: a quarter of the work.
            features = F.relu_(_halved(F.conv2d(features, weight, bias, padding=1)))
        return _linear(F.relu_(_linear(features.flatten(1), *self._hidden)), *self._classifier)


def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """features (N, E), weight (M, 1, 1, E) -> (N, M), by the convolution of an image of one line."""
    return F.conv2d(features[:, None, None], weight, bias).flatten(1)


def _folded(weights: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution `features[index]` with the batch norm behind it, rounded once."""
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, scale, shift = (weights[f"features.{index + 1}.{name}"].double() for name in names)
    plain, offset = (weights[f"features.{index}.{name}"].double() for name in ("weight", "bias"))
    weight, bias = fuse_conv_bn_weights(plain, offset, mean, variance, BATCH_NORM_EPS, scale, shift)
    return weight.detach().float().contiguous(memory_format=torch.channels_last), bias.detach().float()


def _halved(features: Tensor) -> Tensor:
    """The maximum of every 2x2 square; a row or column left over is dropped, as nn.MaxPool2d does.

    Of slices, because torch's own also tells where each maximum was, and takes as long as the convolution for it.
    """
    height, width = (side // 2 * 2 for side in features.shape[2:])
    rows = torch.maximum(features[:, :, 0:height:2], features[:, :, 1:height:2])
    return torch.maximum(rows[:, :, :, 0:width:2], rows[:, :, :, 1:width:2])
