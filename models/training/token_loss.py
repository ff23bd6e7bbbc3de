"""The losses of an answer's tokens from hidden states and output layer, without the logits over the vocabulary.

A language model's logits are (positions, V) numbers: half a gigabyte for 2,000 positions of a vocabulary of 49,152, and
a training step holds several such arrays. Here they exist for a few rows at a time; the gradient is computed with the
value, as in Liger's fused cross-entropy, and what is kept is a gradient for each hidden state.

With z the logits of a position, p = softmax(z), H its entropy, c whether argmax z is the label y, and N the number of
positions that count (arXiv 2502.19335, equations 4 and 5 on tokens):

    L     = 1/N sum [ c alpha CE(p, y) + (1 - c) (1 - alpha) (log V - H) ]
    dL/dz = 1/N [ c alpha (p - e_y) + (1 - c) (1 - alpha) p (log p + H) ]
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 8 * 1024**2  # of the logits that are there at once
LOWEST = -1e30  # in the place of -inf: a masked entry's p is 0, and 0 * -inf is no number
FEWEST_ROWS = 96  # the gradient of a large output layer is read and written for each chunk


def token_loss(  # noqa: PLR0913  as torch's losses: what is rare has a default
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    alpha: float | None = None,
    normalize_kl: bool = False,
    ignore_index: int = -100,
    num_classes: int | None = None,
    softcap: float | None = None,
    num_items: Tensor | int | None = None,
    soft: "SoftTargets | None" = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """The loss of a batch of answers, a scalar.

    hidden: (N, E) or (B, T, E), as the output layer takes them. weight: (V, E), bias: (V,). labels: (N,) or (B, T),
    already aligned with the hidden states; those that are ignore_index leave numerator and denominator.
    alpha: of the Gatekeeper loss; None: cross-entropy on every position. normalize_kl: KL / log V, in [0, 1].
    num_classes: how many of the V entries are tokens; the rest takes no part. softcap: logits become
    softcap * tanh(logits / softcap), as in Gemma 2. num_items: the divisor, where this batch is one of several that are
    accumulated; default: its own number of labels that count. soft: the large model's probabilities q as the target:
    right means argmax p = argmax q, and CE(q, p) is in the place of CE. chunk_rows: rows at once; default: CHUNK_BYTES.

    Works in float32, float64 stays so; equal to the dense loss (models.gatekeeper) to rounding. Logits of -inf add
    nothing. Autocast does not reach it. Under torch.no_grad no gradient is computed; a second derivative is not there:
    create_graph raises RuntimeError. Raises ValueError for shapes, types or labels that do not fit.
    """
    _check(hidden, weight, labels, bias, alpha, softcap, chunk_rows)
    if soft is not None and alpha is None:
        raise ValueError("soft targets are of the Gatekeeper loss: give alpha")
    classes = weight.shape[0] if num_classes is None else num_classes
    if not 2 <= classes <= weight.shape[0]:
        raise ValueError(f"{classes} classes do not fit an output layer of {weight.shape[0]} entries")
    counted = labels != ignore_index
    hidden, labels = hidden[counted], labels[counted]
    if labels.numel() and not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must be in [0, {classes}) or the ignore index {ignore_index}")
    if soft is not None:
        soft.check(labels.numel(), classes)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    rows = chunk_rows or _even(labels.numel(), max(FEWEST_ROWS, CHUNK_BYTES // (classes * wide.itemsize)))
    divisor = max(labels.numel(), 1) if num_items is None else num_items
    kl_scale = 1.0 / math.log(classes) if normalize_kl else 1.0
    kind = _Kind(alpha, classes, kl_scale, softcap, rows, divisor, torch.is_grad_enabled(), soft)
    loss: Tensor = _Fused.apply(hidden, weight, bias, labels, kind)  # type: ignore[no-untyped-call]  # torch's
    return loss


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    alpha: float | None,
    softcap: float | None,
    chunk_rows: int | None,
) -> None:
    """Raise ValueError for shapes, types and numbers that do not fit."""
    if (
        hidden.dim() not in (2, 3)
        or hidden.shape[:-1] != labels.shape
        or weight.dim() != 2
        or hidden.shape[-1] != weight.shape[1]
    ):
        raise ValueError(
            "expected hidden states (N, E) or (B, T, E), labels (N,) or (B, T) and a weight (V, E); got "
            f"{tuple(hidden.shape)}, {tuple(labels.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"a bias for {weight.shape[0]} entries is ({weight.shape[0]},), not {tuple(bias.shape)}")
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    if not hidden.is_floating_point() or labels.is_floating_point():
        raise ValueError(f"expected floating hidden states and integer labels, got {hidden.dtype} and {labels.dtype}")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap must be above 0, not {softcap}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, not {chunk_rows}")


def _even(total: int, most: int) -> int:
    """Rows of a chunk, for the fewest chunks of at most `most`, evenly filled: a short last one costs a whole pass."""
    return math.ceil(total / max(1, math.ceil(total / most))) or 1


@dataclass(frozen=True)
class SoftTargets:
    """The large model's hidden states at the positions that count, (N, E), in their order, and its output layer:
    weight (V, E), bias (V,). No gradient reaches them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def check(self, positions: int, classes: int) -> None:
        """Raise ValueError where there are too few positions or entries, or positions too many."""
        if len(self.hidden) != positions or len(self.weight) < classes:
            raise ValueError(
                f"soft targets have {len(self.hidden)} positions and {len(self.weight)} entries; the loss has "
                f"{positions} positions and {classes} classes"
            )

    def probabilities(self, part: slice, classes: int, wide: torch.dtype) -> Tensor:
        """q of some positions, (M, classes)."""
        logits = torch.nn.functional.linear(
            self.hidden[part].to(wide),
            self.weight[:classes].to(wide),
            None if self.bias is None else self.bias[:classes].to(wide),
        )
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return torch.softmax(logits, dim=-1)


@dataclass(frozen=True)
class _Kind:
    """What of the loss has no gradient."""

    alpha: float | None
    classes: int
    kl_scale: float
    softcap: float | None
    rows: int
    divisor: Tensor | int
    differentiable: bool  # within a Function's forward it can no longer be asked: grad mode is always off there
    soft: SoftTargets | None = None


class _Fused(torch.autograd.Function):
    """The loss; its gradients are computed on the way forward, where they are wanted."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kind: _Kind) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(hidden, weight, bias, labels)
        wanted = ctx.needs_input_grad[:3] if kind.differentiable else (False,) * 3
        loss, ctx.gradients = _loss_and_gradients(hidden, weight, bias, labels, kind, wanted)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Scaled in place and before they are rounded: a copy of an output layer's gradient would double what it
        takes, and a small fp16 gradient would be 0 before the scale that is meant to save it."""
        if torch.is_grad_enabled():
            raise RuntimeError("token_loss has no second derivative: call backward() or grad() without create_graph")
        hidden, weight, bias, labels = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second time, with retain_graph
            _, gradients = _loss_and_gradients(hidden, weight, bias, labels, ctx.kind, ctx.needs_input_grad[:3])
        if float(scale) != 1.0:
            gradients = [None if found is None else found.mul_(scale) for found in gradients]
        rounded = [
            None if found is None else found.to(like.dtype)
            for found, like in zip(gradients, (hidden, weight, bias), strict=True)
        ]
        return (*rounded, None, None)


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kind: _Kind, wanted: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and its gradients for hidden, weight and bias, those that are wanted, in float32 or float64."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    # Within, the padding of the output layer is left out: a slice outside would cost a copy of its gradient.
    wide_weight = weight[: kind.classes].to(wide)
    wide_bias = None if bias is None else bias[: kind.classes].to(wide)
    total = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.empty_like(hidden, dtype=wide) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
    d_bias = weight.new_zeros(len(weight), dtype=wide) if wanted[2] else None
    # Autocast would round the products, and addmm_ refuses a mixture of types.
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(labels), kind.rows):
            part = slice(start, start + kind.rows)
            states = hidden[part].to(wide)
            logits = states @ wide_weight.T if wide_bias is None else torch.addmm(wide_bias, states, wide_weight.T)
            q = None if kind.soft is None else kind.soft.probabilities(part, kind.classes, wide)
            value, gradient = _chunk(logits, labels[part], q, kind, wanted=any(wanted))
            total += value
            if gradient is None:
                continue
            if d_hidden is not None:
                torch.mm(gradient, wide_weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight[: kind.classes].addmm_(gradient.T, states)
            if d_bias is not None:
                d_bias[: kind.classes] += gradient.sum(dim=0)
            del logits, gradient  # before the next chunk's are there
    gradients = [None if found is None else found.div_(kind.divisor) for found in (d_hidden, d_weight, d_bias)]
    return total / kind.divisor, gradients


def _chunk(
    logits: Tensor, labels: Tensor, q: Tensor | None, kind: _Kind, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """(the sum over some rows, the gradient of the logits before the softcap). logits (M, V) are used up."""
    slope = None
    if kind.softcap is not None:
        logits = logits.div_(kind.softcap).tanh_()
        slope = 1.0 - logits.square()
        logits = logits.mul_(kind.softcap)
    best = logits.argmax(dim=-1, keepdim=True)
    shifted = logits.sub_(logits.gather(-1, best))
    own = shifted.gather(-1, labels[:, None])
    if kind.alpha is None:
        p = shifted.exp_()
        total = p.sum(dim=-1, keepdim=True)
        value = (total.log() - own).sum()
        gradient = p.div_(total).scatter_add_(-1, labels[:, None], torch.full_like(own, -1.0)) if wanted else None
    elif q is None:
        value, gradient = _gatekeeper(shifted, own, best == labels[:, None], kind, labels, wanted=wanted)
    else:
        own = torch.bmm(q[:, None], shifted.clamp(min=LOWEST)[:, :, None])[:, :, 0]
        value, gradient = _gatekeeper(shifted, own, best == q.argmax(dim=-1, keepdim=True), kind, q, wanted=wanted)
    if gradient is not None and slope is not None:
        gradient.mul_(slope)
    return value, gradient


def _gatekeeper(
    shifted: Tensor, own: Tensor, right: Tensor, kind: _Kind, target: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Equations 4 and 5 of some rows: shifted = z - max z (M, V), used up. target: labels (M,) or probabilities (M, V);
    own (M, 1): its entry of shifted, or its mean."""
    assert kind.alpha is not None
    spread = (1.0 - kind.alpha) * kind.kl_scale
    p = shifted.exp()
    total = p.sum(dim=-1, keepdim=True)
    log_total = total.log()
    finite = shifted.clamp_(min=LOWEST)
    # bmm: without an array for the products
    entropy = log_total - torch.bmm(p[:, None], finite[:, :, None])[:, :, 0] / total
    # where() keeps the cross-entropy of a wrong position, which may be infinite, out of the sum
    weighted = kind.alpha * (log_total - own)
    value = torch.where(right, weighted, spread * (math.log(p.shape[-1]) - entropy)).sum()
    if not wanted:
        return value, None
    # right: alpha (p - e_y); wrong: spread p (log p + H)
    factor = finite.add_(entropy - log_total).mul_(spread / total)
    factor[right[:, 0]] = kind.alpha / total[right][:, None]
    gradient = p.mul_(factor)
    weight = right.to(p.dtype).mul_(-kind.alpha)
    if target.dim() == 1:
        gradient.scatter_add_(-1, target[:, None], weight)
    else:
        gradient.addcmul_(target, weight)
    return value, gradient
