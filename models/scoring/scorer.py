"""What counts as right: an answer, what is known of its question, and a grade in [0, 1].

Wherever there are several references, the best one counts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

# No scorer looks at a longer text. Nobody asked for one: the model has run away, and work stays bounded.
MOST_CHARACTERS = 100_000


@dataclass(frozen=True)
class Reference:
    """What is known of one question.

    answers: one or more, each of them right. choices: where the answer is one of several. database: an SQLite file,
    where the answer is SQL.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    database: Path | None = None


@dataclass(frozen=True)
class Item:
    """One answer beside its reference. row: its place among all, from 1, as an error names it."""

    row: int
    answer: str
    reference: Reference


@dataclass(frozen=True)
class Scorer:
    """How answers are graded. graded: the grades lie anywhere in [0, 1]; otherwise each is 0 or 1."""

    name: str
    graded: bool
    grade: Callable[[Sequence[Item]], Iterable[float]]

    def __call__(self, answers: Sequence[str], references: Sequence[Reference]) -> NDArray[np.float64]:
        """The grades (N,) of N answers. An answer of more than MOST_CHARACTERS has 0.

        Raises InputError that names the row whose reference cannot be used, and ValueError where the lengths differ.
        """
        items = [Item(row, *pair) for row, pair in enumerate(zip(answers, references, strict=True), start=1)]
        for item in items:
            _check(item)
        short = [item for item in items if len(item.answer) <= MOST_CHARACTERS]
        grades = np.zeros(len(items))
        grades[[item.row - 1 for item in short]] = np.fromiter(self.grade(short), np.float64, len(short))
        return grades


def _check(item: Item) -> None:
    if not item.reference.answers:
        raise InputError(f"row {item.row}: there is no reference answer")
    if max(map(len, item.reference.answers)) > MOST_CHARACTERS:
        raise InputError(f"row {item.row}: its reference has more than {MOST_CHARACTERS} characters; shorten it")


def item_by_item(grade: Callable[[str, Reference], float]) -> Callable[[Sequence[Item]], Iterable[float]]:
    """A scorer's `grade` from one that sees an answer and its reference; its InputError gets the row."""

    def graded(items: Sequence[Item]) -> Iterable[float]:
        for item in items:
            try:
                yield grade(item.answer, item.reference)
            except InputError as error:
                raise InputError(f"row {item.row}: {error}") from error.__cause__

    return graded


def best(grade: Callable[[str, str], float]) -> Callable[[Sequence[Item]], Iterable[float]]:
    """The same from one that sees an answer and a single reference: the best of the references counts."""
    return item_by_item(lambda answer, reference: max(float(grade(answer, one)) for one in reference.answers))
