"""What the commands that measure have in common: where results go, and numbers within bounds."""

import argparse
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"


def between(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    """The type of an argument: a number in [low, high]."""

    def number(value: str) -> float:
        given = kind(value)
        if not low <= given <= high:
            raise argparse.ArgumentTypeError(f"must be between {low:g} and {high:,g}")
        return given

    return number
