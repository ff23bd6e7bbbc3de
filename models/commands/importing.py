"""`gatekeeper import`: make a bundle of a classifier that is fine-tuned already."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.commands.options import runs
from models.commands.process import add_threads, prepare_libraries, say, set_threads


@dataclass(frozen=True)
class ImportOptions:
    """The model and what its bundle is to say of it."""

    model: str
    output: Path
    name: str | None
    labels: str | None
    max_tokens: int | None
    threads: int | None


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser("import", help="make a bundle of a classifier that is fine-tuned already")
    parser.add_argument("model", help="a directory that transformers' save_pretrained wrote, or a hub id")
    parser.add_argument("--output", type=Path, required=True, help="the bundle's directory, a new or an empty one")
    parser.add_argument("--name", help="of the bundle; default: that of its directory")
    parser.add_argument(
        "--labels", metavar="A,B,C", help="or a file with one a line, in the order of the model's outputs"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="a longer text is cut; default: the model's own limit, at most 512"
    )
    add_threads(parser)
    runs(parser, run, ImportOptions)


def run(options: ImportOptions) -> int:
    """Write the bundle, whole or not at all."""
    from models.bundle import check_output

    check_output(options.output)
    set_threads(options.threads)
    prepare_libraries()
    from models.training.importing import import_model

    bundle = import_model(options.model, options.output, options.name, options.labels, options.max_tokens, say)
    say(f"wrote {bundle.directory} (gate digest {bundle.gate_digest[:12]}); next: gatekeeper calibrate")
    return 0
