"""Logits to confidence: the same functions in the job and in the edge, so that a threshold means one thing.

Every score is a function of temperature-scaled logits, (N, C) -> (N,), and higher is more confident.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Score:
    """A confidence score and the range its values and thresholds lie in."""

    function: Callable[[Tensor], Tensor]
    low: float
    high: float


SCORES: dict[str, Score] = {
    "max_softmax": Score(max_softmax, 0.0, 1.0),
    "margin": Score(margin, 0.0, 1.0),
    "negative_entropy": Score(negative_entropy, -1.0, 0.0),
    "energy": Score(energy, -1e6, 1e6),
}
