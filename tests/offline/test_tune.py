"""The offline job on tiny data: tune, calibrate, evaluate; what a kill, a full disk and a wrong option leave behind.

One file because its cases share bundles that take seconds to train.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import write_tiny_clinc150, write_tiny_csv, write_tiny_fashion_mnist

from models.bundle import SELECTION, copy_bundle, load_bundle
from models.data.datasets import load_dataset
from models.inference.classifier import load_classifier
from models.numbers.predictions import read_predictions
from models.training.work import locked
from service.cli import main

QUICK = ("--epochs", "4", "--tuning-epochs", "2", "--batch-size", "16", "--seed", "1")


def gatekeeper(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, run in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def one_line(complaint: str) -> str:
    """The complaint, which is one line after what was said on the way, and no traceback."""
    assert "Traceback" not in complaint
    *_, last = complaint.strip().splitlines()
    assert last.startswith("gatekeeper: ")
    return last


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options that name a tiny CLINC150."""
    directory = write_tiny_clinc150(tmp_path_factory.mktemp("texts"))
    return "--data", "clinc150", "--data-dir", str(directory)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, texts: tuple[str, ...]) -> Path:
    """A text net tuned on it; no test may change it."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    assert main(["tune", *texts, *QUICK, "--output", str(path)]) == 0
    return path


def test_tune_calibrate_evaluate(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = load_bundle(bundle)
    assert tuned.manifest.loss == "gatekeeper"
    assert tuned.manifest.training["second_select_accuracy"] > 0.5
    assert not bundle.with_name("tiny.work").exists()

    one = tmp_path / "one"
    target = ("--target-deferral-ratio", "0.25", "--write", "--output", one)
    code, printed, _ = gatekeeper(capsys, "calibrate", bundle, "--large", bundle, *texts, *target)
    assert code == 0
    assert "expected deferral ratio  0.2" in printed
    calibrated = load_bundle(one)
    assert calibrated.gate_digest != tuned.gate_digest
    assert repr(calibrated.manifest.default_threshold) in printed
    for rows in (calibrated.read_calibration(), calibrated.read_calibration(SELECTION)):
        assert rows is not None
        assert len(rows.confidence) == 12

    out = tmp_path / "out"
    arguments = ("evaluate", one, "--large", bundle, *texts, "--output", out, "--write-card")
    assert gatekeeper(capsys, *arguments)[0] == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert {"a_S", "a_L", "s_d", "s_o", "auroc", "out_of_scope"} <= numbers.keys()
    assert numbers["a_S"].keys() == {"value", "low", "high"}
    predictions = read_predictions(out / "predictions.parquet")
    assert len(predictions.confidence) == 24
    assert predictions.scores.keys() == {"max_softmax", "margin", "negative_entropy", "energy"}
    assert predictions.small_correct.mean() == pytest.approx(numbers["a_S"]["value"])
    np.testing.assert_array_equal(predictions.confidence, predictions.scores["max_softmax"])
    assert "<html" in (out / "report.html").read_text()
    final = load_bundle(one)
    assert final.gate_digest == calibrated.gate_digest
    assert final.manifest.metrics["a_S"] == pytest.approx(numbers["a_S"]["value"], abs=1e-6)
    assert "CC BY 3.0" in (one / "README.md").read_text()

    # The table alone gives the same numbers again.
    arguments = ("evaluate", "--predictions", out / "predictions.parquet", "--output", tmp_path / "again")
    assert gatekeeper(capsys, *arguments, "--threshold", calibrated.manifest.default_threshold)[0] == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["s_d"] == numbers["s_d"]


def test_a_target_is_certified_or_said_to_be_out_of_reach(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    assert gatekeeper(capsys, "calibrate", bundle, "--large", bundle, *texts, "--output", one)[0] == 0
    easy = ("--target-accuracy", "0.3", "--certainty", "0.9")
    code, printed, _ = gatekeeper(capsys, "calibrate", one, *easy, "--write")
    assert code == 0
    assert "certified                joint accuracy >= 0.3 with certainty 0.9 (12 calibration items" in printed
    certificate = load_bundle(one).manifest.certificate
    assert certificate is not None
    assert certificate["target"] == 0.3
    assert certificate["threshold"] == load_bundle(one).manifest.default_threshold
    # Another threshold is not certified by it.
    assert gatekeeper(capsys, "calibrate", one, "--target-deferral-ratio", "0.5", "--write")[0] == 0
    assert load_bundle(one).manifest.certificate is None

    code, printed, complaint = gatekeeper(capsys, "calibrate", one, "--target-accuracy", "1", "--certainty", "0.99")
    assert code == 3
    assert "no threshold can be certified" in printed
    # The large model is the same one.
    assert complaint.startswith("note: the large model is no better than the small one on these items: 0.9167 against")
    assert "deferring buys nothing here" in complaint
    selective = ("--target-selective-accuracy", "0.3", "--certainty", "0.8")
    assert "selective accuracy >= 0.3" in gatekeeper(capsys, "calibrate", one, *selective)[1]
    loss = ("--target-accuracy-loss", "0.9")
    assert "expected deferral ratio  0.0000" in gatekeeper(capsys, "calibrate", one, *loss)[1]
    code, printed, _ = gatekeeper(capsys, "calibrate", one, *loss, "--certainty", "0.95", "--write")
    assert "certified                joint accuracy minus the large model's >= -0.9 with certainty 0.95" in printed
    assert load_bundle(one).manifest.certificate["target"] == -0.9
    for wrong in (
        ("--certainty", "0.9"),
        selective[:2],
        (*easy[:2], "--certainty", "1.5"),
        (*easy[:3], "nan"),
        ("--target-accuracy-loss", "-0.1"),
        ("--target-accuracy-loss", "1", "--certainty", "0.9"),
    ):
        code, _, complaint = gatekeeper(capsys, "calibrate", one, *wrong)
        assert code == 2
        assert one_line(complaint) == complaint.strip()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, bundle: Path, texts: tuple[str, ...]) -> None:
    for name, seed in (("again", "1"), ("other", "0")):
        assert main(["tune", *texts, *QUICK, "--output", str(tmp_path / name), "--seed", seed]) == 0
    first = load_bundle(bundle).gate_digest
    assert load_bundle(tmp_path / "again").gate_digest == first
    assert load_bundle(tmp_path / "other").gate_digest != first


@pytest.mark.slow
def test_images_are_tuned_and_judged_alone_as_in_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = write_tiny_fashion_mnist(tmp_path / "data")
    data = ("--data", "fashion-mnist", "--data-dir", data_dir)
    one = tmp_path / "one"
    quick = ("--epochs", "6", "--tuning-epochs", "1", "--batch-size", "32")
    assert gatekeeper(capsys, "tune", *data, *quick, "--output", one)[0] == 0
    bundle = load_bundle(one)
    assert bundle.manifest.task == "image-classification"
    assert bundle.manifest.max_tokens is None
    classifier = load_classifier(bundle)
    images = load_dataset("fashion-mnist", data_dir).test.inputs[:7]
    for image, prediction in zip(images, classifier.predict(images), strict=True):
        (alone,) = classifier.predict([image])
        assert alone.confidence == pytest.approx(prediction.confidence, abs=1e-6)
    assert gatekeeper(capsys, "calibrate", one, "--large", one, *data)[0] == 0
    assert gatekeeper(capsys, "evaluate", one, "--large", one, *data, "--output", tmp_path / "out")[0] == 0
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text()
    code, _, complaint = gatekeeper(capsys, "evaluate", one, "--large", one, *data, "--endpoint", "http://127.0.0.1:9")
    assert code == 2
    assert "does not answer" in one_line(complaint)
    code, _, complaint = gatekeeper(capsys, "tune", *data, "--model", "text-net", "--output", tmp_path / "two")
    assert code == 2
    assert "small-cnn" in one_line(complaint)


@pytest.mark.slow
def test_a_sweep_trains_stage_one_once_and_keeps_what_is_done(
    tmp_path: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("tune", *texts, *QUICK, "--alpha", "0.2,0.8", "--seeds", "0,1", "--output", tmp_path)
    code, _, said = gatekeeper(capsys, *command)
    assert code == 0
    assert said.count("stage first (cross-entropy): 4 epochs") == 2
    assert said.count("4 epochs of") + said.count("2 epochs of") == 6
    places = {path.name for path in tmp_path.iterdir()}
    assert places == {f"alpha-{alpha}-seed-{seed}" for alpha in ("0.2", "0.8") for seed in (0, 1)} | {"sweep.json"}
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert {(row["alpha"], row["seed"]) for row in rows} == {(0.2, 0), (0.8, 0), (0.2, 1), (0.8, 1)}
    assert len({load_bundle(tmp_path / row["bundle"]).gate_digest for row in rows}) == 4
    code, _, said = gatekeeper(capsys, *command)
    assert code == 0
    assert said.count("done before") == 4
    assert "epochs of" not in said
    # One of them is what a tune of its own gives.
    alone = tmp_path / "alone"
    assert gatekeeper(capsys, "tune", *texts, *QUICK, "--alpha", "0.8", "--seed", "1", "--output", alone)[0] == 0
    assert load_bundle(alone).gate_digest == load_bundle(tmp_path / "alpha-0.8-seed-1").gate_digest


@pytest.mark.slow
def test_each_alpha_starts_from_the_same_weights_also_from_a_bundle(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...]
) -> None:
    start = ("--model", str(bundle), "--epochs", "0", "--tuning-epochs", "2")
    assert main(["tune", *texts, *start, "--alpha", "0.2,0.8", "--output", str(tmp_path)]) == 0
    assert main(["tune", *texts, *start, "--alpha", "0.8", "--output", str(tmp_path / "alone")]) == 0
    assert load_bundle(tmp_path / "alpha-0.8-seed-0").gate_digest == load_bundle(tmp_path / "alone").gate_digest


@pytest.mark.parametrize("loss", ["cross-entropy", "focal", "static-partition"])
def test_other_losses_start_from_a_bundle_and_leave_their_name(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], loss: str
) -> None:
    start = ("--model", str(bundle), "--epochs", "0", "--tuning-epochs", "2")
    assert main(["tune", *texts, *start, "--loss", loss, "--output", str(tmp_path / "one")]) == 0
    manifest = load_bundle(tmp_path / "one").manifest
    assert manifest.loss == loss
    assert (manifest.alpha is None) == (loss != "static-partition")
    assert load_bundle(tmp_path / "one").gate_digest != load_bundle(bundle).gate_digest
    assert str(tmp_path) not in (tmp_path / "one" / "gatekeeper.json").read_text()


@pytest.mark.slow
def test_the_large_model_can_teach_both_stages(tmp_path: Path, bundle: Path, texts: tuple[str, ...]) -> None:
    teach = ("--distill-from", str(bundle), "--targets-from", str(bundle))
    assert main(["tune", *texts, *QUICK, *teach, "--output", str(tmp_path / "one")]) == 0
    assert load_bundle(tmp_path / "one").manifest.loss == "soft-gatekeeper"
    aligned = ("--targets-from", str(bundle), "--alignment", "0.5")
    assert main(["tune", *texts, *QUICK, *aligned, "--output", str(tmp_path / "two")]) == 0
    manifest = load_bundle(tmp_path / "two").manifest
    assert manifest.loss == "gatekeeper"
    assert manifest.training["loss"]["alignment"] == 0.5


@pytest.mark.slow
def test_a_level_is_tuned_on_what_the_level_before_defers(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    level = ("--only-deferred-by", bundle)
    command = ("tune", *texts, *QUICK, *level, "--output", tmp_path / "two")
    code, _, complaint = gatekeeper(capsys, *command, "--threshold", "0.01")
    assert code == 2
    assert "raise --threshold" in one_line(complaint)
    code, _, complaint = gatekeeper(capsys, *command, "--threshold", "0.999")
    assert code == 2  # of twelve calibration items even all are too few
    assert "of the 12 select items" in one_line(complaint)
    rows = write_tiny_csv(tmp_path / "rows.csv").read_text().splitlines()
    many = tmp_path / "many.csv"
    many.write_text(
        "\n".join([rows[0], *(f"{word} {row}" for word in ("so", "well", "please", "now") for row in rows[1:])])
    )
    code, _, said = gatekeeper(
        capsys, "tune", "--data", many, *QUICK, *level, "--threshold", "0.999", "--output", tmp_path / "two"
    )
    assert code == 0
    assert "defers at threshold 0.999: " in said


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no larger file: what a full one does to a write, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("tune", *texts, *QUICK, "--output", tmp_path / "one")
    with largest_file(50_000):  # not even the first checkpoint
        code, _, complaint = gatekeeper(capsys, *command)
    assert code == 2
    assert "make room, then run the same command again" in one_line(complaint)
    assert not (tmp_path / "one").exists()
    weights = (bundle / "model.safetensors").stat().st_size
    with largest_file(weights * 3):  # checkpoints, with Adam's state, are larger than that only a little later
        gatekeeper(capsys, *command)
    assert gatekeeper(capsys, *command)[0] == 0
    assert load_bundle(tmp_path / "one").gate_digest == load_bundle(bundle).gate_digest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_kill_in_the_middle_of_a_save_costs_one_interval(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 while a checkpoint is being written; the same command goes on and ends with the same weights."""
    command = ("tune", *texts, *QUICK, "--save-steps", "2", "--output", str(tmp_path / "one"))
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    half: list[Path] = []
    while process.poll() is None and not half:
        checkpoints = [*tmp_path.glob("one.work/first-*/checkpoint-*")]
        if len(checkpoints) > 1:  # one is whole
            half = [path for path in checkpoints if not (path / "trainer_state.json").exists()]
        time.sleep(0.0005)  # not `eventually`: a save is over in a few milliseconds
    assert process.poll() is None, "it ended before a save could be interrupted"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "one").exists()
    for path in half:  # the kill may have come a moment late; then this is what it would have left
        (path / "trainer_state.json").unlink(missing_ok=True)
    code, _, said = gatekeeper(capsys, *command)
    assert code == 0
    assert "goes on from" in said
    assert not any(str(path) in said for path in half)
    assert load_bundle(tmp_path / "one").gate_digest == load_bundle(bundle).gate_digest


@pytest.mark.slow
def test_what_is_not_ours_is_never_removed(tmp_path: Path, bundle: Path, texts: tuple[str, ...]) -> None:
    work = tmp_path / "sweep" / "work"
    work.mkdir(parents=True)
    (work / "thesis.txt").write_text("mine")
    command = ["tune", *texts, *QUICK, "--alpha", "0.2,0.8", "--output", str(tmp_path / "sweep")]
    assert main([*command, "--restart"]) == 0
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]
    # Nor is a note beside a manifest, when the bundle is rewritten.
    one = copy_bundle(load_bundle(bundle), tmp_path / "one").directory
    (one / "NOTES.txt").write_text("mine")
    assert main(["calibrate", str(one), "--large", str(bundle), *texts]) == 0
    assert (one / "NOTES.txt").read_text() == "mine"
    assert load_bundle(one).read_calibration() is not None


def test_a_second_run_into_the_same_output_is_refused(
    tmp_path: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "one.work"):
        code, _, complaint = gatekeeper(capsys, "tune", *texts, *QUICK, "--output", tmp_path / "one")
    assert code == 2
    assert "another run is at work" in one_line(complaint)


def test_a_calibration_that_fails_leaves_the_output_as_it_was(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = copy_bundle(load_bundle(bundle), tmp_path / "one")
    stranger = bundles / "clinc150-small"
    for wrong in (("--large", bundle, "--target-accuracy", "7"), ("--large", stranger)):
        code, _, _ = gatekeeper(capsys, "calibrate", bundle, *texts, *wrong, "--output", one.directory)
        assert code == 2
        assert load_bundle(one.directory) == one
    for idle in (("--write",), ("--threshold", "0.7"), (*texts, "--target-accuracy", "0.9")):
        assert gatekeeper(capsys, "calibrate", one.directory, *idle)[0] == 2


def test_who_stands_in_a_bundle_may_rewrite_it(
    tmp_path: Path, bundle: Path, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = copy_bundle(load_bundle(bundle), tmp_path / "one").directory
    monkeypatch.chdir(one)
    assert main(["calibrate", "../one", "--large", str(bundle), *texts]) == 0
    assert load_bundle(one).read_calibration() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_certificate_is_refused_on_items_that_may_have_been_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A csv that has grown is divided anew: what was trained on may be among the calibration items."""
    rows = write_tiny_csv(tmp_path / "rows.csv")
    one = tmp_path / "one"
    assert gatekeeper(capsys, "tune", "--data", rows, *QUICK, "--output", one)[0] == 0
    with rows.open("a") as file:
        file.write("one more rain,weather\none more alarm,timer\n")
    certify = ("calibrate", one, "--data", rows, "--target-selective-accuracy", "0.1", "--certainty", "0.6")
    code, _, complaint = gatekeeper(capsys, *certify)
    assert code == 2
    assert "--fresh-data" in one_line(complaint)
    code, printed, said = gatekeeper(capsys, *certify, "--fresh-data")
    assert code == 0
    assert "certified" in printed
    assert "not the data that the bundle was tuned on" in said


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("tune", *texts, *QUICK, "--learning-rate", "1e30", "--output", tmp_path / "one")
    code, _, complaint = gatekeeper(capsys, *command)
    assert code == 2
    assert "lower the learning rate" in one_line(complaint)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tune", "--data", "clinc150", "--data-dir", "/nowhere", "--output", "x"), "/nowhere"),
        (("tune", "--data", "mnist", "--output", "x"), "mnist"),
        (("tune", "--data", "clinc150", "--alpha", "1.5", "--output", "x"), "--alpha"),
        (("tune", "--data", "clinc150", "--alpha", "nan", "--output", "x"), "--alpha"),
        (("tune", "--data", "clinc150", "--alpha", "0.1;0.2", "--output", "x"), "--alpha"),
        (("tune", "--data", "clinc150", "--seeds", "one", "--output", "x"), "--seeds"),
        (("tune", "--data", "clinc150", "--batch-size", "0", "--output", "x"), "--batch-size"),
        (("tune", "--data", "clinc150", "--learning-rate", "-1", "--output", "x"), "--learning-rate"),
        (("calibrate", "/nowhere"), "/nowhere"),
        (("evaluate",), "--predictions"),
        (("evaluate", "--predictions", "/nowhere.csv"), "/nowhere.csv"),
        (("evaluate", "--predictions", "x.csv", "--data", "clinc150"), "--predictions is a finished table"),
        (("compare", "--data", "clinc150", "--large", "/nowhere", "--output", "x"), ""),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.delenv("GATEKEEPER_DATA_DIR", raising=False)
    code, printed, complaint = gatekeeper(capsys, *arguments)
    assert code == 2
    assert words in one_line(complaint)
    assert len(complaint.strip().splitlines()) == 1
    assert printed == ""
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--loss", "hinge"), "unknown loss"),
        (("--loss", "label-smoothing", "--strength", "2"), "--strength"),
        (("--strength", "0.5"), "--strength is for"),
        (("--alignment", "0.5"), "--targets-from"),
        (("--model", "/nowhere"), "no such directory"),
        (("--model", "text-net", "--epochs", "0"), "--epochs 0"),
        (("--model", "text-net", "--lora-rank", "4"), "--lora-rank"),
        (("--model", "small-cnn"), "text-net"),
        (("--loss", "focal", "--alpha", "0.1,0.9"), "has no alpha"),
        (("--loss", "soft-gatekeeper"), "--targets-from"),
        (("--model", "all-MiniLM-L6-v2", "--lora-rank", "8"), "no effect"),
    ],
)
def test_an_option_that_does_not_fit_is_told_before_training(
    tmp_path: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, _, complaint = gatekeeper(
        capsys,
        "tune",
        *texts,
        *options,
        "--epochs=1" if "--epochs" not in options else "--seed=0",
        "--output",
        tmp_path / "x",
    )
    assert code == 2
    assert words in one_line(complaint)
    assert not (tmp_path / "x").exists()
