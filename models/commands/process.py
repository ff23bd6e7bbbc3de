"""What each command does to its own process: its threads, quiet libraries, its lines on stderr."""

import argparse
import os
import sys

from models.errors import InputError
from models.printing import printable
from models.threads import MOST, use_threads


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads, which every command that computes has."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to compute with; default: OMP_NUM_THREADS, else 1: more are many times slower on cores that "
        "others use too",
    )


def set_threads(count: int | None) -> None:
    """As --threads says. Raises InputError."""
    if count is not None and not 1 <= count <= MOST:
        raise InputError(f"--threads must be from 1 to {MOST}, not {count}")
    use_threads(count)


def prepare_libraries() -> None:
    """Quiet libraries, and no tokenizer threads beside torch's own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def say(line: str) -> None:
    """A line on stderr."""
    if os.environ.get("RANK", "0") == "0":  # one voice, of however many processes train together
        print(printable(line), file=sys.stderr, flush=True)
