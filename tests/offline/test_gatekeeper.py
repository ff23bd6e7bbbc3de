"""The loss against a dense float64 reference written from the paper's equations, item by item."""

import math

import pytest
import torch
from torch import Tensor

from models.gatekeeper import GatekeeperLoss


def reference(logits: Tensor, labels: Tensor, alpha: float, ignore_index: int = -100) -> float:
    """Equations 1-5 as loops over items; divided by the number of items that are not ignored."""
    rows = logits.double().reshape(-1, logits.shape[-1]).tolist()
    total, count = 0.0, 0
    for row, label in zip(rows, labels.reshape(-1).tolist(), strict=True):
        if label == ignore_index:
            continue
        count += 1
        top = max(row)
        normaliser = sum(math.exp(value - top) for value in row)
        p = [math.exp(value - top) / normaliser for value in row]
        if row.index(top) == label:
            total += alpha * -math.log(p[label])
        else:
            total += (1 - alpha) * sum(q * math.log(q * len(p)) for q in p if q > 0)
    return total / max(count, 1)


def batch(*shape: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    labels = torch.where(
        torch.rand(shape[:-1], generator=generator) < 0.5,
        logits.argmax(-1),
        torch.randint(0, shape[-1], shape[:-1], generator=generator),
    )
    return logits, labels


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 2), (64, 10), (8, 150), (4, 7, 33)])
def test_equals_the_equations(alpha: float, shape: tuple[int, ...]) -> None:
    logits, labels = batch(*shape)
    assert GatekeeperLoss(alpha)(logits, labels).item() == pytest.approx(reference(logits, labels, alpha), rel=1e-12)


def test_ignored_positions_leave_numerator_and_denominator() -> None:
    logits, labels = batch(4, 6, 9)
    labels[:, 4:] = -100
    expected = reference(logits[:, :4], labels[:, :4], 0.3)
    assert GatekeeperLoss(0.3)(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    garbage = logits.clone()
    garbage[:, 4:] = float("nan")
    garbage.requires_grad_()
    loss = GatekeeperLoss(0.3)(garbage, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert garbage.grad is not None
    assert torch.isfinite(garbage.grad[:, :4]).all()
    assert (garbage.grad[:, 4:] == 0).all()


def test_all_correct_is_weighted_cross_entropy() -> None:
    logits, _ = batch(16, 5)
    labels = logits.argmax(-1)
    expected = 0.7 * torch.nn.functional.cross_entropy(logits, labels).item()
    assert GatekeeperLoss(0.7)(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_all_wrong_is_weighted_distance_from_uniform() -> None:
    logits, _ = batch(16, 5)
    p = logits.softmax(-1)
    expected = 0.3 * (math.log(5) + (p * p.log()).sum(-1)).mean().item()
    assert GatekeeperLoss(0.7)(logits, logits.argmin(-1)).item() == pytest.approx(expected, rel=1e-12)


def test_all_ignored_is_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = GatekeeperLoss(0.5)(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("direction", ["p_u", "u_p"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4)])
def test_gradient_is_the_derivative(direction: str, shape: tuple[int, ...]) -> None:
    logits, labels = batch(*shape, scale=1.0)
    loss = GatekeeperLoss(0.4, kl_direction=direction, normalize_kl=True)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


def test_gradient_has_the_closed_form() -> None:
    """dz = 1/N [c alpha (p - e_y) + (1 - c)(1 - alpha) p (log p + H)]."""
    logits, labels = batch(12, 6)
    logits.requires_grad_()
    GatekeeperLoss(0.3)(logits, labels).backward()
    p = logits.detach().softmax(-1)
    correct = (logits.argmax(-1) == labels).double().unsqueeze(-1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    one_hot = torch.nn.functional.one_hot(labels, 6)
    expected = (correct * 0.3 * (p - one_hot) + (1 - correct) * 0.7 * p * (p.log() + entropy)) / 12
    torch.testing.assert_close(logits.grad, expected)


def test_the_direction_is_p_to_uniform() -> None:
    """A published reproduction has KL(U||p): on a confident error it is far larger."""
    logits = torch.tensor([[9.0, 0.0, 0.0]])
    wrong = torch.tensor([1])
    ours = GatekeeperLoss(0.0)(logits, wrong).item()
    other = GatekeeperLoss(0.0, kl_direction="u_p")(logits, wrong).item()
    assert ours == pytest.approx(reference(logits, wrong, 0.0), rel=1e-5)
    assert ours < math.log(3) < other


def test_both_sums_are_divided_by_the_whole_batch() -> None:
    """A published reproduction divides each sum by its own subset: one wrong item of ten then weighs as all nine."""
    logits, _ = batch(10, 4)
    labels = logits.argmax(-1)
    labels[0] = (labels[0] + 1) % 4
    per_item = [reference(logits[i : i + 1], labels[i : i + 1], 0.5) for i in range(10)]
    by_subset = per_item[0] + sum(per_item[1:]) / 9
    loss = GatekeeperLoss(0.5)(logits, labels).item()
    assert loss == pytest.approx(sum(per_item) / 10, rel=1e-12)
    assert loss != pytest.approx(by_subset, rel=0.05)


def test_micro_batches_add_up_to_the_batch() -> None:
    logits, labels = batch(12, 6)
    loss = GatekeeperLoss(0.5)
    parts = sum(loss(logits[i : i + 4], labels[i : i + 4], num_items=12) for i in (0, 4, 8))
    torch.testing.assert_close(parts, loss(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_fp32(dtype: torch.dtype) -> None:
    logits, labels = batch(32, 150)
    low = logits.to(dtype).requires_grad_()
    loss = GatekeeperLoss(0.5)(low, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(low.detach(), labels, 0.5), rel=1e-5)
    assert low.grad is not None
    assert low.grad.dtype == dtype


# Not u_p with a finite fill: KL(U||p) is truly huge there.
@pytest.mark.parametrize(
    ("direction", "fill"), [("p_u", -math.inf), ("u_p", -math.inf), ("p_u", torch.finfo(torch.float32).min)]
)
def test_masked_classes_keep_loss_and_gradient_finite(direction: str, fill: float) -> None:
    logits = torch.randn(8, 6)
    logits[:, 4:] = fill
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])  # two of them are masked themselves
    logits.requires_grad_()
    loss = GatekeeperLoss(0.5, kl_direction=direction)(logits, labels)  # type: ignore[arg-type]
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_vocabulary_padding_takes_no_part() -> None:
    logits, labels = batch(5, 7, 20)
    padded = torch.cat([logits, torch.full((5, 7, 12), 1e4, dtype=torch.float64)], dim=-1)
    expected = GatekeeperLoss(0.5)(logits, labels)
    torch.testing.assert_close(GatekeeperLoss(0.5, num_classes=20)(padded, labels), expected)


def test_normalised_divergence_is_one_on_a_certain_error() -> None:
    logits = torch.tensor([[80.0] + [0.0] * 9])
    assert GatekeeperLoss(0.0, normalize_kl=True)(logits, torch.tensor([3])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        GatekeeperLoss(alpha)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(4, dtype=torch.long), "expected logits"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "expected logits"),
        (torch.zeros(3, 4), torch.zeros(3), "integer labels"),
        (torch.zeros(3, 4), torch.tensor([0, 1, 4]), "labels must be"),
        (torch.zeros(3, 4), torch.tensor([0, 1, -1]), "labels must be"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), "classes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatekeeperLoss(0.5)(logits, labels)
