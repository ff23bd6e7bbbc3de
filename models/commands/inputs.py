"""The options --data, --large and those of a cascade's level, and how the commands open what they name."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.commands.process import add_threads, prepare_libraries, say
from models.errors import InputError
from models.progress import Waiting

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.calibration.large_answers import LargeAnswers
    from models.data.datasets import LabelledDataset


@dataclass(frozen=True)
class LevelOptions:
    """Level k of a cascade: the bundle of level k-1, and its threshold."""

    only_deferred_by: Path | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class DataOptions:
    """The data and how to read them; seed and threads of whatever is computed from them."""

    data: str | None
    text_column: str
    label_column: str
    data_dir: Path | None
    seed: int
    threads: int | None

    def load(self, level: LevelOptions | None = None) -> "LabelledDataset":
        """The dataset, of which a level keeps a part; what is odd about it goes to stderr. Raises InputError."""
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is a whole number from 0 to 4294967295, not {self.seed}")
        from models.data.datasets import load_dataset

        assert self.data is not None  # the caller has checked it, or argparse
        with Waiting(f"reading {self.data}"):
            data = load_dataset(self.data, self.data_dir, text_column=self.text_column, label_column=self.label_column)
        if level is not None and level.only_deferred_by is not None:
            prepare_libraries()
            from models.bundle import load_bundle
            from models.levels import only_deferred

            data = only_deferred(data, load_bundle(level.only_deferred_by), level.threshold)
        elif level is not None and level.threshold is not None:
            raise InputError("--threshold is that of --only-deferred-by or of --predictions")
        for note in data.notes:
            say(f"note: {note}")
        return data

    def open_large(self, path: Path | None) -> "LargeAnswers | None":
        """The large model's bundle or the table of its answers that --large names. Raises InputError."""
        if path is None:
            return None
        from models.calibration.large_answers import open_large
        from models.data.records import Columns

        return open_large(path, Columns(self.text_column, self.label_column))


def bundle_at(path: Path | None) -> "Bundle | None":
    """The bundle that an option names, if it does. Raises InputError."""
    if path is None:
        return None
    from models.bundle import load_bundle

    return load_bundle(path)


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options of DataOptions."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="D",
        help="clinc150, banking77, fashion-mnist, cifar10, a .csv, .jsonl or .parquet file, a folder of such files or "
        "of images by class, or a hub id; with columns prompt and answer, or a set such as arc-easy: to write text",
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("GATEKEEPER_DATA_DIR") or None,
        help="the folder that holds the named datasets; default: GATEKEEPER_DATA_DIR",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of the bootstrap; default: 0")
    add_threads(parser)


def add_large(parser: argparse.ArgumentParser) -> None:
    """--large of calibrate and evaluate."""
    parser.add_argument(
        "--large",
        type=Path,
        metavar="L",
        help="the large model's bundle, or a .csv, .jsonl or .parquet table of its answers: columns text (for images "
        "file; or split and row) and large_label, label or large_correct; of models that write text: columns prompt "
        "(or prompt_id) and large_answer or large_correct, or the word oracle, which is always right",
    )


def add_level(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The options of LevelOptions. more: what else --threshold means to the command."""
    level = parser.add_argument_group("level k of a cascade")
    level.add_argument("--only-deferred-by", type=Path, metavar="BUNDLE", help="only the items that level k-1 defers")
    level.add_argument("--threshold", type=float, metavar="T", help=f"of level k-1, default: its bundle's{more}")
