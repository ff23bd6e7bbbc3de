"""What others wrote - a server's answer, a label, a file's name - as it may stand on a terminal."""


def printable(text: str, most: int = 2_000) -> str:
    """One line without anything that a terminal obeys or that hides: such characters become their escapes."""
    shown = "".join(character if character.isprintable() else _escaped(character) for character in text[:most])
    return shown if len(text) <= most else f"{shown} ... ({len(text) - most} more characters)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
