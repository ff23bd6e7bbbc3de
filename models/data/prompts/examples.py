"""A prompt with its answers, and what a source of them holds -> train, select, calibrate and test.

Divided as labelled data are (data/splits.py), but for labels: equal prompts stay in one split, and so do prompts about
one image where there are images enough.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeVar, overload

from models.data.images import Image, ImageFile, decode
from models.errors import InputError
from models.generation import Message, Prompt

T = TypeVar("T")
PromptTask = Literal["text-generation", "image-text-to-text"]
_CARVED = 5  # one prompt in five
_SEED = 0
_ID_DIGITS = 16
_FEWEST_IMAGES = 20  # to divide by them


@dataclass(frozen=True)
class Example:
    """answers: all count as right, training teaches the first. choices: what a closed question may be answered with.
    image: a file that is decoded when it is asked for, or uint8 (H, W, 3). database: the SQLite file that an answer in
    SQL is run against."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    image: ImageFile | Image | None = None
    image_key: str = ""  # equal where images are
    database: Path | None = None

    @property
    def prompt(self) -> Prompt:
        """What a model is asked, its image decoded. Raises InputError where the file has become unreadable."""
        image = decode(self.image, grey=False) if isinstance(self.image, ImageFile) else self.image
        return Prompt(self.messages, image)

    @property
    def question(self) -> str:
        """The turns as a reader sees them."""
        return Prompt(self.messages).text

    @property
    def id(self) -> str:
        """What the prompt is called: the beginning of the sha256 of all that is asked."""
        asked = [[message.role, message.content] for message in self.messages]
        return hashlib.sha256(json.dumps([asked, self.image_key]).encode()).hexdigest()[:_ID_DIGITS]


class Each(Sequence[T]):
    """What is made of each example, when it is asked for: the pixels of thousands would fill the memory."""

    def __init__(self, make: Callable[[Example], T], examples: Sequence[Example]) -> None:
        self._make, self._examples = make, examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Each[T]": ...
    def __getitem__(self, place: int | slice) -> "T | Each[T]":
        if isinstance(place, slice):
            return Each(self._make, self._examples[place])
        return self._make(self._examples[place])


def prompts_of(examples: Sequence[Example]) -> Each[Prompt]:
    """Their prompts."""
    return Each(lambda example: example.prompt, examples)


@dataclass(frozen=True)
class PromptDataset:
    """scorer: the default name of what counts as right. `notes` are what its user should know, one sentence each."""

    name: str
    task: PromptTask
    licence: str
    scorer: str
    train: Sequence[Example]
    select: Sequence[Example]
    calibrate: Sequence[Example]
    test: Sequence[Example]
    content_hash: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSource:
    """What was read. `where` is what an error calls it; `given` has train and any of validation, calibrate, test.

    groups: what must stay in one split, for each example of `train`; None: equal prompts.
    """

    name: str
    where: str
    licence: str
    scorer: str
    given: Mapping[str, Sequence[Example]]
    notes: tuple[str, ...] = ()
    groups: Sequence[str] | None = None


def build_prompts(source: PromptSource) -> PromptDataset:
    """The dataset of a source. Raises InputError where it cannot be divided."""
    if not source.given.get("train"):
        raise InputError(f"{source.where}: there are no training rows")
    images = {example.image is not None for rows in source.given.values() for example in rows}
    if len(images) > 1:
        raise InputError(f"{source.where}: some prompts have an image and some have none: divide the file")
    splits = _divide(source)
    for name, rows in splits.items():
        if not rows:
            count = len(source.given["train"])
            raise InputError(
                f"{source.where}: {count} training rows are too few to divide, {name} would have none: give 20 or more"
            )
    return PromptDataset(
        source.name,
        "image-text-to-text" if images.pop() else "text-generation",
        source.licence,
        source.scorer,
        content_hash=_hash(splits),
        notes=(*source.notes, *_notes(splits)),
        **splits,
    )


def _divide(source: PromptSource) -> dict[str, list[Example]]:
    rest = list(source.given["train"])
    group = _grouping(source)
    groups = [group(example) for example in rest] if source.groups is None else list(source.groups)
    test, validation, calibrate = (source.given.get(name) for name in ("test", "validation", "calibrate"))
    if test is None:
        rest, groups, test = _carved(rest, groups)
    if validation is None:
        rest, groups, validation = _carved(rest, groups)
    if calibrate is None:
        validation, calibrate = _halves(validation, [group(example) for example in validation])
    return {"train": rest, "select": list(validation), "calibrate": list(calibrate), "test": list(test)}


def _carved(rows: list[Example], groups: list[str]) -> tuple[list[Example], list[str], list[Example]]:
    """(the rest, its groups, a fifth of the groups)."""
    names = sorted(set(groups))
    random.Random(_SEED).shuffle(names)
    chosen = set(names[: max(1, round(len(names) / _CARVED))])
    kept = [place for place, group in enumerate(groups) if group not in chosen]
    taken = [row for row, group in zip(rows, groups, strict=True) if group in chosen]
    return [rows[place] for place in kept], [groups[place] for place in kept], taken


def _grouping(source: PromptSource) -> Callable[[Example], str]:
    """What must stay in one split: prompts about one image where there are images enough, else equal prompts."""
    images = {example.image_key for rows in source.given.values() for example in rows}
    if "" in images or len(images) < _FEWEST_IMAGES:
        return lambda example: example.id
    return lambda example: example.image_key


def _halves(rows: Sequence[Example], groups: Sequence[str]) -> tuple[list[Example], list[Example]]:
    names = sorted(set(groups))
    random.Random(_SEED).shuffle(names)
    first = set(names[: (len(names) + 1) // 2])
    parts: tuple[list[Example], list[Example]] = [], []
    for row, group in zip(rows, groups, strict=True):
        parts[group not in first].append(row)
    return parts


def _notes(splits: Mapping[str, Sequence[Example]]) -> tuple[str, ...]:
    """What blurs a measurement: prompts in two splits, answers of the test that training has seen."""
    ids = {name: {example.id for example in rows} for name, rows in splits.items()}
    notes = []
    for one, other in combinations(ids, 2):
        if shared := len(ids[one] & ids[other]):
            notes.append(f"{shared:,} prompt{'s' if shared > 1 else ''} in {one} and in {other}")
    images = {name: {example.image_key for example in rows} - {""} for name, rows in splits.items()}
    for one, other in combinations(images, 2):
        if shared := len(images[one] & images[other]):
            notes.append(f"{shared:,} image{'s' if shared > 1 else ''} in {one} and in {other}")
    taught = {example.answers[0] for example in splits["train"]}
    wanted = {example.answers[0] for example in splits["test"]}
    closed = all(example.choices for example in splits["test"])
    if not closed and (seen := len(wanted & taught)):
        notes.append(f"the test's answers are {len(wanted):,} different texts, and {seen:,} of them occur in train")
    return tuple(notes)


def _hash(splits: Mapping[str, Sequence[Example]]) -> str:
    """sha256 over everything that a run reads, split by split."""
    document = {
        name: [[row.id, row.answers, row.choices, row.database and row.database.name] for row in rows]
        for name, rows in splits.items()
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def few(data: PromptDataset, most: int, seed: int = _SEED) -> PromptDataset:
    """The same data with at most so many prompts a split, drawn by the seed."""
    splits = {}
    for name in ("train", "select", "calibrate", "test"):
        rows = list(getattr(data, name))
        chosen = sorted(random.Random(seed).sample(range(len(rows)), min(most, len(rows))))
        splits[name] = [rows[place] for place in chosen]
    return replace(
        data,
        train=splits["train"],
        select=splits["select"],
        calibrate=splits["calibrate"],
        test=splits["test"],
        content_hash=_hash(splits),
    )
