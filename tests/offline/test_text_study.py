"""`gatekeeper compare` on prompts and answers: every method and gate, resumable, and what a gate learns from."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.text_models import WORDS, write_tiny_llama

from models.inference.generation.traces import SCORES, Trace
from models.study.findings import find
from models.study.tables import as_table
from models.study.text_answers import LEARNED, TextAnswers
from models.study.text_study import INSTRUCTIONS
from service.cli import main

SPLITS = ("select", "calibrate", "test")


def write_rows(path: Path) -> Path:
    rows = [{"prompt": f"{one} {two}", "answer": one} for one in WORDS[:8] for two in WORDS[:8]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_is_compared_and_nothing_is_made_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    model = write_tiny_llama(tmp_path / "model", chat=True)
    output = tmp_path / "out"
    command = ["compare", "--data", str(data), "--model", str(model), "--large", "oracle", "--seeds", "0"]
    command += ["--alpha", "0.3", "--epochs", "2", "--tuning-epochs", "1", "--batch-size", "8", "--output", str(output)]
    assert main(command) == 0
    printed, said = capsys.readouterr()
    methods = ["untuned", *INSTRUCTIONS, "control", "gatekeeper 0.3"]
    for name in (*methods, *SCORES, *LEARNED):
        assert f"| {name} | " in printed
    assert [row["name"] for row in json.loads((output / "study.json").read_text())["methods"]] == methods
    assert "s_d perfect" in printed
    assert "merged" not in printed
    assert (said.count("2 epochs of"), said.count("1 epochs of")) == (1, 2)
    for picture in ("study.png", "curves.png"):
        assert (output / picture).read_bytes()[:4] == b"\x89PNG"
    assert not list((output / "work").glob("seed-?/second-*"))
    assert main(command) == 0
    again, said = capsys.readouterr()
    assert again == printed
    assert "epochs of" not in said

    # Half of one split's drafts are lost: that method is trained again, the rest is there.
    kept = min((output / "drafts").glob("drafts-second-*-test.jsonl"))
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"place"')
    assert main(command) == 0
    again, said = capsys.readouterr()
    assert again == printed
    assert said.count("1 epochs of") == 1


@pytest.mark.slow
def test_a_net_from_nothing_is_given_no_instructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    quick = ["--rows", "16", "--epochs", "1", "--tuning-epochs", "1", "--alpha", "0.5", "--seeds", "0"]
    command = ["compare", "--data", str(data), "--model", "tiny-decoder", "--large", "oracle", *quick]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "| control | " in printed
    assert not any(name in printed for name in INSTRUCTIONS)
    assert main([*command, "--losses", "focal", "--output", str(tmp_path / "out")]) == 2
    assert "--losses is for models that answer with labels" in capsys.readouterr().err


def answers(seed: int, skill: float, count: int = 400, *, graded: bool = False) -> TextAnswers:
    """Half of the answers are right; the surer the tokens, the greater the skill."""
    generator = np.random.default_rng(seed)
    traces, correct, states = {}, {}, {}
    for split in SPLITS:
        right = generator.uniform(size=count) < 0.5
        entropy = np.exp(generator.normal(size=(count, 3)) - skill * right[:, None])
        traces[split] = [Trace((1, 2, 3), -row, row, True) for row in entropy]
        grade = np.where(right, generator.uniform(0.6, 1.0, count), generator.uniform(0.0, 0.4, count))
        correct[split] = grade if graded else right.astype(np.float64)
        states[split] = np.column_stack([right + generator.normal(size=count), generator.normal(size=count)])
    return TextAnswers(traces, correct, {split: np.ones(count) for split in SPLITS}, states)


def test_what_a_gate_has_to_learn_it_learns_on_calibrate() -> None:
    one = answers(0, 1.0)
    swapped = {**one.correct, "calibrate": 1.0 - one.correct["calibrate"]}
    other = TextAnswers(one.traces, swapped, one.large, one.states)
    for gate in LEARNED:
        ranks = [np.corrcoef(some.confidence(gate, "test"), one.correct["test"])[0, 1] for some in (one, other)]
        assert ranks[0] > 0.2
        assert ranks[1] < -0.2
    nothing = TextAnswers(one.traces, {split: np.ones(400) for split in SPLITS}, one.large, one.states)
    for gate in LEARNED:
        assert np.ptp(nothing.confidence(gate, "test")) == 0


def test_what_the_model_declines_is_deferred_first() -> None:
    one = answers(0, 1.0)
    declined = {split: np.arange(400) % 4 == 0 for split in SPLITS}
    other = TextAnswers(one.traces, one.correct, one.large, one.states, declined)
    found, plain = other.confidence("sum_log_prob", "test"), one.confidence("sum_log_prob", "test")
    assert found[declined["test"]].max() < found[~declined["test"]].min()
    np.testing.assert_array_equal(np.argsort(found[declined["test"]]), np.argsort(plain[declined["test"]]))


@pytest.mark.slow
def test_grades_have_pearsons_r_in_the_place_of_an_overlap() -> None:
    found = find({"control": [answers(0, 0.5, graded=True)], "gatekeeper 0.5": [answers(0, 2.0, graded=True)]}, (0.5,))
    assert found.graded
    table = as_table(found)
    assert "Pearson's r" in table
    assert "AUROC" not in table
    rows = {row.name: row.on_test["pearson"].value for row in found.methods}
    assert rows["gatekeeper 0.5"] > rows["control"] > 0.1
    binary = find({"control": [answers(0, 0.5)]}, ())
    assert "s_o | AUROC" in as_table(binary)
    assert binary.methods[0].on_test["s_d"].value == binary.methods[0].on_test["s_d_perfect"].value
