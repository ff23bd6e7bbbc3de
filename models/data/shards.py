"""Which tables of a folder hold which split: train.csv, the shards that the hub writes, or a folder for each split.

train.csv  test.parquet                                     one file a split
train-00000-of-00002.parquet  train-00001-of-00002.parquet  shards, here or in data/
train/0000.parquet  train/metadata.csv                      a folder for each split
english/train-00000-of-00001.parquet                        a folder for each configuration: one of them is given
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from models.data.splits import SPLIT_NAMES
from models.data.tables import is_table
from models.errors import InputError

_SHARD = re.compile(
    r"(?P<split>[a-z]\w*?)[-_.](?P<number>\d{1,9})([-_.]of[-_.](?P<total>\d{1,9}))?([-_.][0-9a-f]{16})?"
)
_NUMBERED = re.compile(r"(.*?)(?P<number>\d{1,9})([-_.]of[-_.](?P<total>\d{1,9}))?")
_NAMED_SHOWN = 5


class _Shard(NamedTuple):
    number: int
    total: int | None
    path: Path


@dataclass
class Found:
    """The tables of each split, in their order, and those that are of none."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def shard_of(path: Path) -> int | None:
    """How many files a split has of which this is one, by its name; None: it does not say."""
    match = _SHARD.fullmatch(path.stem.lower())
    return int(match["total"]) if match and match["total"] else None


def find_tables(directory: Path) -> Found:
    """The tables in the directory, else those in data/, else those of its one configuration. Raises InputError."""
    found = _here(directory)
    if found.files:
        return found
    data = directory / "data"
    if data.is_dir() and (inside := _here(data)).files:
        return inside
    configurations = {
        folder: inside for folder in _folders(directory) if folder != data and (inside := _here(folder)).files
    }
    if len(configurations) > 1:
        names = sorted(folder.name for folder in configurations)
        raise InputError(
            f"{directory} holds {len(names)} datasets, {_listed(names)}: give one, such as {directory / names[0]}"
        )
    for folder, inside in configurations.items():
        inside.notes.append(f"{folder} is what is read of {directory}")
        return inside
    return found


def _here(directory: Path) -> Found:
    found = Found()
    shards: dict[str, dict[str, list[_Shard]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or not is_table(path) or path.is_dir():
            continue
        name, shard = _named(path)
        split = SPLIT_NAMES.get(name)
        if split is None:
            found.others.append(path)
        elif shard is None:
            shards[split][path.name].append(_Shard(0, None, path))
        else:
            shards[split][f"{name}-{shard.total}{path.suffix.lower()}"].append(shard)
    for folder in _folders(directory):
        tables = sorted(path for path in folder.iterdir() if is_table(path) and path.name[0] != "." and path.is_file())
        if tables and (split := SPLIT_NAMES.get(folder.name.lower())):
            shards[split][folder.name] += [_numbered(path, place) for place, path in enumerate(tables)]
    for split, groups in shards.items():
        if len(groups) > 1:
            one, other = list(groups.values())[:2]
            raise InputError(
                f"{directory} has both {_relative(directory, one[0].path)} and {_relative(directory, other[0].path)} "
                f"for the split {split}; keep one"
            )
        (group,) = groups.values()
        _check_whole(directory, split, group)
        found.files[split] = [shard.path for shard in sorted(group)]
    if found.files and found.others:
        verb = "is not read: it is" if len(found.others) == 1 else "are not read: they are"
        found.notes.append(f"{directory}: {_listed([path.name for path in found.others])} {verb} named after no split")
    return found


def _named(path: Path) -> tuple[str, _Shard | None]:
    """(the split that a file's name begins with, its number there)."""
    stem = path.stem.lower()
    match = None if stem in SPLIT_NAMES else _SHARD.fullmatch(stem)
    if match is None:
        return stem, None
    total = match["total"]
    return match["split"], _Shard(int(match["number"]), int(total) if total else None, path)


def _numbered(path: Path, place: int) -> _Shard:
    match = _NUMBERED.fullmatch(path.stem)
    if match is None:
        return _Shard(place, None, path)
    return _Shard(int(match["number"]), int(match["total"]) if match["total"] else None, path)


def _check_whole(directory: Path, split: str, group: list[_Shard]) -> None:
    """A shard that did not arrive would leave a part of the data out, without a word."""
    numbers = {shard.number for shard in group}
    total = group[0].total
    if total is None and len(group) == 1:
        return
    # The hub counts from 0; other programs from 1.
    first = 1 if min(numbers) == 1 and (total is None or max(numbers) == total) else 0
    wanted = max(numbers) - first + 1 if total is None else total
    if len(numbers) < wanted:
        missing = next(number for number in count(first) if number not in numbers)
        raise InputError(
            f"{directory} has {len(numbers):,} of the {wanted:,} files of {split}, such as "
            f"{_relative(directory, min(group).path)}; number {missing} is missing: fetch it again"
        )


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _relative(directory: Path, path: Path) -> str:
    return str(path.relative_to(directory))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_SHOWN} more" if len(names) > _NAMED_SHOWN else ""
    return ", ".join(names[:_NAMED_SHOWN]) + more
