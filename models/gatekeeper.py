"""The Gatekeeper loss (arXiv 2502.19335, equations 1-5), for classification and token logits.

A correct prediction is pulled towards its label, a wrong one towards the uniform distribution, so that the
confidence of the tuned model tells right answers from wrong ones:

    L        = alpha * L_corr + (1 - alpha) * L_incorr                      (1)
    L_corr   = 1/N sum 1{y  = yhat} CE(p, y)                                (2)
    L_incorr = 1/N sum 1{y != yhat} KL(p || U),  KL(p || U) = log C - H(p)  (3)

N is the whole batch in both sums: dividing each by its own subset is another loss (it gives a handful of wrong
items the weight of all the right ones), and so is KL(U || p), which is offered only for comparison.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

KlDirection = Literal["p_u", "u_p"]


class GatekeeperLoss(nn.Module):
    """Equations 1-3 for logits (N, C); equations 4-5, the same per position, for logits (N, T, V).

    alpha: weight of the correct items, in [0, 1]; lower separates better and costs accuracy.
    ignore_index: labels with this value leave the numerator and the denominator.
    kl_direction: "p_u" is the paper's KL(p || U); "u_p" is the outlier-exposure direction KL(U || p).
    normalize_kl: divide the KL term by log C, so that it lies in [0, 1] whatever the number of classes.
    num_classes: how many of the last dimension's entries are real; what lies beyond is vocabulary padding and
        takes no part, in log C neither. None: all of them.

    Works in fp32 whatever the input type (float64 stays float64) and is finite, gradient included, where logits are
    -inf: such a class has probability 0 and adds nothing to the entropy. "u_p" is infinite there by definition, so
    U is then uniform over the classes that are not masked.
    """

    def __init__(
        self,
        alpha: float,
        *,
        ignore_index: int = -100,
        kl_direction: KlDirection = "p_u",
        normalize_kl: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:  # also refuses NaN
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        if kl_direction not in ("p_u", "u_p"):
            raise ValueError(f"kl_direction must be 'p_u' or 'u_p', not {kl_direction!r}")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        self.alpha = alpha
        self.ignore_index = ignore_index
        self.kl_direction: KlDirection = kl_direction
        self.normalize_kl = normalize_kl
        self.num_classes = num_classes

    def forward(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
        """The loss, a scalar.

        logits: (N, C) or (N, T, V), any floating type. labels: (N,) or (N, T), integers, already aligned with the
        logits (shift them first for a causal model). num_items: the divisor when the batch is one micro-batch of
        several; default is this batch's own number of labels that are not ignored. All ignored gives 0.
        Raises ValueError on shapes, label values or a number of classes that do not fit.
        """
        logits, labels = self._valid_rows(logits, labels)
        divisor = max(logits.shape[0], 1) if num_items is None else num_items
        return self.per_item(logits, labels).sum() / divisor

    def per_item(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted term of each item: logits (M, C), labels (M,) without ignored ones -> (M,)."""
        log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
        correct = logits.argmax(dim=-1) == labels
        cross_entropy = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        # The cross-entropy of a wrong item may be infinite (its label masked); where() keeps it out of the value,
        # and the fill keeps it out of the gradient, where 0 * inf would be NaN.
        cross_entropy = cross_entropy.masked_fill(~correct, 0.0)
        return torch.where(correct, self.alpha * cross_entropy, (1.0 - self.alpha) * self._kl(log_p))

    def _kl(self, log_p: Tensor) -> Tensor:
        masked = log_p == -math.inf
        finite_log_p = log_p.masked_fill(masked, 0.0)
        log_c = math.log(log_p.shape[-1])
        if self.kl_direction == "p_u":
            kl = log_c + (log_p.exp() * finite_log_p).sum(dim=-1)
        else:
            real = (~masked).sum(dim=-1).clamp(min=1)
            kl = -real.to(log_p.dtype).log() - finite_log_p.sum(dim=-1) / real
        return kl / log_c if self.normalize_kl else kl

    def _valid_rows(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if logits.dim() not in (2, 3) or labels.shape != logits.shape[:-1]:
            raise ValueError(
                "expected logits (N, C) with labels (N,), or logits (N, T, V) with labels (N, T); "
                f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        if not logits.is_floating_point() or labels.is_floating_point():
            raise ValueError(f"expected floating logits and integer labels, got {logits.dtype} and {labels.dtype}")
        classes = logits.shape[-1] if self.num_classes is None else self.num_classes
        if not 2 <= classes <= logits.shape[-1]:
            raise ValueError(f"{classes} classes do not fit logits with {logits.shape[-1]} entries")
        logits = logits[..., :classes].reshape(-1, classes)
        labels = labels.reshape(-1)
        valid = labels != self.ignore_index
        if not bool(valid.all()):
            logits, labels = logits[valid], labels[valid]
        if labels.numel() and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"labels must be in [0, {classes}) or the ignore index {self.ignore_index}")
        return logits, labels

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, kl_direction={self.kl_direction!r}, normalize_kl={self.normalize_kl}"
