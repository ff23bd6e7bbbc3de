"""The losses of both stages on an answer's tokens, and what a stage has made of them on held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from models.errors import InputError
from models.training.stage import Objective
from models.training.text.backbone import IGNORED, Row, TextBackbone
from models.training.text.teacher import ROW_NUMBERS, Teacher
from models.training.token_loss import token_loss

LOSSES = ("gatekeeper", "soft-gatekeeper", "cross-entropy")
MEASURED_ROWS = 256  # positions whose logits are there at once


@dataclass(frozen=True)
class TokenLoss:
    """alpha: of the Gatekeeper loss; None: cross-entropy, of stage 1 and of the control that is tuned for as long.
    soft: the large model's probabilities are the target."""

    alpha: float | None = None
    normalize_kl: bool = False
    soft: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"--alpha must be in [0, 1], not {self.alpha:g}")

    @property
    def name(self) -> str:
        """Of LOSSES."""
        if self.alpha is None:
            return "cross-entropy"
        return "soft-gatekeeper" if self.soft else "gatekeeper"

    @property
    def in_words(self) -> str:
        """For a line of progress."""
        scaled = ", KL / log V" if self.normalize_kl else ""
        return self.name if self.alpha is None else f"{self.name}, alpha {self.alpha:g}{scaled}"


def objective(
    backbone: TextBackbone, rows: Sequence[Row], loss: TokenLoss, teacher: Teacher | None = None
) -> Objective:
    """A model that writes text towards a loss, without the logits over its vocabulary. Within `backbone.head.taken`.

    teacher: of a soft loss, within its `listening`.
    """

    def batch(numbers: list[int]) -> dict[str, Tensor]:
        found = backbone.batch([rows[number] for number in numbers])
        return found if teacher is None else found | {ROW_NUMBERS: torch.tensor(numbers)}

    def loss_of(_: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        return token_loss(
            backbone.head.hidden(),
            backbone.head.weight,
            labels,
            bias=backbone.head.bias,
            num_classes=backbone.generation.vocabulary,
            softcap=backbone.head.softcap,
            num_items=num_items,
            alpha=loss.alpha,
            normalize_kl=loss.normalize_kl,
            soft=None if teacher is None else teacher.targets(),
        )

    return Objective(backbone.model, len(rows), batch, loss_of)


def measures(backbone: TextBackbone, rows: Sequence[Row], batch_size: int) -> dict[str, float]:
    """Of held-out answers under teacher forcing: how many tokens are right, and how much surer the model is of those.

    token_accuracy; entropy_right and entropy_wrong, mean nats of the positions; entropy_auroc, of the negative
    entropy, right against wrong. What there is nothing of is left out.
    """
    right, entropy = _positions(backbone, rows, batch_size)
    found = {"token_accuracy": float(right.float().mean())}
    for name, part in (("right", entropy[right]), ("wrong", entropy[~right])):
        if len(part):
            found[f"entropy_{name}"] = float(part.mean())
    if 0 < int(right.sum()) < len(right):
        found["entropy_auroc"] = float(roc_auc_score(right.numpy(), -entropy.numpy()))
    return found


def _positions(backbone: TextBackbone, rows: Sequence[Row], batch_size: int) -> tuple[Tensor, Tensor]:
    """(whether it is right, its entropy) of every position of the answers."""
    backbone.model.eval()
    device = next(backbone.model.parameters()).device
    right, entropy = [], []
    lengths = [len(row.prompt["input_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    with torch.inference_mode(), backbone.head.taken():
        for start in range(0, len(order), batch_size):
            batch = backbone.batch([rows[place] for place in order[start : start + batch_size]])
            labels = batch.pop("labels")
            backbone.model(**{name: tensor.to(device) for name, tensor in batch.items()})
            counted = labels != IGNORED
            hidden = backbone.head.hidden()[counted.to(device)]
            wanted_labels = labels[counted]
            for first in range(0, len(hidden), MEASURED_ROWS):
                part, wanted = hidden[first : first + MEASURED_ROWS], wanted_labels[first : first + MEASURED_ROWS]
                log_p = torch.log_softmax(backbone.head.logits(part)[:, : backbone.generation.vocabulary], dim=-1)
                p = log_p.exp()
                right.append(log_p.argmax(dim=-1).cpu() == wanted)
                entropy.append(-torch.xlogy(p, p).sum(dim=-1).cpu())
    return torch.cat(right), torch.cat(entropy)
