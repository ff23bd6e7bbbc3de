"""The offline commands, which `gatekeeper` asks for. A new one is a file beside this one and a name here."""

import argparse
from typing import Any

from models.commands import calibrate, compare, evaluate, fetch, importing, label, tune

COMMANDS = (fetch, label, tune, importing, calibrate, evaluate, compare)


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add each command's parser to the `gatekeeper` parser; each sets `run`."""
    for command in COMMANDS:
        command.add(commands)
