"""`gatekeeper compare` on tiny data: every method and gate, a cache that a kill does not spoil, and the choice."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny import write_tiny_clinc150

from models.study.findings import find
from models.study.label_answers import GATES, Answers
from models.study.study import OTHERS, Study
from models.study.tables import as_table
from models.training.recipes import COMPARED_IN_WORDS
from service.cli import main


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("study")
    data = ["--data", "clinc150", "--data-dir", str(write_tiny_clinc150(directory / "data"))]
    quick = ["--epochs", "3", "--tuning-epochs", "1", "--batch-size", "16"]
    assert main(["tune", *data, *quick, "--seed", "7", "--output", str(directory / "large")]) == 0
    options = [
        "--large",
        str(directory / "large"),
        "--alpha",
        "0.3,0.7",
        "--seeds",
        "0,1",
        "--losses",
        "focal,soft-gatekeeper",
        "--output",
        str(directory / "out"),
    ]
    return ["compare", *data, *quick, *options]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_everything_is_compared_and_nothing_is_trained_twice(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(command[-1])
    assert main(command) == 0
    printed, said = capsys.readouterr()
    methods = ["untuned", "control", "gatekeeper 0.3", "gatekeeper 0.7", "focal", "soft-gatekeeper"]
    for name in (*methods, *GATES):
        assert f"| {name} | " in printed
    assert said.count("3 epochs of") == 2
    assert said.count("1 epochs of") == 2 * (len(methods) - 1)
    assert f"{2 * len(methods)} of {2 * len(methods)} done" in said
    assert "left" in said
    study = json.loads((output / "study.json").read_text())
    assert [row["name"] for row in study["methods"]] == methods
    for picture in ("study.png", "curves.png"):
        assert (output / picture).read_bytes()[:4] == b"\x89PNG"
    summary = [row["name"] for row in study["summary"]]
    assert summary[:2] == ["untuned", "control"]
    assert any(name.startswith("control, merged") for name in summary)
    assert len(summary) == len(set(summary)) >= 6
    assert printed.strip() == (output / "study.md").read_text().strip()
    assert len(list((output / "work").glob("seed-?/first-*/model.safetensors"))) == 2
    assert not list((output / "work").glob("seed-?/second-*"))

    # One result lost and one half written: those two stages are trained again, and the numbers are the same.
    kept = sorted((output / "logits").glob("second-*.npz"))
    kept[0].unlink()
    kept[1].rename(kept[1].with_suffix(".new"))
    assert main(command) == 0
    again, said = capsys.readouterr()
    assert said.count("1 epochs of") == 2
    assert again == printed
    assert main(command) == 0
    assert "epochs of" not in capsys.readouterr().err

    # One alpha more: stage 1 is there.
    assert main([*command, "--alpha", "0.3,0.5,0.7"]) == 0
    said = capsys.readouterr().err
    assert "3 epochs of" not in said
    assert said.count("1 epochs of") == 2


def test_what_does_not_fit_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str], bundles: Path) -> None:
    for change, words in (
        (["--losses", "hinge"], "--losses takes"),
        (["--large", str(bundles / "clinc150-large")], "labels of clinc150-large"),
        (["--alpha", "2"], "--alpha"),
    ):
        capsys.readouterr()
        assert main([*command, *change, "--output", str(Path(command[-1]).parent / "other")]) == 2
        complaint = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in complaint


def answers(seed: int, skill: float, accuracy: float, count: int = 600) -> Answers:
    """A model of that accuracy whose confidence tells right from wrong the better, the greater its skill."""
    generator = np.random.default_rng(seed)
    logits, labels, large = {}, {}, {}
    for split in ("select", "calibrate", "test"):
        right = generator.uniform(size=count) < accuracy
        label = generator.integers(0, 3, count)
        predicted = np.where(right, label, (label + 1) % 3)
        sure = np.exp(generator.normal(size=count) + skill * np.where(right, 1.0, -1.0))
        logits[split] = (np.eye(3)[predicted] * sure[:, None]).astype(np.float32)
        labels[split] = label
        large[split] = (generator.uniform(size=count) < 0.97).astype(np.float64)
    return Answers(logits, labels, large)


@pytest.mark.slow
def test_the_alpha_that_gains_is_chosen_and_one_that_only_loses_is_refused() -> None:
    def models(skill: float, accuracy: float) -> list[Answers]:
        return [answers(seed, skill, accuracy) for seed in (0, 1)]

    found = find(
        {
            "control": models(0.5, 0.82),
            "gatekeeper 0.1": models(0.5, 0.72),
            "gatekeeper 0.3": models(1.5, 0.81),
        },
        (0.1, 0.3),
    )
    rows = {row.name: row for row in found.methods}
    assert found.chosen == 0.3
    assert found.gates_of == "gatekeeper 0.3"
    assert rows["gatekeeper 0.1"].verdict.startswith("refused: accuracy -0.")
    assert rows["gatekeeper 0.3"].verdict.startswith("gains +0.")
    assert rows["control"].verdict == "the reference"
    gain = rows["gatekeeper 0.3"].on_test["joint"]
    assert gain.difference_low > 0.005
    assert gain.difference == pytest.approx(gain.value - rows["control"].on_test["joint"].value)
    assert rows["control"].on_test["joint"].difference == 0
    nothing = find({"control": models(0.5, 0.82), "gatekeeper 0.1": models(0.5, 0.72)}, (0.1,))
    assert nothing.chosen is None
    assert "none: the control stays" in as_table(nothing)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    """Two models that differ on few items: their difference is known better than either of them."""
    one = answers(0, 0.5, 0.8)
    other = Answers({**one.logits, "test": one.logits["test"] + np.float32(0.0)}, one.labels, one.large)
    found = find({"control": [one], "gatekeeper 0.5": [other]}, (0.5,))
    row = next(row for row in found.methods if row.name == "gatekeeper 0.5")
    joint = row.on_test["joint"]
    assert joint.high - joint.low > 0.01
    assert joint.difference_low == joint.difference_high == 0


def test_equal_answers_do_not_differ_where_confidences_tie() -> None:
    """The same items are drawn for both sides, also among rows of one confidence."""
    one = answers(0, 0.5, 0.8)
    rounded = {split: np.round(logits * 2) for split, logits in one.logits.items()}
    model = Answers(rounded, one.labels, one.large)
    assert len(np.unique(model.confidence("max_softmax", "test"))) < 40
    other = {
        split: np.where(np.arange(len(logits))[:, None] % 2, logits, logits * 3) for split, logits in rounded.items()
    }
    found = find({"control": [model], "gatekeeper 0.5": [Answers(other, one.labels, one.large)]}, (0.5,))
    numbers = next(row for row in found.methods if row.name == "gatekeeper 0.5").on_test
    assert numbers["accuracy"].difference_low == numbers["accuracy"].difference_high == 0
    assert numbers["joint"].difference_low != numbers["joint"].difference_high


def test_a_temperature_changes_no_answer_and_a_learned_gate_is_fitted_on_calibrate() -> None:
    one = answers(3, 1.0, 0.8)
    assert one.right("test").mean() == pytest.approx(0.8, abs=0.03)
    np.testing.assert_array_equal(
        np.argsort(one.confidence("energy", "test")).shape, one.confidence("temperature", "test").shape
    )
    swapped = Answers(one.logits, {**one.labels, "calibrate": (one.labels["calibrate"] + 1) % 3}, one.large)
    assert not np.array_equal(one.confidence("post-hoc head", "test"), swapped.confidence("post-hoc head", "test"))


@pytest.mark.slow
def test_where_both_models_know_something_a_merged_answer_is_better_than_either() -> None:
    """Two models that guess independently: the large one's doubt is settled by the small one."""
    generator = np.random.default_rng(0)
    labels = {split: generator.integers(0, 5, 2_000) for split in ("select", "calibrate", "test")}

    def logits() -> dict[str, np.ndarray]:
        return {
            split: (2.0 * np.eye(5)[label] + generator.normal(size=(2_000, 5))).astype(np.float32)
            for split, label in labels.items()
        }

    small, large = logits(), logits()
    right = {split: (large[split].argmax(axis=1) == labels[split]).astype(np.float64) for split in labels}
    one = Answers(small, labels, right, large)
    assert one.merged(0.0).large["test"].tolist() == right["test"].tolist()
    merged = one.merged(1.0)
    assert merged.large["test"].mean() > right["test"].mean() + 0.03
    assert merged.joint("test") > one.joint("test") + 0.005
    assert merged.confidence("max_softmax", "test").tolist() == one.confidence("max_softmax", "test").tolist()
    row = next(row for row in find({"control": [one]}, ()).summary if "merged" in row.name)
    joint = row.on_test["joint"]
    assert joint.difference_low is not None
    assert joint.difference_low > 0.0
    nothing = Answers(small, labels, right)
    assert [row.name for row in find({"control": [nothing]}, ()).summary if "merged" in row.name] == []


def test_the_methods_are_those_that_were_asked_for() -> None:
    study = Study(None, None, None, (0.5,), (0,), "focal,label-smoothing")  # type: ignore[arg-type]
    assert list(study.methods) == ["untuned", "control", "gatekeeper 0.5", "focal", "label-smoothing"]


def test_help_names_exactly_the_losses_that_compare_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(COMPARED_IN_WORDS) == list(OTHERS)
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    below = capsys.readouterr().out.partition("losses that --losses takes")[2].splitlines()[1:]
    assert [line.split()[0] for line in below if line] == list(OTHERS)


@pytest.mark.parametrize("option", ["--loss", "--strength", "--targets-from", "--alignment", "--restart"])
def test_what_only_tune_takes_is_refused_by_name(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option] if option == "--restart" else [option, "focal"]
    with pytest.raises(SystemExit) as ended:
        main([*command, *given])
    assert ended.value.code == 2
    assert f"{option} is for tune" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert f"{option} " not in capsys.readouterr().out
