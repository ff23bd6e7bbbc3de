"""Named datasets -> splits, deterministic and hashed.

train      both tuning stages
select     early stopping, choice of alpha and recipe
calibrate  temperature, calibration.parquet, every threshold and guarantee
test       read by `evaluate` alone
"""

import hashlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import InputError


@dataclass(frozen=True)
class Split:
    """Texts and their label indices, in order."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextDataset:
    """A labelled text dataset. `out_of_scope` are test queries that belong to no label."""

    name: str
    licence: str
    labels: tuple[str, ...]
    train: Split
    select: Split
    calibrate: Split
    test: Split
    out_of_scope: tuple[str, ...]
    content_hash: str


def load_dataset(name: str, data_dir: Path | None) -> TextDataset:
    """The dataset of that name. data_dir holds one folder a dataset. Raises InputError."""
    if name not in _LOADERS:
        raise InputError(f"unknown dataset {name!r}; there is: {', '.join(sorted(_LOADERS))}")
    if data_dir is None:
        raise InputError(
            f"where is {name}? Give --data-dir DIR (or GATEKEEPER_DATA_DIR), the folder that holds {name}/"
        )
    return _LOADERS[name](data_dir)


def _load_clinc150(data_dir: Path) -> TextDataset:
    """CLINC150 (Larson et al. 2019): 150 intents; the 3,000 validation items make select and calibrate."""
    path = data_dir / "clinc150" / "data_full.json"
    content = _read_json(path)
    try:
        labels = tuple(sorted({label for _, label in content["train"]}))
        index = {label: position for position, label in enumerate(labels)}
        pairs = {key: [(str(text), index[label]) for text, label in content[key]] for key in ("train", "val", "test")}
        out_of_scope = tuple(str(text) for text, _ in content["oos_test"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not CLINC150's data_full.json ({error!r})") from error
    select, calibrate = _halves(pairs["val"], seed=0)
    splits = {
        "train": _split(pairs["train"]),
        "select": _split(select),
        "calibrate": _split(calibrate),
        "test": _split(pairs["test"]),
    }
    return TextDataset(
        name="clinc150",
        licence="CC BY 3.0 (Larson et al. 2019)",
        labels=labels,
        out_of_scope=out_of_scope,
        content_hash=_hash(labels, splits, out_of_scope),
        **splits,
    )


_LOADERS = {"clinc150": _load_clinc150}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; --data-dir is the folder that holds {path.parent.name}/") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _split(pairs: list[tuple[str, int]]) -> Split:
    return Split(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def _halves(pairs: list[tuple[str, int]], seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Two halves with the same number of each label (to one), in the order of the source."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for position, (_, label) in enumerate(pairs):
        by_label[label].append(position)
    generator = random.Random(seed)
    first: set[int] = set()
    for label in sorted(by_label):
        positions = by_label[label]
        generator.shuffle(positions)
        first.update(positions[: len(positions) // 2])
    chosen = [pair for position, pair in enumerate(pairs) if position in first]
    rest = [pair for position, pair in enumerate(pairs) if position not in first]
    return chosen, rest


def _hash(labels: tuple[str, ...], splits: dict[str, Split], out_of_scope: tuple[str, ...]) -> str:
    """sha256 over everything that a run reads, split by split."""
    document = {
        "labels": labels,
        "splits": {name: [split.texts, split.labels] for name, split in splits.items()},
        "out_of_scope": out_of_scope,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
