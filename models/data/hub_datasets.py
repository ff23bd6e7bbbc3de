"""Datasets of the Hugging Face hub: texts or images with their labels. Imported when one is asked for."""

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import datasets  # type: ignore[import-untyped]  # ships no types
from huggingface_hub import HfApi, constants

from models.data.image_sets import rows_of_files
from models.data.images import ImageFile
from models.data.records import IMAGE_COLUMN, UNLABELLED, Columns, cell, label_of
from models.data.splits import SPLIT_NAMES, Rows, Source, Task
from models.errors import InputError

_PROBE_S = 10.0
_NOT_STATED = "not stated"


def read_hub(hub_id: str, columns: Columns) -> Source:
    """The labelled dataset OWNER/NAME or OWNER/NAME:CONFIG. Raises InputError."""
    found, licence = open_hub(hub_id)
    return hub_source(hub_id, found, licence, columns)


def open_hub(hub_id: str) -> tuple[Any, str]:
    """(its splits, its licence) from the network or its cache. Raises InputError."""
    name, _, config = hub_id.partition(":")
    licence = _NOT_STATED
    try:
        if not constants.HF_HUB_OFFLINE:
            # One question first: without a network the library would ask for half a minute, retrying.
            card = HfApi().dataset_info(name, timeout=_PROBE_S).card_data
            licence = str(card.get("license") or licence) if card else licence
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's clients raise dozens of types, all meaning: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        cached = "" if constants.HF_HUB_OFFLINE else " (what was fetched before is read with HF_HUB_OFFLINE=1)"
        raise InputError(
            f"{hub_id} is no file or directory here, and as a dataset it cannot be had from the hub: "
            f"{type(error).__name__}: {reason}{cached}"
        ) from error
    return found, licence


def encoded(dataset: Any) -> Any:
    """The same rows, their images as bytes or paths: pixels of thousands would fill the memory."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def read_saved(name: str, directory: Path, columns: Columns) -> Source:
    """What the library `datasets` has saved to disk. Raises InputError."""
    try:
        found = datasets.load_from_disk(str(directory))
    except Exception as error:  # as above: dozens of types
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{directory} cannot be read as a dataset saved to disk: {reason}") from error
    if isinstance(found, datasets.Dataset):
        found = {"train": found}
    return hub_source(name, found, _NOT_STATED, columns)


def hub_source(hub_id: str, found: Mapping[str, Any], licence: str, columns: Columns) -> Source:
    """A DatasetDict as a source: its texts, or where it has no column of that name its images. Raises InputError."""
    by_split: dict[str, Any] = {}
    notes = []
    for split, dataset in found.items():
        name = SPLIT_NAMES.get(split)
        if name is None or name in by_split:
            notes.append(f"{hub_id}: the split {split} is not read")
        elif name != "train" and _is_unlabelled(dataset, columns.label):
            notes.append(f"{hub_id}: the split {split} is not read, it has no labels")
        else:
            by_split[name] = dataset
    if "train" not in by_split:
        raise InputError(f"{hub_id} has no split train; there is {', '.join(found)}")
    features = by_split["train"].features
    inputs = columns.text if columns.text in features or IMAGE_COLUMN not in features else IMAGE_COLUMN
    for name, dataset in by_split.items():
        for column in (inputs, columns.label):
            if column not in dataset.features:
                there = ", ".join(repr(name) for name in dataset.features)
                raise InputError(f"{hub_id}, split {name}, has no column {column!r}; there is {there}")
    labels = {name: _labels(f"{hub_id}, {name}", dataset, columns.label) for name, dataset in by_split.items()}
    task: Task
    if isinstance(features[inputs], datasets.Image):
        task, given = (
            "image-classification",
            rows_of_files(
                {
                    name: list(zip(_images(f"{hub_id}, {name}", dataset, inputs), labels[name], strict=True))
                    for name, dataset in by_split.items()
                }
            ),
        )
    else:
        task, given = "text-classification", {}
        for name, dataset in by_split.items():
            texts = tuple(
                cell(text, inputs, f"{hub_id}, {name}: row {row}") for row, text in enumerate(dataset[inputs], start=1)
            )
            given[name] = Rows(texts, labels[name], texts)
    feature = features[columns.label]
    order = tuple(name.strip() for name in feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return Source(hub_id, hub_id, task, licence, given, labels=order, notes=tuple(notes))


def _is_unlabelled(dataset: Any, column: str) -> bool:
    """Whether all its labels are kept secret."""
    return column in dataset.features and all(value in {None, UNLABELLED} for value in dataset[column])


def _labels(where: str, dataset: Any, column: str) -> list[str]:
    feature = dataset.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return [label_of(value, column, f"{where}: row {row}", names) for row, value in enumerate(dataset[column], start=1)]


def _images(where: str, dataset: Any, column: str) -> list[ImageFile]:
    encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return [
        ImageFile(f"{where}: row {row + 1}", partial(_open, encoded, column, row)) for row in range(encoded.num_rows)
    ]


def _open(encoded: Any, column: str, row: int) -> BinaryIO:
    image = encoded[row][column]
    if image is None:
        raise OSError("there is none")
    return Path(image["path"]).open("rb") if image["bytes"] is None else BytesIO(image["bytes"])
