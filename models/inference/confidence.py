"""Logits to confidence: the same functions in the job and in the edge, so that a threshold means one thing.

Every score is a function of temperature-scaled logits, (N, C) -> (N,), and higher is more confident; bundle.py has the
range of each.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIGNIFICANT_BITS = 16


def max_softmax(logits: Tensor) -> Tensor:
    """g(x) = max_c p_c (equation 7)."""
    return torch.softmax(logits, dim=-1).amax(dim=-1)


def margin(logits: Tensor) -> Tensor:
    """p1 - p2, the distance of the two most probable classes."""
    top = torch.softmax(logits, dim=-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def negative_entropy(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c divided by log C, in [-1, 0] (equation 8 for one position, normalised)."""
    entropy: Tensor = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)
    return -entropy / math.log(logits.shape[-1])


def energy(logits: Tensor) -> Tensor:
    """log sum_c exp z_c, the negative free energy; unbounded."""
    return torch.logsumexp(logits, dim=-1)


def rounded(confidence: Tensor) -> Tensor:
    """To SIGNIFICANT_BITS.

    For a model whose last bits depend on what else is in the batch: without it an item at its own threshold is decided
    either way in most batches, with it in a few of a hundred.
    """
    mantissa, exponent = torch.frexp(confidence)
    return torch.ldexp(torch.round(mantissa * 2**SIGNIFICANT_BITS) / 2**SIGNIFICANT_BITS, exponent)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_softmax": max_softmax,
    "margin": margin,
    "negative_entropy": negative_entropy,
    "energy": energy,
}


def confidences(logits: NDArray[np.float32], temperature: float) -> dict[str, NDArray[np.float64]]:
    """Every score by name, each (N,), from logits (N, C) before the temperature."""
    scaled = torch.from_numpy(logits) / temperature
    return {name: score(scaled).double().numpy() for name, score in SCORES.items()}
