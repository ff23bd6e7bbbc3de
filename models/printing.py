"""What others wrote - a server's answer, a label, a file's name - as it may stand on a terminal."""

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
