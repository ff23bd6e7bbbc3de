"""The whole job for text answers, by its commands, on a file that nobody prepared: tune, calibrate, evaluate."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.text_models import WORDS, write_tiny_llama
from support.tiny import write_tiny_clinc150

from models.bundle import load_bundle
from models.data.prompts.load import load_prompts
from models.errors import BundleError
from models.evaluation.report.entropy_picture import entropy_picture
from models.inference.classifier import load_classifier
from models.replacing import held
from service.cli import main

QUICK = ("--epochs", "1", "--tuning-epochs", "1", "--batch-size", "8")


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word of two letters to its letters."""
    path = tmp_path_factory.mktemp("echoes") / "echoes.jsonl"
    letters = "abcdefgh"
    rows = [{"prompt": one + two, "answer": f"{one} {two}"} for one in letters for two in letters]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, echoes: Path) -> Path:
    """A sweep over two alphas with a model that has learned a little."""
    output = tmp_path_factory.mktemp("sweep") / "sweep"
    command = ("tune", "--data", str(echoes), "--model", "tiny-decoder", "--alpha", "0.5,0.1")
    assert main([*command, "--epochs", "12", "--tuning-epochs", "2", "--batch-size", "8", "--output", str(output)]) == 0
    return output


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_from_a_file_to_a_threshold_in_four_commands(
    tuned: Path, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((tuned / "sweep.json").read_text(encoding="utf-8"))
    assert [row["alpha"] for row in rows] == [0.5, 0.1]
    assert all(0.0 <= row["select_token_accuracy"] <= 1.0 for row in rows)
    bundle = load_bundle(tuned / "alpha-0.5-seed-0")
    assert (bundle.manifest.task, bundle.manifest.runtime) == ("text-generation", "transformers")
    assert not (tuned / "work").exists()
    assert run("calibrate", bundle.directory, "--data", echoes, "--large", "oracle") == 0
    calibrated = load_bundle(bundle.directory)
    assert calibrated.gate_digest == bundle.gate_digest  # the score is the same, the rule beside it decides nothing
    small = calibrated.read_calibration()
    assert small is not None
    assert small.large_correct is not None
    assert small.large_correct.all()
    assert run("calibrate", bundle.directory, "--target-deferral-ratio", "0.3", "--write") == 0
    capsys.readouterr()
    assert (
        run(
            "evaluate",
            bundle.directory,
            "--data",
            echoes,
            "--large",
            "oracle",
            "--output",
            tmp_path / "out",
            "--write-card",
        )
        == 0
    )
    said = capsys.readouterr().out
    card = (bundle.directory / "README.md").read_text(encoding="utf-8")
    assert "text-generation, score negative_predictive_entropy, runtime `transformers`" in card
    assert "test prompts of echoes.jsonl" in card
    assert "with `oracle` as the large model" in card
    assert load_bundle(bundle.directory).manifest.metrics["a_L"] == 1.0
    assert re.search(r"a_L +1\.0000", said)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert set(numbers["by_score"]) >= {"negative_predictive_entropy", "sum_log_prob", "min_log_prob"}
    assert numbers["scorer"] == "exact"
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    assert {"prompt_id", "answer", "reference", "tokens", "confidence", "small_correct"} <= set(table)
    right = [answer == reference for answer, reference in zip(table["answer"], table["reference"], strict=True)]
    assert right == [correct == 1.0 for correct in table["small_correct"]]
    assert (tmp_path / "out" / "report.html").is_file()
    assert not list(tuned.glob("*.work"))
    assert run("evaluate", "--predictions", tmp_path / "out" / "predictions.parquet") == 0


def test_another_score_is_another_gate(tuned: Path, echoes: Path, tmp_path: Path) -> None:
    source, other = tuned / "alpha-0.1-seed-0", tmp_path / "other"
    assert run("calibrate", source, "--data", echoes, "--output", other, "--score", "min_log_prob") == 0
    one, two = load_bundle(source), load_bundle(other)
    assert two.manifest.score == "min_log_prob"
    assert one.gate_digest != two.gate_digest
    found = two.read_calibration()
    assert found is not None
    assert np.median(found.confidence) == two.manifest.default_threshold


def test_a_score_needs_the_drafts(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("calibrate", tuned / "alpha-0.1-seed-0", "--score", "sum_log_prob") == 2
    assert "--score needs --data" in capsys.readouterr().err


class Killed(BaseException):
    """What no command catches."""


def test_drafts_survive_a_kill(tuned: Path, echoes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.calibration.text import drafts

    bundle = tuned / "alpha-0.5-seed-0"
    written: list[int] = []
    plain = drafts.TextModel.drafts

    def killed(self: Any, prompts: Any, size: int) -> Any:
        for places, found in plain(self, prompts, 2):
            written.extend(places)
            yield places, found
            if len(written) >= 4:
                raise Killed

    monkeypatch.setattr(drafts.TextModel, "drafts", killed)
    with pytest.raises(Killed):
        run("evaluate", bundle, "--data", echoes, "--large", "oracle")
    kept = list((bundle.parent / f"{bundle.name}.work").glob("drafts-*-test.jsonl"))
    with kept[0].open("a", encoding="utf-8") as stream:
        stream.write('{"place": 4, "te')  # a line that was cut
    asked: list[int] = []

    def counted(self: Any, prompts: Any, size: int) -> Any:
        asked.append(len(prompts))
        return plain(self, prompts, size)

    monkeypatch.setattr(drafts.TextModel, "drafts", counted)
    assert run("evaluate", bundle, "--data", echoes, "--large", "oracle") == 0
    assert asked == [len(load_prompts(str(echoes), None).test) - 4]


def test_one_run_at_a_time_writes_drafts(tuned: Path, echoes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tuned / "alpha-0.5-seed-0"
    work = tuned / f"{bundle.name}.work"
    with held(work):
        assert run("evaluate", bundle, "--data", echoes, "--large", "oracle") == 2
    assert f"another run is at work in {work}" in capsys.readouterr().err
    assert run("evaluate", bundle, "--data", echoes, "--large", "oracle") == 0
    assert not work.exists()


def test_a_judge_is_named_by_its_directory(
    tuned: Path, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in with random weights: it grades, and no grade means anything."""
    bundle, judge = tuned / "alpha-0.5-seed-0", write_tiny_llama(tmp_path / "judge", positions=4096)
    common = ("evaluate", bundle, "--data", echoes, "--rows", 4, "--large", "oracle")
    assert run(*common, "--scorer", "judge", "--judge", judge, "--output", tmp_path / "out") == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (numbers["scorer"], numbers["graded"]) == ("judge", True)
    assert "pearson" in numbers
    for options, words in (
        (("--scorer", "judge"), "the scorer judge needs a language model that judges: give --judge"),
        (("--judge", judge), "--judge is of --scorer judge, and exact asks none"),
        (("--scorer", "judge", "--judge", tmp_path), "holds no causal language model"),
        (("--scorer", "judge", "--judge", "nowhere"), "--judge nowhere: no such directory"),
        (("--scorer", "json"), "the reference is not JSON"),
    ):
        assert run(*common, *options) == 2
        assert words in capsys.readouterr().err


def test_a_sweep_measures_stage_1_once(echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    sweep = ("tune", "--data", echoes, "--model", "tiny-decoder", "--alpha", "0.5,0.1", "--rows", "8", *QUICK)
    assert run(*sweep, "--output", tmp_path / "sweep") == 0
    said = capsys.readouterr().err
    assert said.count("stage first (cross-entropy): on the select split") == 1
    assert said.count("on the select split") == 3


def test_an_option_of_the_other_kind_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "clinc150", "--data-dir", write_tiny_clinc150(tmp_path / "texts"))
    for option in (("--rows", "4"), ("--template", "{prompt}"), ("--normalize-kl",)):
        assert run("tune", *data, *option, "--output", tmp_path / "out") == 2
        assert f"{option[0]} is for models that write text" in capsys.readouterr().err
    labels = tmp_path / "labels"
    assert run("tune", *data, "--epochs", 1, "--tuning-epochs", 1, "--output", labels) == 0
    for command, option in (("calibrate", ("--score", "sum_log_prob")), ("evaluate", ("--scorer", "exact"))):
        assert run(command, labels, *data, *option) == 2
        assert f"{option[0]} is for models that write text" in capsys.readouterr().err
    assert run("evaluate", labels, *data, "--large", "oracle") == 2
    assert "--large oracle is for models that write text" in capsys.readouterr().err
    echoes = tmp_path / "echoes.csv"
    echoes.write_text("prompt,answer\n")
    assert run("tune", "--data", echoes, "--output", tmp_path / "out") == 2
    assert "there are no training rows" in capsys.readouterr().err
    echoes.write_text("prompt,output\na,b\n")
    assert run("tune", "--data", echoes, "--output", tmp_path / "out") == 2
    assert "prompts need a column 'answer' beside them" in capsys.readouterr().err


def test_a_table_of_the_large_models_answers(tuned: Path, echoes: Path, tmp_path: Path) -> None:
    bundle, table = tuned / "alpha-0.1-seed-0", tmp_path / "large.csv"
    rows = [json.loads(line) for line in echoes.read_text(encoding="utf-8").splitlines()]
    lines = [f"{row['prompt']},{row['answer'] if row['prompt'] < 'd' else 'no idea'}" for row in rows]
    table.write_text("\n".join(["prompt,large_answer", *lines]), encoding="utf-8")
    assert run("calibrate", bundle, "--data", echoes, "--large", table, "--output", tmp_path / "made") == 0
    found = load_bundle(tmp_path / "made").read_calibration()
    assert found is not None
    assert found.large_correct is not None
    assert 0 < found.large_correct.mean() < 1


def test_what_is_no_large_model_is_told(
    tuned: Path, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tuned / "alpha-0.1-seed-0"
    assert run("evaluate", bundle, "--data", echoes, "--large", echoes) == 2
    assert "needs a column prompt_id or prompt and a column large_correct or large_answer" in capsys.readouterr().err
    labels = tmp_path / "labels"
    data = ("--data", "clinc150", "--data-dir", write_tiny_clinc150(tmp_path / "texts"))
    assert run("tune", *data, "--epochs", 1, "--tuning-epochs", 1, "--output", labels) == 0
    assert run("evaluate", bundle, "--data", echoes, "--large", labels) == 2
    assert "the large model labels does text-classification and writes no text" in capsys.readouterr().err


@pytest.mark.slow
def test_the_control_a_directory_and_its_adapter(echoes: Path, tmp_path: Path) -> None:
    base = write_tiny_llama(tmp_path / "base", chat=True)
    for rank in (0, 2):
        output = tmp_path / f"rank-{rank}"
        command = ("tune", "--data", echoes, "--model", base, "--loss", "cross-entropy", "--lora-rank", rank, *QUICK)
        assert run(*command, "--output", output) == 0
        manifest = load_bundle(output).manifest
        assert (manifest.loss, manifest.alpha, manifest.runtime) == ("cross-entropy", None, "transformers")
        assert manifest.generation is not None
        assert manifest.generation.prompt == "chat"
        assert run("calibrate", output, "--data", echoes) == 0


@pytest.mark.slow
def test_an_encoder_decoder_and_images(echoes: Path, tmp_path: Path) -> None:
    assert run("tune", "--data", echoes, "--model", "tiny-t5", *QUICK, "--output", tmp_path / "t5") == 0
    assert load_bundle(tmp_path / "t5").manifest.task == "text2text-generation"
    assert run("evaluate", tmp_path / "t5", "--data", echoes, "--large", "oracle") == 0
    for place, name in enumerate(("dark", "light")):
        Image.fromarray(np.full((16, 16, 3), 200 * place, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    rows = [
        {"prompt": f"colour of {word}", "image": f"{name}.png", "answer": name}
        for word in WORDS
        for name in ("dark", "light")
    ]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ("tune", "--data", tmp_path / "seen.jsonl", "--model", "tiny-paligemma", *QUICK)
    assert run(*command, "--output", tmp_path / "seeing") == 0
    assert load_bundle(tmp_path / "seeing").manifest.task == "image-text-to-text"
    assert run("evaluate", tmp_path / "seeing", "--data", tmp_path / "seen.jsonl", "--large", "oracle") == 0


def test_a_bundle_that_writes_is_no_classifier(tuned: Path) -> None:
    with pytest.raises(BundleError, match="does text-generation, and a classifier is needed here"):
        load_classifier(load_bundle(tuned / "alpha-0.1-seed-0"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ("--loss", "focal"),
            "--loss focal is for labels; of answers there is gatekeeper, soft-gatekeeper, cross-entropy",
        ),
        (("--alignment", "0.5"), "--alignment is for models that answer with labels"),
        (("--loss", "soft-gatekeeper"), "soft-gatekeeper needs the large model's targets: give --targets-from"),
        (("--model", "tiny-paligemma"), "tiny-paligemma does image-text-to-text"),
        (("--model", "tiny-decoder", "--lora-rank", "4"), "--lora-rank adapts a pretrained model"),
        (("--model", "tiny-decoder", "--max-tokens", "1"), "the prompt has"),
        (("--model", "tiny-decoder", "--max-new-tokens", "2"), "give --max-new-tokens"),
        (("--model", "tiny-decoder", "--template", "no place"), "cannot be: template needs {prompt} once"),
        (("--model", "tiny-decoder", "--extract", "("), "cannot be: extract is no regular expression"),
        (("--model", "tiny-decoder", "--stop", ""), "cannot be: a stop text is empty"),
        (("--model", "tiny-decoder", "--max-new-tokens", "0"), "--max-new-tokens must be 1 or more, not 0"),
        (("--rows", "1"), "--rows must be 4 or more"),
        (("--model", "nowhere"), "nowhere: no such directory"),
    ],
)
def test_what_does_not_fit_is_one_line(
    more: tuple[str, ...], words: str, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("tune", "--data", echoes, *more, "--output", tmp_path / "out") == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert words in complaint[-1]
    assert not list(tmp_path.glob("out*"))  # no work directory either


def test_the_picture_of_entropy_along_answers() -> None:
    generator = np.random.default_rng(0)
    entropy = [generator.uniform(size=2 + place % 3) + (place % 2) for place in range(40)]
    right = np.arange(40) % 2 == 0
    picture = entropy_picture(entropy, right, ("right", "wrong"))
    assert picture is not None
    assert "right (20)" in picture.svg
    assert "wrong (20)" in picture.svg
    assert entropy_picture(entropy, np.ones(40, dtype=bool), ("right", "wrong")) is None
