"""What a source holds -> train, select, calibrate and test: divided by label, checked, hashed.

train      both tuning stages
select     early stopping, choice of alpha and recipe
calibrate  temperature, calibration.parquet, every threshold and guarantee
test       read by `evaluate` alone

A source that has no test rows gives a fifth of its training rows, then a fifth of the rest where it has no validation
rows; validation is divided into select and calibrate. The division depends on the source alone, never on a seed of the
training.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from models.data.images import ImageFiles
from models.data.labels import in_order, look, look_alikes, shown_label
from models.errors import InputError

Task = Literal["text-classification", "image-classification"]
Inputs = Sequence[Any]  # texts, or images; an array (N, H, W[, 3]) is such a sequence too

# The names under which a source's splits are known, in file names, in a column or on the hub.
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "select": "validation",
    "calibrate": "calibrate",
    "test": "test",
}
_CARVED = 5  # one row in five
_SEED = 0


@dataclass(frozen=True)
class Split:
    """Inputs and their label indices, in the order of the source.

    Texts are a tuple. Images are uint8, (H, W) or (H, W, 3) each: one array (N, H, W[, 3]) where the source has them
    all in one size, else a sequence that decodes an image when it is asked for.
    """

    inputs: Inputs
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LabelledDataset:
    """A labelled dataset. `notes` are what its user should know, one sentence each."""

    name: str
    task: Task
    licence: str
    labels: tuple[str, ...]
    train: Split
    select: Split
    calibrate: Split
    test: Split
    out_of_scope: tuple[str, ...]  # test queries that belong to no label
    content_hash: str  # sha256 over everything that a run reads
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Some rows of a source. `keys` are equal where inputs are: the text itself, an image's fingerprint."""

    inputs: tuple[str, ...] | ImageFiles | NDArray[np.uint8]
    labels: Sequence[str]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Sequence[int]) -> "Rows":
        inputs: tuple[str, ...] | ImageFiles | NDArray[np.uint8]
        if isinstance(self.inputs, tuple):
            inputs = tuple(self.inputs[position] for position in positions)
        elif isinstance(self.inputs, ImageFiles):
            inputs = self.inputs.take(positions)
        else:
            inputs = self.inputs[np.array(positions, dtype=np.int64)]
        return Rows(inputs, [self.labels[p] for p in positions], [self.keys[p] for p in positions])


@dataclass(frozen=True)
class Source:
    """What was read. `where` is what an error calls it; `given` has train and any of validation, calibrate, test."""

    name: str
    where: str
    task: Task
    licence: str
    given: Mapping[str, Rows]
    labels: tuple[str, ...] | None = None  # their order; None: sorted
    out_of_scope: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build(source: Source) -> LabelledDataset:
    """The dataset of a source. Raises InputError where it cannot be divided or its labels do not fit together."""
    for name, rows in source.given.items():
        if len(rows) == 0:
            raise InputError(f"{source.where}: the split {name} has no rows")
    if "train" not in source.given:
        there = f", only {', '.join(source.given)}" if source.given else ""
        raise InputError(f"{source.where}: there are no training rows{there}")
    labels = _ordered(source)
    divided = _divide(source)
    index = {label: position for position, label in enumerate(labels)}
    splits = {
        name: Split(cast("Inputs", rows.inputs), tuple(index[label] for label in rows.labels))
        for name, rows in divided.items()
    }
    return LabelledDataset(
        name=source.name,
        task=source.task,
        licence=source.licence,
        labels=labels,
        out_of_scope=source.out_of_scope,
        content_hash=_hash(labels, divided, splits, source.out_of_scope),
        notes=(*source.notes, *_notes(source.task, divided), *_alike(source)),
        **splits,
    )


def _ordered(source: Source) -> tuple[str, ...]:
    """The labels of the training rows. Every other split may have these alone: a model cannot learn another."""
    present = set(source.given["train"].labels)
    if len(present) == 1:
        raise InputError(
            f"{source.where}: every training row has the label {_short(present.pop())}; two labels or more are needed"
        )
    for name, rows in source.given.items():
        missing = sorted(set(rows.labels) - present)
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            alike = next((label for label in sorted(present) if look(label) == look(missing[0])), None)
            advice = "give it training rows, or take its rows out"
            if alike is not None:
                advice = f"there, {shown_label(alike)} looks like {shown_label(missing[0])}: give them one spelling"
            raise InputError(
                f"{source.where}: the label {_short(missing[0])}{others} occurs in {name} and not in train; {advice}"
            )
    if source.labels is not None:
        return tuple(label for label in source.labels if label in present)
    return in_order(present)


def _short(label: str) -> str:
    return repr(label) if len(label) <= 100 else f"{label[:100]!r} ..."


def _divide(source: Source) -> dict[str, Rows]:
    """train, select, calibrate and test from what the source gives."""
    rest, test = source.given["train"], source.given.get("test")
    if test is None:
        rest, test = _carve(rest, 1)
    validation, calibrate = source.given.get("validation"), source.given.get("calibrate")
    if validation is None:
        rest, validation = _carve(rest, 2)
    elif len(validation) < 2 and calibrate is None:
        raise InputError(f"{source.where}: the split validation has one row; it is halved, so two are needed")
    if len(test) == 0 or len(validation) < (2 if calibrate is None else 1):
        rows = source.given["train"]
        raise InputError(
            f"{source.where}: {len(rows)} rows of {len(set(rows.labels))} labels are too few to divide into train, "
            "select, calibrate and test: at least two labels need 4 rows or more"
        )
    select, calibrate = _halves(validation) if calibrate is None else (validation, calibrate)
    return {"train": rest, "select": select, "calibrate": calibrate, "test": test}


def _carve(rows: Rows, least: int) -> tuple[Rows, Rows]:
    """(the rest, a fifth), the same share of each label to one row; at least so many rows, where that is possible.

    What whole numbers leave over comes from the labels with the largest remainders. A label always keeps two rows, so
    that one with a row or two stays in the rest.
    """
    by_label = _positions(rows.labels)
    wanted = max(least, round(len(rows) / _CARVED))
    generator = random.Random(_SEED)
    counts = {label: len(positions) // _CARVED for label, positions in by_label.items()}
    spare = [label for label, positions in by_label.items() if len(positions) - counts[label] >= 3]
    generator.shuffle(spare)
    spare.sort(key=lambda label: -(len(by_label[label]) % _CARVED))
    for label in spare[: max(0, wanted - sum(counts.values()))]:
        counts[label] += 1
    chosen: set[int] = set()
    for label, positions in by_label.items():
        generator.shuffle(positions)
        chosen.update(positions[: counts[label]])
    return _parted(rows, chosen)[::-1]


def _halves(rows: Rows) -> tuple[Rows, Rows]:
    """Two halves with the same number of each label (to one)."""
    by_label = _positions(rows.labels)
    generator = random.Random(_SEED)
    first: set[int] = set()
    odd = 0
    for positions in by_label.values():
        generator.shuffle(positions)
        first.update(positions[: (len(positions) + odd) // 2])
        odd ^= len(positions) % 2  # the odd row of one label goes to the second half, that of the next to the first
    return _parted(rows, first)


def _positions(labels: Sequence[str]) -> dict[str, list[int]]:
    by_label: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    return dict(sorted(by_label.items()))


def _parted(rows: Rows, chosen: set[int]) -> tuple[Rows, Rows]:
    """(the chosen rows, the others), each in the order of the source."""
    first = [position for position in range(len(rows)) if position in chosen]
    second = [position for position in range(len(rows)) if position not in chosen]
    return rows.take(first), rows.take(second)


def _notes(task: Task, divided: Mapping[str, Rows]) -> tuple[str, ...]:
    """Inputs that occur in two splits, or in train with two labels: allowed, but they blur what is measured."""
    noun = "text" if task == "text-classification" else "image"
    notes = []
    keys = {name: set(rows.keys) for name, rows in divided.items()}
    for one, other in combinations(keys, 2):
        if shared := len(keys[one] & keys[other]):
            notes.append(f"{_counted(shared, noun)} in {one} and in {other}")
    pairs = set(zip(divided["train"].keys, divided["train"].labels, strict=True))
    if ambiguous := sum(count > 1 for count in Counter(key for key, _ in pairs).values()):
        notes.append(f"{_counted(ambiguous, noun)} in train with different labels")
    return tuple(notes)


def _alike(source: Source) -> tuple[str, ...]:
    note = look_alikes(Counter(source.given["train"].labels))
    return () if note is None else (note,)


def _counted(count: int, noun: str) -> str:
    return f"1 {noun} occurs" if count == 1 else f"{count:,} {noun}s occur"


def _hash(
    labels: tuple[str, ...], divided: Mapping[str, Rows], splits: Mapping[str, Split], out_of_scope: tuple[str, ...]
) -> str:
    """sha256 over everything that a run reads, split by split."""
    document = {
        "labels": labels,
        "splits": {name: [list(divided[name].keys), split.labels] for name, split in splits.items()},
        "out_of_scope": out_of_scope,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
