"""What a tuned bundle says of itself: the fields of its manifest, and a model card until it is measured."""

import subprocess
from pathlib import Path
from typing import Any

from models.bundle import CARD
from models.data.datasets import LabelledDataset
from models.data.prompts.examples import PromptDataset
from models.training.stage import Machine, world


def manifest_fields(name: str, data: LabelledDataset, seed: int, max_tokens: int | None) -> dict[str, Any]:
    """What every tuned bundle's manifest has."""
    return {
        "name": name,
        "task": data.task,
        "labels": data.labels,
        "score": "max_softmax",
        "temperature": 1.0,
        "default_threshold": 0.5,
        "dtype": "float32",
        "max_tokens": max_tokens,
        "seed": seed,
        "dataset": data.name,
        "dataset_sha256": data.content_hash,
        "code_commit": code_commit(),
    }


def write_first_card(directory: Path, name: str, data: LabelledDataset | PromptDataset) -> None:
    """The model card of a bundle that nobody has measured yet."""
    (directory / CARD).write_text(
        f"# {name}\n\nTuned on {data.name} ({data.licence}). Not evaluated yet: run `gatekeeper evaluate "
        "--write-card`.\n",
        encoding="utf-8",
    )


def circumstances(machine: Machine) -> dict[str, Any]:
    """What shapes the weights besides the recipe."""
    return {
        "precision": machine.precision,
        "gradient_accumulation": machine.gradient_accumulation,
        "processes": world()[1],
    }


def code_commit() -> str | None:
    """The commit this code is at; None outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  whichever git there is, or none
            cwd=Path(__file__).parent,
            capture_output=True,
            timeout=5,
            check=True,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
