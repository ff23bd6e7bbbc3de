"""One thread unless more are asked for, a sign of life in every long wait, and defaults that --help shows."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import eventually
from support.tiny import write_tiny_csv

from models.progress import Waiting
from models.training.losses import LOSSES
from models.training.model import NETS
from models.training.recipes import LOSSES_IN_WORDS, SCHEDULES
from service.cli import main

COUNT = """
import sys
from service.cli import main
code = main(sys.argv[1:])
import torch
print("threads", torch.get_num_threads(), code)
"""


@pytest.mark.parametrize(
    ("variable", "option", "threads"),
    [(None, None, 1), (None, "2", 2), ("2", None, 2), ("2", "1", 1)],
)
@pytest.mark.slow
def test_one_thread_unless_more_are_asked_for(
    tmp_path: Path, bundles: Path, variable: str | None, option: str | None, threads: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if variable is None else {"OMP_NUM_THREADS": variable}
    command = ["evaluate", str(bundles / "clinc150-small"), "--data", str(write_tiny_csv(tmp_path / "rows.csv"))]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *command, *(() if option is None else ("--threads", option))],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert f"threads {min(threads, os.cpu_count() or 1)} " in done.stdout  # torch takes no more than there are cores


def test_training_says_how_many_threads_it_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_tiny_csv(tmp_path / "rows.csv")
    quick = ("--epochs", "1", "--tuning-epochs", "1", "--output", str(tmp_path / "one"))
    assert main(["tune", "--data", str(rows), *quick]) == 0
    assert "on 1 thread (--threads N for more)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tune", "calibrate", "evaluate", "compare"])
def test_every_command_of_the_job_offers_threads(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--threads N" in capsys.readouterr().out


def test_help_lists_every_loss_and_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert LOSSES_IN_WORDS.keys() == LOSSES.keys()
    assert SCHEDULES.keys() == NETS.keys()
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    printed = capsys.readouterr().out
    for name, words in LOSSES_IN_WORDS.items():
        assert f"{name} " in printed
        assert words in printed
    folded = " ".join(printed.split())
    assert "default: text-net 25, small-cnn 12, wide-cnn 12, a pretrained model 3, with --lora-rank 3" in folded
    assert "default: text-net 0.002, small-cnn 0.002" in folded
    assert "default: None" not in folded


class Told(io.StringIO):
    """stderr that a test can wait for."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_a_long_wait_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(terminal=False)
    monkeypatch.setattr(sys, "stderr", told)
    with Waiting("predicting", 200, "items", first_s=0.001, every_s=0.001) as progress:
        progress(50)
        eventually(lambda: "predicting: 50 of 200 items, about 0:00 left\n" in told.getvalue(), "a line of progress")
    with Waiting("measuring", first_s=0.001, every_s=0.001):
        eventually(lambda: "measuring: 0:00 so far\n" in told.getvalue(), "a sign of life")


def test_what_is_over_soon_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        told = Told(terminal)
        monkeypatch.setattr(sys, "stderr", told)
        with Waiting("reading") as progress:
            progress(1)
        assert told.getvalue() == ""
