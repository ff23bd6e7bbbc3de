"""A linear layer whose result is the same number whatever stands beside an item in its batch.

A matrix product adds in another order for another number of rows, and so rounds otherwise: 2e-5 in a logit. Here
features and weights are whole multiples of a step, chosen so that every sum fits into the 53 bits of a float64: nothing
is rounded before the end, and the order does not matter, nor the library or the processor.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT32_BITS = 24
FLOAT64_BITS = 53


class ExactLinear:
    """features (N, E), whole multiples of `step` up to `most` (E,), to features @ weight.T + bias (N, C)."""

    def __init__(self, weight: Tensor, bias: Tensor, *, most: Tensor, step: float) -> None:
        """weight (C, E), bias (C,); step: a power of two."""
        sum_most = float((most.double() @ weight.double().abs().T).max() + bias.double().abs().max())
        # The sum's bits above the point, those of the features' step below it, and one to spare for rounding up.
        bits = FLOAT64_BITS - 2 - max(0, math.ceil(math.log2(max(sum_most, 1.0)))) + round(math.log2(step))
        self._weight = stepped(weight.double(), 2.0**-bits)
        self._bias = stepped(bias.double(), step * 2.0**-bits)

    def __call__(self, features: Tensor) -> Tensor:
        """float32."""
        return F.linear(features.double(), self._weight, self._bias).float()


def stepped(values: Tensor, step: float) -> Tensor:
    """The nearest whole multiples of `step`."""
    return (values / step).round_().mul_(step)


def largest(values: Tensor) -> Tensor:
    """(N, E) -> (E,): the largest absolute value of each column."""
    return torch.maximum(values.amax(dim=0), -values.amin(dim=0))


def step_for(most: float) -> float:
    """The smallest step whose multiples up to `most` a float32 holds exactly."""
    return 2.0 ** (math.ceil(math.log2(max(most, 2.0**-20))) - FLOAT32_BITS)
