"""From what argparse has read to the frozen options that a command runs with, and numbers with commas between them."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from models.errors import InputError

Options = TypeVar("Options")


class Lines(argparse.RawDescriptionHelpFormatter):
    """The text below the options keeps its lines."""


def runs(parser: argparse.ArgumentParser, run: Callable[..., int], *kinds: type[Any]) -> None:
    """Let the parser's command call `run` with one object of each kind, a frozen dataclass."""
    parser.set_defaults(run=lambda arguments: run(*(chosen(kind, arguments) for kind in kinds)))


def chosen(kind: type[Options], arguments: argparse.Namespace) -> Options:
    """The dataclass by the names of its fields; what the parser does not have keeps its default."""
    given = vars(arguments)
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})  # type: ignore[arg-type]  # a dataclass


def option(name: str) -> str:
    """`tuning_epochs` -> `--tuning-epochs`."""
    return f"--{name.replace('_', '-')}"


def numbers(name: str, text: str) -> list[float]:
    """`0.1,0.3` -> [0.1, 0.3], each once. Raises InputError that names the option."""
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{name} takes numbers with commas between them, not {text!r}") from None


def seeds(text: str | None, default: int) -> list[int]:
    """--seeds, each once; without it the default alone. Raises InputError."""
    try:
        found = [default] if text is None else list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"--seeds takes whole numbers with commas between them, not {text!r}") from None
    if any(not 0 <= seed < 2**32 for seed in found):
        raise InputError("a seed is a whole number from 0 to 4294967295")
    return found
