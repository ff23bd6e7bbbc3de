"""What the job writes is there whole or not at all: models that give NaN, kills in the middle, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import write_tiny_csv
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification

from models.bundle import MANIFEST, Calibration, file_sha256, load_bundle, rewrite_bundle, write_calibration
from models.errors import BundleError
from models.replacing import exchange, write_whole
from models.training.vocabulary import train_tokenizer
from service.cli import main

Said = pytest.CaptureFixture[str]


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_csv(tmp_path_factory.mktemp("data") / "rows.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """A calibrated bundle of runtime `transformers` and no net of ours; no test may change it."""
    directory = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([line.split(",")[0] for line in rows.read_text().splitlines()], 200)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=24,
    )
    BertForSequenceClassification(config).save_pretrained(directory / "model")
    tokenizer.save(str(directory / "model" / "tokenizer.json"))
    bundle = directory / "whole"
    options = ("--epochs", "1", "--tuning-epochs", "0", "--output", str(bundle))
    assert main(["tune", "--data", str(rows), "--model", str(directory / "model"), *options]) == 0
    assert main(["calibrate", str(bundle), "--data", str(rows), "--large", str(bundle)]) == 0
    return bundle


@pytest.fixture
def damaged(tmp_path: Path, whole: Path) -> Path:
    """The same bundle, sound but for the word `weather`, which makes it give NaN."""
    bundle = shutil.copytree(whole, tmp_path / "damaged")
    weights = load_file(bundle / "model.safetensors")
    word = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode("weather").ids[0]
    weights["bert.embeddings.word_embeddings.weight"][word] = float("nan")
    save_file(weights, bundle / "model.safetensors", metadata={"format": "pt"})
    return with_right_hashes(bundle)


def with_right_hashes(bundle: Path) -> Path:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["name"] = bundle.name
    manifest["files"] = {name: file_sha256(bundle / name) for name in manifest["files"]}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


def test_a_model_that_gives_nan_replaces_nothing(
    tmp_path: Path, damaged: Path, whole: Path, rows: Path, capsys: Said
) -> None:
    for small, large in ((damaged, None), (damaged, whole), (whole, damaged)):
        before, out = content(small), tmp_path / "out"
        beside = () if large is None else ("--large", str(large))
        forget = ("--forget-large",) if large is None else ()
        for command in (
            ("calibrate", str(small), "--data", str(rows), *beside, *forget),
            ("evaluate", str(small), "--data", str(rows), *beside, "--write-card", "--output", str(out)),
        ):
            capsys.readouterr()
            assert main(list(command)) == 2
            last = capsys.readouterr().err.splitlines()[-1]
            assert last.startswith(
                f"gatekeeper: {'the large model ' if large == damaged else ''}damaged gives no finite number for "
            )
            assert "weather" in last
            assert content(small) == before
            assert content(out) == {} if out.exists() else True


def test_a_model_that_gives_nan_teaches_and_compares_nothing(
    tmp_path: Path, damaged: Path, rows: Path, capsys: Said
) -> None:
    quick = ("--data", str(rows), "--epochs", "1", "--tuning-epochs", "1")
    for command in (
        ("tune", *quick, "--distill-from", str(damaged), "--output", str(tmp_path / "one")),
        ("compare", *quick, "--large", str(damaged), "--losses", "none", "--output", str(tmp_path / "study")),
        ("tune", *quick, "--only-deferred-by", str(damaged), "--threshold", "1", "--output", str(tmp_path / "two")),
    ):
        capsys.readouterr()
        assert main(list(command)) == 2
        assert "damaged gives no finite number for train item" in capsys.readouterr().err.replace(" select ", " train ")
    assert main(["tune", *quick, "--model", str(damaged), "--output", str(tmp_path / "one")]) == 2
    assert "holds NaN or infinite numbers in bert.embeddings.word_embeddings.weight" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_calibration_data_without_a_finite_confidence_are_never_written(tmp_path: Path, whole: Path) -> None:
    bundle = load_bundle(shutil.copytree(whole, tmp_path / "one"))
    before = content(bundle.directory)
    for column in range(3):
        columns = [np.ones(3), np.ones(3), np.ones(3)]
        columns[column][1] = np.nan
        data = Calibration(*columns)
        with pytest.raises(BundleError, match="row 2"):
            rewrite_bundle(bundle, {}, lambda new, data=data: write_calibration(new / "calibration.parquet", data))
    assert content(bundle.directory) == before


REWRITE = """
import sys
from pathlib import Path
from models.bundle import load_bundle, rewrite_bundle
directory = Path(sys.argv[1])
threshold = 0.0
print("ready", flush=True)
while True:
    threshold = (threshold + 0.001) % 1.0
    rewrite_bundle(load_bundle(directory), {"default_threshold": threshold}, lambda _: None)
    print(threshold, flush=True)
"""


@pytest.fixture
def rewriting(tmp_path: Path, whole: Path) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """A bundle that another process rewrites again and again."""
    bundle = shutil.copytree(whole, tmp_path / "one")
    (bundle / "notes.txt").write_text("mine")
    (bundle / "pictures").mkdir()
    (bundle / "pictures" / "cat.txt").write_text("meow")
    process = subprocess.Popen([sys.executable, "-c", REWRITE, str(bundle)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield bundle, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_bundle_is_there_at_every_moment_and_whole_after_a_kill(
    rewriting: tuple[Path, "subprocess.Popen[str]"],
) -> None:
    bundle, process = rewriting
    assert process.stdout is not None
    seen: set[int] = set()
    missing = 0
    while len(seen) < 100:  # looked at without a pause, while it is replaced a hundred times
        try:
            seen.add(bundle.stat().st_mtime_ns)
        except FileNotFoundError:
            missing += 1
    assert missing == 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    load_bundle(bundle)
    assert (bundle / "notes.txt").read_text() == "mine"
    assert (bundle / "pictures" / "cat.txt").read_text() == "meow"


def test_directories_change_places(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["old"]
    exchange(tmp_path / "new", tmp_path / "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "third"]


def test_a_file_that_could_not_be_written_is_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("good")

    def half(scratch: Path) -> None:
        scratch.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, half)
    assert content(tmp_path) == {"metrics.json": b"good"}


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [1_000, 10_000, 100_000])
def test_a_disk_that_fills_up_costs_nothing_that_was_good(
    tmp_path: Path, whole: Path, rows: Path, most_bytes: int
) -> None:
    """The limit of a file's size stands for the disk: whatever is written fails at that byte."""
    bundle, out = shutil.copytree(whole, tmp_path / "one"), tmp_path / "out"
    options = ["--data", str(rows), "--large", str(whole)]
    assert main(["evaluate", str(bundle), *options, "--output", str(out)]) == 0
    kept = {"one": content(bundle), "out": content(out)}
    limited = (
        "import resource, signal, sys; from service.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes})); sys.exit(main(sys.argv[1:]))"
    )
    for command in (
        ["calibrate", str(bundle), *options],
        ["evaluate", str(bundle), *options, "--seed", "1", "--output", str(out)],
    ):
        done = subprocess.run(
            [sys.executable, "-c", limited, *command], capture_output=True, text=True, env=os.environ, check=False
        )
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.returncode == 2
            assert done.stderr.splitlines()[-1].startswith("gatekeeper: ")
            assert "cannot be written" in done.stderr or "File too large" in done.stderr
            now = {"one": content(bundle), "out": content(out)}
            assert now["one"] == kept["one"]
            for name, before in kept["out"].items():  # each file is the old one or a whole new one
                assert now["out"][name] == before or len(now["out"][name]) <= most_bytes
            json.loads((out / "metrics.json").read_text())
        kept = {"one": content(bundle), "out": content(out)}
