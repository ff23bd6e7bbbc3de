"""What a study compares: one model of one seed beside the large model, under any of its gates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from models.numbers.metrics import deferral_curve

Floats = NDArray[np.float64]
# joint: the mean joint accuracy at 10, 20 and 30 % deferral, which is what an operator pays for.
PAID_FOR = (0.1, 0.2, 0.3)


class Compared(ABC):
    """large: the large model's correctness on each split, (N,). measured: what findings.py keeps of it."""

    gates: ClassVar[tuple[str, ...]]  # by name; the first is the plain one
    writes_text: ClassVar[bool] = False
    large: Mapping[str, Floats]
    measured: dict[tuple[str, str], tuple[Floats, Floats]]

    @abstractmethod
    def right(self, split: str) -> Floats:
        """The small model's correctness on a split, (N,) in [0, 1]."""

    @abstractmethod
    def confidence(self, gate: str, split: str) -> Floats:
        """The gate's confidence on a split, (N,); what a gate has to learn it learns on `calibrate`."""

    @property
    def merges(self) -> bool:
        """Whether `merged` makes answers of both models."""
        return False

    def merged(self, weight: float) -> "Compared":
        """The same where a deferred item gets an answer of both models."""
        raise NotImplementedError(weight)

    def joint(self, split: str) -> float:
        """The mean joint accuracy at PAID_FOR under the plain gate."""
        curve = deferral_curve(self.confidence(self.gates[0], split), self.right(split), self.large[split])
        return float(np.interp(PAID_FOR, np.linspace(0.0, 1.0, len(curve)), curve).mean())
