"""Two lists of the same labels: a model's in the order of its outputs, a dataset's in its own."""

from collections.abc import Sequence

from models.errors import InputError


def check_same_labels(what: str, labels: Sequence[str], others_of: str, others: Sequence[str]) -> None:
    """Raise InputError where one list has a label that the other has not: `the labels of WHAT are not those of ...`."""
    differing = sorted(set(labels) ^ set(others))
    if differing:
        raise InputError(
            f"the labels of {what} are not those of {others_of} ({len(differing)} differ, such as {differing[0]!r})"
        )


def places(labels: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where in `known` each of the labels stands; both have the same ones."""
    place = {label: number for number, label in enumerate(known)}
    return [place[label] for label in labels]
