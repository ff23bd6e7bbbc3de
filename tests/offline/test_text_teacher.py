"""Soft targets on tokens: the large model's probabilities, where the vocabularies are one."""

import json
from pathlib import Path

import pytest
import torch

from models.bundle import load_bundle
from models.data.prompts.load import load_prompts
from models.training.stage import Machine
from models.training.text.objective import TokenLoss, objective
from models.training.text.teacher import Teacher
from models.training.text.tune import TextRecipe, open_text_tuning
from service.cli import main

QUICK = ("--epochs", "4", "--tuning-epochs", "1", "--batch-size", "8")


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("echoes") / "echoes.jsonl"
    rows = [{"prompt": one + two, "answer": f"{one} {two}"} for one in "abcdef" for two in "abcdef"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(data: Path, *more: object) -> int:
    return main(["tune", "--data", str(data), "--model", "tiny-decoder", *QUICK, *map(str, more)])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, echoes: Path) -> Path:
    """Another seed, the same vocabulary."""
    output = tmp_path_factory.mktemp("large") / "large"
    assert tune(echoes, "--loss", "cross-entropy", "--seed", 7, "--output", output) == 0
    return output


@pytest.mark.slow
def test_a_bundle_says_whose_probabilities_it_was_tuned_on(large: Path, echoes: Path, tmp_path: Path) -> None:
    assert tune(echoes, "--targets-from", large, "--alpha", 0.7, "--output", tmp_path / "small") == 0
    manifest = load_bundle(tmp_path / "small").manifest
    assert (manifest.loss, manifest.alpha) == ("soft-gatekeeper", 0.7)
    assert manifest.training["targets_from"] == load_bundle(large).gate_digest


def test_the_targets_are_of_the_rows_of_the_forward_pass(large: Path, echoes: Path, tmp_path: Path) -> None:
    """Both models are one: every position is right, and the loss is alpha times the entropy."""
    data = load_prompts(str(echoes), None)
    tuning = open_text_tuning(data, TextRecipe("tiny-decoder"), tmp_path, Machine(), print, load_bundle(large))
    backbone, rows = tuning.backbone, [tuning.backbone.row(row.prompt, row.answers[0]) for row in data.train]
    teacher = Teacher(load_bundle(large), data.train, rows)
    backbone.model.load_state_dict(teacher.backbone.model.state_dict())
    aim = objective(backbone, rows, TokenLoss(0.5, soft=True), teacher)
    with teacher.listening(backbone.model), backbone.head.taken(), torch.no_grad():
        for numbers in ([3, 1], [0, 2, 9]):
            batch = aim.batch(numbers)
            assert batch["row_numbers"].tolist() == numbers
            labels = batch.pop("labels")
            backbone.model.eval()(**batch)
            hidden = backbone.head.hidden()[labels != -100]
            log_p = torch.log_softmax(backbone.head.logits(hidden)[:, : backbone.generation.vocabulary], dim=-1)
            entropy = -(log_p.exp() * log_p).sum(dim=-1).mean()
            aim.batch([5, 6])  # as when batches are fetched ahead
            outputs = backbone.model(**batch)
            assert aim.loss(outputs, labels, None).item() == pytest.approx(0.5 * entropy.item(), rel=1e-4)


def test_another_vocabulary_is_refused(large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"{n}", "answer": f"number {n}"} for n in range(40)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert tune(other, "--targets-from", large, "--output", tmp_path / "out") == 2
    assert "the vocabularies of large and tiny-decoder are not one" in capsys.readouterr().err
    assert tune(other, "--targets-from", large, "--loss", "cross-entropy", "--output", tmp_path / "out") == 2
    assert "--targets-from has no effect on cross-entropy" in capsys.readouterr().err
