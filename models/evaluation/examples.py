"""A few labelled examples of somebody's own, as a request carries them: for `gatekeeper demo`, not for numbers."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.datasets import load_dataset
from models.data.images import ImageFiles
from models.data.records import Columns
from models.data.splits import Task
from models.data.tables import is_table, read_table
from models.errors import InputError

NAME_CHARS = 60  # of an example, where it is shown


@dataclass(frozen=True)
class Example:
    """`shown`: the text itself, or the image's name."""

    shown: str
    sent: Any
    label: str


def read_examples(data: str, data_dir: Path | None, columns: Columns, most: int) -> tuple[Task, list[Example]]:
    """So many at the most, from all over the test split: a model has not been tuned on those. Raises InputError.

    Of a table that is too small to have a test split, from all of its rows.
    """
    try:
        found = load_dataset(data, data_dir, text_column=columns.text, label_column=columns.label)
    except InputError:
        path = Path(data).expanduser()
        if not (is_table(path) and path.is_file()):
            raise
        by_split = read_table(path, columns).given
        rows = by_split.get("test") or next(iter(by_split.values()))
        return "text-classification", _chosen(rows.inputs, rows.labels, most)
    labels = [found.labels[label] for label in found.test.labels]
    return found.task, _chosen(found.test.inputs, labels, most)


def _chosen(inputs: Any, labels: Sequence[str], most: int) -> list[Example]:
    count = min(most, len(labels))
    positions = [round(number * (len(labels) - 1) / max(1, count - 1)) for number in range(count)]
    return [_example(inputs, position, labels[position]) for position in positions]


def _example(inputs: Any, position: int, label: str) -> Example:
    if isinstance(inputs[position], str):
        return Example(" ".join(inputs[position].split())[:NAME_CHARS], inputs[position], label)
    from models.evaluation.parity import encoded_file  # noqa: PLC0415  it knows HTTP, which reading data does not

    name = str(inputs.files[position].where) if isinstance(inputs, ImageFiles) else f"image {position + 1}"
    content = encoded_file(inputs, position)
    return Example(name[-NAME_CHARS:], {"image": base64.b64encode(content).decode("ascii")}, label)
