"""What others wrote - a server's answer, a label, a file's name - as it may stand on a terminal of any encoding."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

MOST_SHOWN = 60  # characters of a text that an error repeats


def printable(text: str, most: int = 2_000) -> str:
    """One line without anything that a terminal obeys or that hides: such characters become their escapes."""
    shown = "".join(character if character.isprintable() else _escaped(character) for character in text[:most])
    return shown if len(text) <= most else f"{shown} ... ({len(text) - most} more characters)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shown(items: Sequence[Any], position: int) -> str:
    """An item of a split as an error names it: the beginning of a text, the place of an image file."""
    files = getattr(items, "files", None)
    if files is not None:
        return printable(files[position].where, 200)
    item = items[position]
    return repr(item if len(item) <= MOST_SHOWN else f"{item[:MOST_SHOWN]}...") if isinstance(item, str) else "an image"


def prepare_output() -> None:
    """What the terminal's encoding lacks is shown as its escape, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def finish_output() -> None:
    """What was printed leaves now, while a failure can be told. Raises OSError: nobody reads, or the disk is full."""
    if not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        raise


def discard_output() -> None:
    """What cannot be printed any more is let go: Python would try again as it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
