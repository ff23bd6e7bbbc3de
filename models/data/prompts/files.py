"""Prompts and answers from tables of one's own: .jsonl, .csv or .parquet, one file, or one for each split.

    {"prompt": "...", "answer": "..."}                            answer: a text, a number, or a list of right ones
    {"messages": [{"role": "user", "content": "..."}], ...}       a conversation in the place of the prompt
    {"prompt": "...", "choices": ["...", "..."], "answer": ...}   answer: a choice's text, its letter or its number
    {"question": "...", "choices": {"text": [...], "label": [...]}, "answerKey": "B"}     as the hub has ARC
    {"prompt": "...", "image": "shapes/1.png", ...}               a file, relative to the table
    {..., "split": "test"}                                        train, validation, calibrate or test

In a csv, messages, choices and a list of answers stand as JSON. Choices that the prompt does not show are added to it,
one a line behind a letter: the answer that is taught, and that counts, is then the letter.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from models.data.images import ImageFile, decode, fingerprints, image_file
from models.data.prompts.examples import Example, PromptSource
from models.data.records import SPLIT_COLUMN, cell
from models.data.shards import find_tables
from models.data.splits import SPLIT_NAMES
from models.data.tables import TABLE_SUFFIXES, is_table, table_rows
from models.errors import InputError
from models.generation import Message

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROLES = ("system", "user", "assistant")
NOT_STATED = "not stated"
_NESTED = ("messages", "choices", "answer")
_ALSO = {"question": "prompt", "answerKey": "answer"}  # as many sets of the hub call them
_HINT = '{"prompt": "...", "answer": "..."}'


def has_prompts(path: Path) -> bool:
    """Whether a table, or the first of a directory's, has a column prompt or messages, and an answer."""
    table = path
    if path.is_dir():
        found = [file for files in find_tables(path).files.values() for file in files]
        if not found:
            return False
        table = found[0]
    if not table.is_file() or not is_table(table):
        return False
    row = next(table_rows(table, _HINT), None)
    if row is None:  # a csv may have a header and no row: it is told so as what it means to be
        header = table.read_text(encoding="utf-8-sig").partition("\n")[0] if table.suffix.lower() == ".csv" else ""
        return are_prompts(name.strip() for name in header.split(","))
    return are_prompts(row[1])


def are_prompts(columns: Iterable[str]) -> bool:
    """Whether columns of these names hold prompts and answers."""
    names = {_ALSO.get(name, name) for name in columns}
    return "answer" in names and bool(names & {"prompt", "messages"})


def read_prompts(path: Path) -> PromptSource:
    """A file, or a directory with a table for each split. Raises InputError with the line that is wrong."""
    given: dict[str, list[Example]] = defaultdict(list)
    images = _Seen()
    if path.is_dir():
        for split, files in find_tables(path).files.items():
            for file in files:
                for where, row in table_rows(file, _HINT):
                    given[split].append(_example(file, where, row, images))
    elif is_table(path):
        for where, row in table_rows(path, _HINT):
            given[_split(where, row)].append(_example(path, where, row, images))
    else:
        raise InputError(f"{path}: prompts and answers are a {', '.join(TABLE_SUFFIXES)} file or a directory of them")
    return _source(path.name, str(path), NOT_STATED, given)


def hub_prompts(hub_id: str, found: Mapping[str, Any], licence: str) -> PromptSource:
    """What the library `datasets` returns, whose columns are those of a file. Raises InputError."""
    given: dict[str, list[Example]] = {}
    notes, images = [], _Seen()
    for split, rows in found.items():
        name = SPLIT_NAMES.get(split)
        if name is None or name in given:
            notes.append(f"{hub_id}: the split {split} is not read")
            continue
        given[name] = [
            _example(Path(), f"{hub_id}, {split}: row {row}", cells, images) for row, cells in enumerate(rows, 1)
        ]
    return _source(hub_id, hub_id, licence, given, tuple(notes))


def _source(
    name: str, where: str, licence: str, given: Mapping[str, list[Example]], notes: tuple[str, ...] = ()
) -> PromptSource:
    closed = all(example.choices for rows in given.values() for example in rows)
    return PromptSource(name, where, licence, "choice" if closed else "exact", given, notes)


def _split(where: str, row: dict[str, Any]) -> str:
    if SPLIT_COLUMN not in row:
        return "train"
    name = SPLIT_NAMES.get(str(row[SPLIT_COLUMN]).strip().lower())
    if name is None:
        raise InputError(f"{where}: the split {str(row[SPLIT_COLUMN])[:40]!r} is none of train, validation, test")
    return name


class _Seen:
    """The fingerprints of images; a file that many prompts ask about is decoded once."""

    def __init__(self) -> None:
        self._keys: dict[Path, str] = {}

    def look(self, path: Path, where: str, given: Any) -> tuple[ImageFile, str]:
        """(the image, what is equal where its pixels are). given: a file's name, or what the hub has.

        Raises InputError where it cannot be read.
        """
        if isinstance(given, dict) and given.get("bytes"):
            image = ImageFile(f"{where}, its image", partial(BytesIO, given["bytes"]))
            return image, _key(image)
        file = path.parent / cell(given.get("path") if isinstance(given, dict) else given, "image", where)
        image = ImageFile(f"{where}: {file}", image_file(file).open)
        if file not in self._keys:
            self._keys[file] = _key(image)
        return image, self._keys[file]


def _key(image: ImageFile) -> str:
    return fingerprints([decode(image, grey=False)])[0]


def _example(path: Path, where: str, row: dict[str, Any], images: _Seen) -> Example:
    for name, ours in _ALSO.items():
        if name in row and ours not in row:
            row = {**row, ours: row[name]}
    row = {name: _nested(value, name, where) for name, value in row.items()}
    messages = _messages(where, row)
    choices = _choices(where, row)
    answers = _answers(where, row)
    if choices is not None:
        places = [_place(where, answer, choices, _labels(row)) for answer in answers]
        if all(choice in messages[-1].content for choice in choices):
            answers = tuple(choices[place] for place in places)
        else:
            last = messages[-1]
            listed = "\n".join(f"{LETTERS[place]}. {choice}" for place, choice in enumerate(choices))
            messages = (*messages[:-1], Message(last.role, f"{last.content}\n{listed}"))
            answers = tuple(LETTERS[place] for place in places)
            choices = tuple(LETTERS[: len(choices)])
    if row.get("image") in (None, ""):
        return Example(messages, answers, choices)
    return Example(messages, answers, choices, *images.look(path, where, row["image"]))


def _nested(value: Any, name: str, where: str) -> Any:
    """A list that stands in a cell as JSON."""
    if name in _NESTED and isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            if name != "answer":
                raise InputError(f"{where}: {name} is no JSON list") from None
    return value


def _messages(where: str, row: dict[str, Any]) -> tuple[Message, ...]:
    if row.get("messages") is None:
        if "prompt" not in row:
            raise InputError(f"{where} has no 'prompt' and no 'messages'")
        return (Message("user", cell(row["prompt"], "prompt", where)),)
    given = row["messages"]
    if not isinstance(given, list) or not given or not all(isinstance(turn, dict) for turn in given):
        raise InputError(f"{where}: messages is a list of {{role, content}}")
    turns = []
    for turn in given:
        role = turn.get("role")
        if role not in ROLES:
            raise InputError(f"{where}: the role {str(role)[:40]!r} is none of {', '.join(ROLES)}")
        turns.append(Message(role, cell(turn.get("content"), "content", where)))
    if turns[-1].role == "assistant":
        raise InputError(f"{where}: the last message is the assistant's, which belongs into 'answer'")
    return tuple(turns)


def _choices(where: str, row: dict[str, Any]) -> tuple[str, ...] | None:
    given = row.get("choices")
    if given in (None, ""):
        return None
    if isinstance(given, dict):
        given = given.get("text")
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        raise InputError(f"{where}: choices is a list of 2 to {len(LETTERS)} texts")
    choices = tuple(cell(choice, "choices", where).strip() for choice in given)
    if len(set(choices)) < len(choices):
        raise InputError(f"{where}: two choices are the same")
    return choices


def _answers(where: str, row: dict[str, Any]) -> tuple[str, ...]:
    given = row.get("answer")
    several = given if isinstance(given, list) else [given]
    if not several:
        raise InputError(f"{where}: the column 'answer' is empty")
    return tuple(cell(answer, "answer", where).strip() for answer in several)


def _labels(row: dict[str, Any]) -> tuple[str, ...]:
    """What the choices are called, where the row says it."""
    labels = row["choices"].get("label") if isinstance(row["choices"], dict) else None
    return tuple(str(label) for label in labels) if isinstance(labels, list) else ()


def _place(where: str, answer: str, choices: tuple[str, ...], labels: tuple[str, ...]) -> int:
    """By its text first, then by the label that the row gives it, else a letter, then its number from 0."""
    if answer in choices:
        return choices.index(answer)
    if len(labels) == len(choices) and answer in labels:
        return labels.index(answer)
    letters = LETTERS[: len(choices)]
    if len(answer) == 1 and answer.upper() in letters:
        return letters.index(answer.upper())
    if answer.isdecimal() and answer.isascii() and len(answer) < 3 and int(answer) < len(choices):
        return int(answer)
    shown = ", ".join(repr(choice[:40]) for choice in choices[:6])
    raise InputError(
        f"{where}: the answer {answer[:60]!r} is none of the choices {shown}, nor a letter or number of one"
    )
