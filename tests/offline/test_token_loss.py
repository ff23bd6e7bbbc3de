"""The fused loss of an answer's tokens is the dense one: value, gradients, masks, padding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.gatekeeper import GatekeeperLoss
from models.training import token_loss as module
from models.training.losses import Loss, Targets
from models.training.token_loss import SoftTargets, token_loss

ENTRIES, SIZE = 50, 8
ALPHAS = (None, 0.0, 0.3, 1.0)


def batch(
    rows: int = 37, classes: int = ENTRIES, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, labels: a third of them right, a fifth ignored."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, SIZE, generator=generator, dtype=torch.float64) * 2
    weight = torch.randn(ENTRIES, SIZE, generator=generator, dtype=torch.float64)
    bias = torch.randn(ENTRIES, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[1::3] = (hidden @ weight.T + bias)[1::3, :classes].argmax(dim=-1)
    labels[::5] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels


def dense(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, classes: int, alpha: float | None, **kind: Any
) -> Tensor:
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    softcap = kind.get("softcap")
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits[..., :classes]
    if alpha is None:
        return cross_entropy(logits, labels)
    loss: Tensor = GatekeeperLoss(alpha, normalize_kl=kind.get("normalize_kl", False))(logits, labels)
    return loss


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_it_is_the_dense_loss(alpha: float | None, softcap: float | None, chunk_rows: int) -> None:
    classes = 45
    hidden, weight, bias, labels = batch(classes=classes)
    for with_bias in (False, True):
        ours = [part.clone().requires_grad_() for part in (hidden, weight, bias)]
        theirs = [part.clone().requires_grad_() for part in (hidden, weight, bias)]
        found = token_loss(
            ours[0],
            ours[1],
            labels,
            bias=ours[2] if with_bias else None,
            alpha=alpha,
            num_classes=classes,
            softcap=softcap,
            chunk_rows=chunk_rows,
        )
        wanted = dense(theirs[0], theirs[1], theirs[2] if with_bias else None, labels, classes, alpha, softcap=softcap)
        assert torch.allclose(found, wanted, atol=1e-12)
        found.backward()  # type: ignore[no-untyped-call]
        wanted.backward()  # type: ignore[no-untyped-call]
        for one, other in zip(ours[: 2 + with_bias], theirs, strict=False):
            assert torch.allclose(one.grad, other.grad, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_soft_targets_are_those_of_the_dense_loss(softcap: float | None, chunk_rows: int) -> None:
    classes = 45
    hidden, weight, _, labels = batch(classes=classes)
    counted = labels != -100
    teacher, entries = hidden[counted, :6], weight[:47, :6]  # smaller, with other padding, and of one mind now and then
    logits = teacher @ entries.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    q = torch.softmax(logits[:, :classes], dim=-1)
    ours = [part.clone().requires_grad_() for part in (hidden, weight)]
    theirs = [part.clone().requires_grad_() for part in (hidden, weight)]
    soft = SoftTargets(teacher, entries, softcap=softcap)
    found = token_loss(ours[0], ours[1], labels, alpha=0.3, num_classes=classes, chunk_rows=chunk_rows, soft=soft)
    own = (theirs[0] @ theirs[1].T)[counted][:, :classes]
    assert 0.1 < (own.argmax(dim=-1) == q.argmax(dim=-1)).double().mean() < 0.9
    expected = Loss("soft-gatekeeper", 0.3)(own.float(), Targets(labels[counted], q.float()))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_is_near_and_half_types_are_computed_in_it(alpha: float | None) -> None:
    hidden, weight, _, labels = batch(dtype=torch.float32)
    wanted = dense(hidden, weight, None, labels, ENTRIES, alpha)
    assert torch.allclose(token_loss(hidden, weight, labels, alpha=alpha), wanted, rtol=1e-5)
    half = hidden.bfloat16().requires_grad_(), weight.bfloat16()
    found = token_loss(*half, labels, alpha=alpha)
    assert found.dtype == torch.float32
    assert torch.allclose(found, dense(half[0].float(), half[1].float(), None, labels, ENTRIES, alpha), rtol=1e-5)
    found.backward()  # type: ignore[no-untyped-call]
    assert half[0].grad is not None
    assert half[0].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_its_gradient_is_the_slope(alpha: float | None, softcap: float | None) -> None:
    hidden, weight, bias, labels = batch(rows=6)

    def loss(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
        return token_loss(one, two, labels, bias=three, alpha=alpha, softcap=softcap, normalize_kl=True, chunk_rows=2)

    given = [part.requires_grad_() for part in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(loss, given)  # type: ignore[no-untyped-call]


def test_accumulated_batches_are_one_batch_and_a_scale_scales() -> None:
    hidden, weight, _, labels = batch(rows=40)
    counted = int((labels != -100).sum())
    whole, parts = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    (3.0 * token_loss(whole, weight, labels, alpha=0.3)).backward()  # type: ignore[no-untyped-call]
    for rows in (slice(0, 13), slice(13, 40)):
        loss = token_loss(parts[rows], weight, labels[rows], alpha=0.3, num_items=torch.tensor(counted))
        (3.0 * loss).backward()
    assert torch.allclose(whole.grad, parts.grad, atol=1e-12)  # type: ignore[arg-type]


def test_a_frozen_output_layer_gets_no_gradient_and_no_grad_means_none() -> None:
    hidden, weight, _, labels = batch()
    token_loss(hidden.requires_grad_(), weight, labels, alpha=0.3).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is None
    with torch.no_grad():
        assert not token_loss(hidden, weight, labels, alpha=0.3).requires_grad


def test_no_grad_computes_no_gradient_of_a_trained_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, labels = batch()
    weight.requires_grad_()
    wanted: list[tuple[bool, ...]] = []
    compute = module._loss_and_gradients

    def seen(*given: Any) -> Any:
        wanted.append(given[-1])
        return compute(*given)

    monkeypatch.setattr(module, "_loss_and_gradients", seen)
    token_loss(hidden, weight, labels, alpha=0.3)
    with torch.no_grad():
        token_loss(hidden, weight, labels, alpha=0.3)
    assert wanted == [(False, True, False), (False, False, False)]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_autocast_leaves_it_in_float32(alpha: float | None) -> None:
    hidden, weight, _, labels = batch(dtype=torch.float32)
    ours = [part.clone().requires_grad_() for part in (hidden, weight)]
    theirs = [part.clone().requires_grad_() for part in (hidden, weight)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_loss(*ours, labels, alpha=alpha)
    found.backward()  # type: ignore[no-untyped-call]
    dense(*theirs, None, labels, ENTRIES, alpha).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1024.0, 65536.0])  # GradScaler begins with 65536, which is no fp16 number
def test_fp16_gradients_are_scaled_before_they_are_rounded(scale: float) -> None:
    hidden, weight, _, labels = batch(dtype=torch.float16)
    ours = [part.clone().requires_grad_() for part in (hidden, weight)]
    theirs = [part.float().requires_grad_() for part in (hidden, weight)]
    items = 100_000  # without the scale, many of the gradients are below the least fp16 number
    (scale * token_loss(*ours, labels, alpha=0.3, num_items=items)).backward()  # type: ignore[no-untyped-call]
    loss = GatekeeperLoss(0.3)(theirs[0] @ theirs[1].T, labels, num_items=items)
    (scale * loss).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=2e-3, atol=1e-6)


def test_a_second_backward_is_the_first_and_a_second_derivative_is_refused() -> None:
    hidden, weight, _, labels = batch()
    loss = token_loss(hidden.requires_grad_(), weight.requires_grad_(), labels, alpha=0.3)
    first = torch.autograd.grad(2.0 * loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(2.0 * loss, (hidden, weight), retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(("total", "most", "rows"), [(450, 96, 90), (96, 96, 96), (97, 96, 49), (5, 96, 5), (0, 96, 1)])
def test_chunks_are_even(total: int, most: int, rows: int) -> None:
    assert module._even(total, most) == rows


def test_answers_in_a_batch_of_sequences() -> None:
    hidden, weight, _, labels = batch(rows=36)
    flat = token_loss(hidden, weight, labels, alpha=0.3)
    assert torch.equal(token_loss(hidden.view(4, 9, SIZE), weight, labels.view(4, 9), alpha=0.3), flat)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_logits_and_nothing_that_counts_are_finite(alpha: float | None) -> None:
    hidden, weight, bias, labels = batch(dtype=torch.float32)
    bias[3], labels[labels == 3] = -torch.inf, 4
    saturated = (hidden * 1e3).requires_grad_()
    loss = token_loss(saturated, weight, labels, bias=bias, alpha=alpha)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert saturated.grad is not None
    assert saturated.grad.isfinite().all()
    nothing = hidden.requires_grad_()
    loss = token_loss(nothing, weight, torch.full_like(labels, -100), alpha=alpha)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0.0
    assert nothing.grad is not None
    assert not nothing.grad.any()


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, bias, labels = batch()
    for given, words in (
        ((hidden[:5], weight, labels), "expected hidden states"),
        ((hidden, weight[:, :4], labels), "expected hidden states"),
        ((hidden, weight, labels.clamp(min=0) + ENTRIES), "labels must be in"),
        ((hidden, weight, labels.double()), "integer labels"),
        ((hidden.long(), weight, labels), "floating hidden states"),
        ((hidden[1], weight, labels[1]), "expected hidden states"),
    ):
        with pytest.raises(ValueError, match=words):
            token_loss(*given)
    for kind, words in (
        ({"alpha": 1.5}, "alpha must be in"),
        ({"bias": bias[:4]}, "a bias for 50 entries"),
        ({"num_classes": 51}, "51 classes do not fit"),
        ({"softcap": 0.0}, "softcap must be above 0"),
        ({"chunk_rows": -1}, "chunk_rows must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            token_loss(hidden, weight, labels, **kind)  # type: ignore[arg-type]
