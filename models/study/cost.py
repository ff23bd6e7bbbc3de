"""What the offline job costs, as three tables.

    python -m models.study.cost steps      a training step with the Gatekeeper loss beside one with cross-entropy
    python -m models.study.cost tokens     the fused loss of an answer's tokens beside the dense one (token_cost.py)
    python -m models.study.cost rows       evaluate and calibrate a table of a million rows

The two losses take turns, step by step, on the same batch; a ratio is the median over the rounds of the ratio of
a round's two medians.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from models.bundle import CALIBRATION, SELECTION, Calibration, load_bundle, rewrite_bundle, write_calibration
from models.inference.architectures import SmallCNN, SmallCNNConfig, TextNet, TextNetConfig
from models.study.token_cost import run_tokens
from models.training.losses import Loss, Targets

PACKAGED = Path(__file__).parent.parent / "bundles" / "clinc150-small"


@dataclass(frozen=True)
class Workload:
    """A model, its inputs and labels, and how many steps a round has."""

    name: str
    model: nn.Module
    inputs: dict[str, Tensor]
    labels: Tensor
    steps: int


def workloads() -> list[Workload]:
    """The text net and the SmallCNN of the committed bundles, and a classifier of BERT's size."""
    torch.manual_seed(0)
    intents = {index: str(index) for index in range(150)}
    digits = {index: str(index) for index in range(10)}
    text_net = TextNet(TextNetConfig(vocab_size=4000, id2label=intents))
    small_cnn = SmallCNN(SmallCNNConfig(image_size=(28, 28), num_channels=1, shift=2, flip=True, id2label=digits))
    bert = BertForSequenceClassification(BertConfig(id2label=intents))
    return [
        Workload(
            "text net", text_net, {"input_ids": torch.randint(2, 4000, (64, 16))}, torch.randint(0, 150, (64,)), 60
        ),
        Workload(
            "SmallCNN", small_cnn, {"pixel_values": torch.randn(128, 1, 28, 28)}, torch.randint(0, 10, (128,)), 30
        ),
        Workload("BERT-base", bert, {"input_ids": torch.randint(0, 30000, (8, 32))}, torch.randint(0, 150, (8,)), 3),
    ]


def run_steps(rounds: int) -> None:
    """Print a row for each workload."""
    print(f"training steps, {rounds} alternating rounds, {torch.get_num_threads()} threads")
    print("model        cross-entropy ms (low-high)    Gatekeeper ms (low-high)    ratio (low-high)")
    for workload in workloads():
        losses = {name: Loss(name) for name in ("cross-entropy", "gatekeeper")}
        took: dict[str, list[float]] = {name: [] for name in losses}
        _round(workload, losses)  # a warm-up that no round pays for
        for _ in range(rounds):
            for name, seconds in _round(workload, losses).items():
                took[name].append(seconds)
        plain, tuned = took["cross-entropy"], took["gatekeeper"]
        ratios = [b / a for a, b in zip(plain, tuned, strict=True)]
        print(f"{workload.name:12} {_spread(plain, 1000):29}  {_spread(tuned, 1000):26}  {_spread(ratios, 1)}")


def _spread(values: list[float], scale: float) -> str:
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def _round(workload: Workload, losses: dict[str, Loss]) -> dict[str, float]:
    """Median seconds of a step (forward, loss, backward, update) by loss; they take turns, so noise meets both."""
    model = workload.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    targets = Targets(workload.labels)
    took: dict[str, list[float]] = {name: [] for name in losses}
    for step in range(workload.steps):
        for name in list(losses) if step % 2 == 0 else list(reversed(losses)):
            began = time.perf_counter()
            losses[name](model(**workload.inputs).logits, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            took[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def run_rows(rounds: int, rows: int) -> None:
    """Print seconds and peak memory of each command as a whole process."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        confidence, small, large = _cascade(rows)
        table = pa.table({"confidence": confidence, "small_correct": small, "large_correct": large})
        pq.write_table(table, directory / "table.parquet")
        pacsv.write_csv(table, directory / "table.csv")
        bundle = directory / "bundle"
        shutil.copytree(PACKAGED, bundle)

        def write(new: Path) -> None:
            for name in (CALIBRATION, SELECTION):
                write_calibration(new / name, Calibration(*_cascade(rows, seed=len(name))))

        rewrite_bundle(load_bundle(bundle), {}, write)
        print(f"{rows:,} rows, {rounds} rounds, whole processes      seconds (low-high)         peak MiB")
        for name, arguments in {
            "evaluate, parquet": (
                "evaluate",
                "--predictions",
                directory / "table.parquet",
                "--output",
                directory / "o",
            ),
            "evaluate, csv": ("evaluate", "--predictions", directory / "table.csv", "--output", directory / "o"),
            "calibrate, target accuracy": ("calibrate", bundle, "--target-accuracy", "0.9"),
            "calibrate, certified": ("calibrate", bundle, "--target-accuracy", "0.9", "--certainty", "0.95"),
        }.items():
            runs = [_process(*map(str, arguments)) for _ in range(rounds)]
            memory = max(peak for _, peak in runs)
            print(f"  {name:40} {_spread([seconds for seconds, _ in runs], 1):26} {memory:.0f}")


def _cascade(rows: int, seed: int = 0) -> tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", ...]:
    """Confidence, and correctness of a small model that is right with that probability and of a large one."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(4, 1, rows)
    small = (generator.uniform(size=rows) < confidence).astype(np.float64)
    large = (generator.uniform(size=rows) < 0.95).astype(np.float64)
    return confidence, small, large


def _process(*arguments: str) -> tuple[float, float]:
    """(seconds, peak MiB) of a gatekeeper command, measured around a process of its own."""
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "service.cli", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)  # noqa: S603  this Python, our module
    seconds = time.perf_counter() - began
    status, kilobytes = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{' '.join(arguments)} ended with {status}: {done.stderr}")
    return seconds, int(kilobytes) / 1024


def main() -> None:
    """Run one of the tables."""
    parser = argparse.ArgumentParser("python -m models.study.cost", description=__doc__)
    parser.add_argument("table", choices=("steps", "tokens", "rows"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--whole", action="store_true", help="of tokens: 262,144 entries too, which takes minutes")
    arguments = parser.parse_args()
    tables: dict[str, Callable[[], None]] = {
        "steps": lambda: run_steps(arguments.rounds),
        "tokens": lambda: run_tokens(arguments.rounds, whole=arguments.whole),
        "rows": lambda: run_rows(arguments.rounds, arguments.rows),
    }
    tables[arguments.table]()


if __name__ == "__main__":
    main()
