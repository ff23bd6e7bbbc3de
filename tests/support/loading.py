"""What several tests of loading data ask of a dataset, or of a load that is refused."""

from pathlib import Path

import pytest

from models.data.datasets import LabelledDataset, Split, load_dataset
from models.errors import InputError

ROWS = [(f"text {number} of {label}", label) for number in range(20) for label in ("ham", "spam")]


def splits(data: LabelledDataset) -> dict[str, Split]:
    return {name: getattr(data, name) for name in ("train", "select", "calibrate", "test")}


def sizes(data: LabelledDataset) -> list[int]:
    return [len(split) for split in splits(data).values()]


def pairs(data: LabelledDataset) -> list[tuple[str, str]]:
    """Every (text, label) of all splits."""
    return [
        (text, data.labels[label])
        for split in splits(data).values()
        for text, label in zip(split.inputs, split.labels, strict=True)
    ]


def refusal(data: object, data_dir: Path | None = None, **columns: str) -> str:
    """What a refused load says: one line."""
    with pytest.raises(InputError) as caught:
        load_dataset(str(data), data_dir, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)
