"""The losses and gates that Gatekeeper is compared with, each against its definition."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from models.errors import InputError
from models.gatekeeper import GatekeeperLoss
from models.numbers.metrics import auroc
from models.training.gates import fit_posthoc_head, fit_quantile_gate
from models.training.losses import LOSSES, STRENGTHS, Loss, Targets

COUNT, CLASSES = 40, 7


def batch(seed: int = 0) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(COUNT, CLASSES, generator=generator, dtype=torch.float32) * 3
    labels = torch.where(
        torch.rand(COUNT, generator=generator) < 0.6,
        logits.argmax(dim=-1),
        torch.randint(0, CLASSES, (COUNT,), generator=generator),
    )
    soft = torch.softmax(torch.randn(COUNT, CLASSES, generator=generator) * 2, dim=-1)
    return logits.requires_grad_(), Targets(labels, soft, torch.rand(COUNT, generator=generator) < 0.5)


def by_hand(  # noqa: C901  a branch for each loss
    name: str, logits: torch.Tensor, targets: Targets, alpha: float, strength: float
) -> float:
    """Each loss by its formula, item by item, in double precision."""
    z, soft = logits.detach().double().numpy(), targets.soft.double().numpy()  # type: ignore[union-attr]
    total = 0.0
    for row, (label, easy) in enumerate(zip(targets.labels.tolist(), targets.easy.tolist(), strict=True)):  # type: ignore[union-attr]
        p = np.exp(z[row] - z[row].max())
        p /= p.sum()
        kl = np.log(CLASSES) - entropy(p)
        cross = -np.log(p[label])
        right = p.argmax() == label
        if name == "cross-entropy":
            total += cross
        elif name == "confidence-penalty":
            total += cross + strength * kl
        elif name == "label-smoothing":
            smooth = np.full(CLASSES, strength / CLASSES)
            smooth[label] += 1 - strength
            total += -(smooth * np.log(p)).sum()
        elif name == "focal":
            total += (1 - p[label]) ** strength * cross
        elif name == "gatekeeper":
            total += alpha * cross if right else (1 - alpha) * kl
        elif name == "outlier-exposure":
            total += alpha * cross if right else (1 - alpha) * -(np.log(CLASSES) + np.log(p).mean())
        elif name == "static-partition":
            total += alpha * cross if easy else (1 - alpha) * kl
        elif name == "soft-gatekeeper":
            agrees = p.argmax() == soft[row].argmax()
            total += alpha * -(soft[row] * np.log(p)).sum() if agrees else (1 - alpha) * kl
        elif name == "distillation":
            softened = soft[row] ** 0.5 / (soft[row] ** 0.5).sum()
            warm = np.exp(z[row] / 2) / np.exp(z[row] / 2).sum()
            total += 0.5 * cross + 0.5 * 4 * entropy(softened, warm)
    return total / COUNT


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_and_has_a_gradient(name: str) -> None:
    logits, targets = batch()
    loss = Loss(name, alpha=0.3)
    value = loss(logits, targets)
    assert value.item() == pytest.approx(by_hand(name, logits, targets, 0.3, STRENGTHS.get(name, 0.0)), rel=1e-5)
    value.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up_to_their_batch(name: str) -> None:
    """The divisor counts the whole accumulated batch, whatever the sizes of its parts."""
    logits, targets = batch(1)
    loss = Loss(name, alpha=0.7, alignment=0.2)
    parts = [torch.arange(0, 3), torch.arange(3, 29), torch.arange(29, COUNT)]
    together = sum(loss(logits[rows], targets.at(rows), COUNT) for rows in parts)
    torch.testing.assert_close(together, loss(logits, targets))


def test_the_alignment_term_is_added_with_its_weight() -> None:
    logits, targets = batch(2)
    plain, aligned = (Loss("gatekeeper", 0.5, alignment=weight)(logits, targets) for weight in (0.0, 0.25))
    assert targets.soft is not None
    divergence = torch.nn.functional.kl_div(logits.log_softmax(-1), targets.soft, reduction="batchmean")
    torch.testing.assert_close(aligned - plain, 0.25 * divergence)
    torch.testing.assert_close(plain, GatekeeperLoss(0.5)(logits, targets.labels))


@pytest.mark.parametrize("name", ["confidence-penalty", "label-smoothing", "focal"])
def test_without_strength_they_are_cross_entropy(name: str) -> None:
    logits, targets = batch(3)
    torch.testing.assert_close(Loss(name, strength=0.0)(logits, targets), Loss("cross-entropy")(logits, targets))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "hinge"}, "unknown loss"),
        ({"alpha": 1.1}, "--alpha"),
        ({"alpha": float("nan")}, "--alpha"),
        ({"strength": 1.0}, "--strength is for"),
        ({"name": "focal", "strength": -1.0}, "--strength"),
        ({"name": "label-smoothing", "strength": 1.0}, "below 1"),
        ({"alignment": -0.1}, "--alignment"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Loss(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", [fit_posthoc_head, fit_quantile_gate])
def test_a_learned_gate_finds_what_max_softmax_cannot_see(fit: object) -> None:
    """Here one class is always wrong, and an answer whose rest is flat is right however low its maximum."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4_000, CLASSES)).astype(np.float32) * 2
    wrong = logits.argmax(axis=1) == 3 if fit is fit_posthoc_head else logits.std(axis=1) < 1.9
    correct = (~wrong ^ (generator.uniform(size=4_000) < 0.05)).astype(np.float64)
    gate = fit(logits[:2_000], correct[:2_000])  # type: ignore[operator]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert (
        auroc(gate(logits[2_000:]), correct[2_000:])
        > auroc(p.max(axis=1)[2_000:].astype(float), correct[2_000:]) + 0.05
    )
    assert (fit(logits, np.ones(4_000))(logits) == 0).all()  # type: ignore[operator]
