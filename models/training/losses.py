"""The Gatekeeper loss and the losses that it is compared with.

They are cross-entropy (the control that decides), confidence penalty (Pereyra et al. 2017), label smoothing, focal
loss (Lin et al. 2017), the outlier-exposure direction KL(U || p) (Hendrycks et al. 2019), a static partition into
easy and hard items (after Rawat et al. 2021), Gatekeeper on the large model's soft targets, and an alignment term.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import InputError
from models.gatekeeper import GatekeeperLoss
from models.training.recipes import STRENGTHS

NumItems = Tensor | int | None


@dataclass(frozen=True)
class Targets:
    """What a loss may know of M rows: labels (M,); the large model's probabilities (M, C); easy (M,), see below.

    easy: the model that enters stage 2 has the row right; the static partition keeps that, while the Gatekeeper loss
    asks anew at every step.
    """

    labels: Tensor
    soft: Tensor | None = None
    easy: Tensor | None = None

    def at(self, rows: Tensor) -> "Targets":
        """The targets of some rows."""
        return Targets(*(None if part is None else part[rows] for part in (self.labels, self.soft, self.easy)))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""
        parts = (self.labels, self.soft, self.easy)
        return Targets(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def with_easy(self, easy: Tensor) -> "Targets":
        """The same rows, parted."""
        return replace(self, easy=easy)


@dataclass(frozen=True)
class Loss:
    """Which loss, and all that shapes it. `name` is one of LOSSES; strength is beta, epsilon or gamma, by the loss."""

    name: str = "gatekeeper"
    alpha: float = 0.5
    strength: float | None = None
    alignment: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(f"unknown loss {self.name!r}; there is: {', '.join(LOSSES)}")
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"--alpha must be in [0, 1], not {self.alpha:g}")
        if self.strength is not None and not 0.0 <= self.strength < float("inf"):
            raise InputError(f"--strength must be 0 or more, not {self.strength:g}")
        if self.strength is not None and self.name not in STRENGTHS:
            raise InputError(f"--strength is for {', '.join(STRENGTHS)}; {self.name} has none")
        if self.name == "label-smoothing" and (self.strength or 0.0) >= 1.0:
            raise InputError(f"--strength of label smoothing must be below 1, not {self.strength:g}")
        if not 0.0 <= self.alignment < float("inf"):
            raise InputError(f"--alignment must be 0 or more, not {self.alignment:g}")

    @property
    def needs_soft(self) -> bool:
        """Whether the large model's probabilities on the training items are needed."""
        return self.name in {"soft-gatekeeper", "distillation"} or self.alignment > 0

    @property
    def has_alpha(self) -> bool:
        """Whether alpha means anything to it."""
        return self.name in {"gatekeeper", "soft-gatekeeper", "outlier-exposure", "static-partition"}

    def __call__(self, logits: Tensor, targets: Targets, num_items: NumItems = None) -> Tensor:
        """The loss of a micro-batch: summed over its items, divided by num_items (default: their number).

        logits (M, C); num_items counts the whole accumulated batch.
        """
        total = LOSSES[self.name](self, logits.float(), targets).sum()
        if self.alignment > 0:
            total = total + self.alignment * _divergence(logits.float(), _soft(targets)).sum()
        return total / (targets.labels.numel() if num_items is None else num_items)


def _cross_entropy(_: Loss, logits: Tensor, targets: Targets) -> Tensor:
    return F.cross_entropy(logits, targets.labels, reduction="none")


def _gatekeeper(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    return GatekeeperLoss(loss.alpha).per_item(logits, targets.labels)


def _outlier_exposure(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    return GatekeeperLoss(loss.alpha, kl_direction="u_p").per_item(logits, targets.labels)


def _soft_gatekeeper(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    """Equations 1-3 with the large model's probabilities q as the target: right means argmax p = argmax q."""
    soft = _soft(targets)
    log_p = torch.log_softmax(logits, dim=-1)
    correct = logits.argmax(dim=-1) == soft.argmax(dim=-1)
    return torch.where(correct, loss.alpha * -(soft * log_p).sum(dim=-1), (1 - loss.alpha) * _kl_to_uniform(log_p))


def _static_partition(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    assert targets.easy is not None
    log_p = torch.log_softmax(logits, dim=-1)
    cross_entropy = F.nll_loss(log_p, targets.labels, reduction="none")
    return torch.where(targets.easy, loss.alpha * cross_entropy, (1 - loss.alpha) * _kl_to_uniform(log_p))


def _confidence_penalty(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    log_p = torch.log_softmax(logits, dim=-1)
    return F.nll_loss(log_p, targets.labels, reduction="none") + _strength(loss) * _kl_to_uniform(log_p)


def _label_smoothing(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    return F.cross_entropy(logits, targets.labels, reduction="none", label_smoothing=_strength(loss))


def _focal(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    log_p = -F.cross_entropy(logits, targets.labels, reduction="none")
    return -((1.0 - log_p.exp()).clamp(min=1e-6) ** _strength(loss)) * log_p


def _distillation(_: Loss, logits: Tensor, targets: Targets, temperature: float = 2.0) -> Tensor:
    """Half cross-entropy, half the large model's probabilities at temperature 2 (Hinton et al. 2015)."""
    softened = torch.softmax(_soft(targets).clamp(min=1e-8).log() / temperature, dim=-1)
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    divergence = F.kl_div(log_p, softened, reduction="none").sum(dim=-1) * temperature**2
    return 0.5 * F.cross_entropy(logits, targets.labels, reduction="none") + 0.5 * divergence


LOSSES: dict[str, Callable[[Loss, Tensor, Targets], Tensor]] = {
    "gatekeeper": _gatekeeper,
    "soft-gatekeeper": _soft_gatekeeper,
    "cross-entropy": _cross_entropy,
    "confidence-penalty": _confidence_penalty,
    "label-smoothing": _label_smoothing,
    "focal": _focal,
    "outlier-exposure": _outlier_exposure,
    "static-partition": _static_partition,
    "distillation": _distillation,
}


def _strength(loss: Loss) -> float:
    return STRENGTHS[loss.name] if loss.strength is None else loss.strength


def _soft(targets: Targets) -> Tensor:
    assert targets.soft is not None  # Loss.needs_soft has asked for it
    return targets.soft


def _kl_to_uniform(log_p: Tensor) -> Tensor:
    """KL(p || U) = log C - H(p), (M, C) -> (M,)."""
    return (log_p.exp() * log_p).sum(dim=-1) + float(np.log(log_p.shape[-1]))


def _divergence(logits: Tensor, soft: Tensor) -> Tensor:
    """The alignment term KL(p_L || p_S), (M,)."""
    return F.kl_div(torch.log_softmax(logits, dim=-1), soft, reduction="none").sum(dim=-1)
