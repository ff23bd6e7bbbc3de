"""argparse with answers for people: a wrong option is told by its own command, with the nearest right one."""

import argparse
import sys
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from models.printing import printable

MOST_USAGE_CHARS = 400
SHOWN_CHARS = 200  # of what somebody typed


class Parser(argparse.ArgumentParser):
    """Of `gatekeeper` and each of its commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse, but nothing unknown is left over: the outermost command would tell of it, with its own usage."""
        if self._subparsers is None:  # first of all: what is missing is often what was misspelt
            for given in args or ():
                if given == "--":
                    break
                if given.startswith("--") and not any(
                    option.startswith(given.partition("=")[0]) for option in self._long()
                ):
                    self.error(f"unknown option {self._with_nearest(given)}")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(
                f"unknown {'option' if unknown[0].startswith('-') else 'argument'} {self._with_nearest(unknown[0])}"
            )
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """The usage, short where there are many options, and one line."""
        usage = self.format_usage()
        if len(usage) > MOST_USAGE_CHARS:
            usage = f"usage: {self.prog} ...   (`{self.prog} --help` has its options)\n"
        self.exit(2, f"{usage}{self.prog}: {printable(message, 1_000)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        nearest = get_close_matches(str(value), choices, 1)
        means = f"do you mean {nearest[0]}?" if nearest else f"there is {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"{_shown(str(value))} is none of them: {means}")

    def _with_nearest(self, given: str) -> str:
        name = given.partition("=")[0]
        nearest = get_close_matches(name, self._long(), 1) if name.startswith("--") else []
        return _shown(name) + (f": do you mean {nearest[0]}?" if nearest else "")

    def _long(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


class Version(argparse.Action):
    """`--version`, looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        print(_versions())
        parser.exit()


def _versions() -> str:
    """Of ours, Python's and torch's, which is not loaded for it."""
    return f"gatekeeper {_version('gatekeeper-cascade')}, Python {sys.version.split()[0]}, torch {_version('torch')}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}...")
