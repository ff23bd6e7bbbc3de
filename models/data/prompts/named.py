"""Named sets of prompts and answers, below --data-dir. None of them is ours; each folder names its licence."""

import json
import random
import re
import sqlite3
import tarfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.prompts.examples import Example, PromptSource
from models.errors import InputError
from models.files import MIB, read_bounded, read_json
from models.generation import Message

MOST_BYTES = 256 * MIB
_VARIANT = re.compile(r"\(\d+\)$")
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_TENTH = 10  # of the training rows: one is select, one is calibrate, where a set has no validation split
_SEED = 0


def _asked(text: str, *answers: str, choices: Sequence[str] | None = None, database: Path | None = None) -> Example:
    return Example((Message("user", text),), answers, tuple(choices) if choices else None, database=database)


def _read(path: Path) -> Any:
    try:
        return read_json(path, MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; --data-dir is the folder that holds {path.parent.name}/") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _instructions(name: str, train: str, test: str, licence: str) -> Callable[[Path], PromptSource]:
    """Closed questions that show their choices and how to answer: `answer1/answer2/...`, `true/false`."""

    def load(directory: Path) -> PromptSource:
        given = {}
        for split, file in (("train", train), ("test", test)):
            path = directory / file
            try:
                given[split] = [_closed(str(row["instruction"]), str(row["answer"])) for row in _read(path)]
            except (KeyError, TypeError) as error:
                raise InputError(f"{path}: not {name} in its instruction form ({error!r})") from error
        given["train"], given["validation"] = _split_off(given["train"])
        return PromptSource(name, str(directory), licence, "choice", given)

    return load


def _closed(instruction: str, answer: str) -> Example:
    """The choices are what the last line says; some questions have a fifth that it leaves out."""
    said = instruction.rpartition("format:")[2].strip().split("/")
    return _asked(instruction, answer, choices=tuple(dict.fromkeys([*said, answer])))


def _split_off(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """(training rows, validation rows)."""
    chosen = set(random.Random(_SEED).sample(range(len(rows)), len(rows) // _TENTH * 2))
    return (
        [row for place, row in enumerate(rows) if place not in chosen],
        [row for place, row in enumerate(rows) if place in chosen],
    )


def _mawps(directory: Path) -> PromptSource:
    """Arithmetic word problems (Koncel-Kedziorski et al. 2016); the answer is the number."""
    given = {}
    for split, file in (("train", "trainset.json"), ("validation", "validset.json"), ("test", "testset.json")):
        try:
            given[split] = [_asked(row["original_text"], f"{float(row['ans']):g}") for row in _read(directory / file)]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory / file}: not MAWPS ({error!r})") from error
    return PromptSource("mawps", str(directory), "MIT", "number", given)


def _text2sql(name: str, database: str | None) -> Callable[[Path], PromptSource]:
    """Questions to SQL (Finegan-Dollak et al. 2018), each variable filled in on both sides."""

    def load(directory: Path) -> PromptSource:
        path = directory / f"{name}.json"
        file = directory / database if database else None
        given: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
        left_out = 0
        for entry in _read(path):
            for sentence in entry["sentences"]:
                split = _SPLITS.get(sentence["question-split"])
                if split is None:  # restaurants is in ten parts
                    split = "test" if sentence["question-split"] == "0" else "train"
                text, *queries = (_filled(part, sentence["variables"]) for part in (sentence["text"], *entry["sql"]))
                runs = [query for query in queries if file is None or _runs(file, query)]
                if not runs:
                    left_out += 1
                    continue
                given[split].append(_asked(text, *runs, database=file))
        given = {split: rows for split, rows in given.items() if rows}
        notes = (f"{left_out:,} questions whose SQL does not run on {database} are left out",) if left_out else ()
        licence = "research data (Finegan-Dollak et al. 2018)"
        scorer = "exact" if file is None else "sql-execution"
        return PromptSource(f"text2sql-{name}", str(path), licence, scorer, given, notes)

    return load


def _filled(text: str, variables: dict[str, str]) -> str:
    for variable in sorted(variables, key=len, reverse=True):
        text = text.replace(variable, variables[variable])
    return text


def _runs(database: Path, query: str) -> bool:
    """Whether a query of the set itself is one that this database knows: it is planned, not run."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)
        try:
            connection.execute(f"EXPLAIN {query.rstrip().rstrip(';')}")
        finally:
            connection.close()
    except sqlite3.Error:
        return False
    return True


def _cmudict(directory: Path) -> PromptSource:
    """The CMU Pronouncing Dictionary: a word to its phonemes; all variants of a word count as right."""
    path = directory / "cmudict.dict"
    try:
        lines = read_bounded(path, MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    words: dict[str, list[str]] = {}
    for line in lines:
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if word and phonemes:
            words.setdefault(_VARIANT.sub("", word), []).append(phonemes.strip())
    train = [_asked(" ".join(word), *dict.fromkeys(variants)) for word, variants in words.items()]
    stems = [word.removesuffix("'s").rstrip("s'") or word for word in words]  # a plural beside its word is no test
    return PromptSource("cmudict", str(path), "BSD style (Carnegie Mellon)", "exact", {"train": train}, groups=stems)


def _easy_vqa(directory: Path) -> PromptSource:
    """easy-VQA (Zhou 2019): questions about one shape on 64 x 64 pixels, 13 answers."""
    path = directory / "easy_vqa.tar.xz"
    questions: dict[str, list[Any]] = {}
    images: dict[str, dict[int, NDArray[np.uint8]]] = {"train": {}, "test": {}}
    for name, content in _members(path):
        part = name.split("/")[-3] if name.endswith(".png") else name.split("/")[-2]
        if part not in images:
            continue
        if name.endswith("questions.json"):
            questions[part] = json.loads(content)
        elif name.endswith(".png"):
            images[part][int(Path(name).stem)] = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    try:
        given = {
            part: [
                Example((Message("user", text),), (answer,), image=images[part][number], image_key=f"{part}/{number}")
                for text, answer, number in questions[part]
            ]
            for part in images
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not easy-VQA ({error!r})") from error
    chosen = set(random.Random(_SEED).sample(range(len(images["train"])), len(images["train"]) // _TENTH * 2))
    ours = {f"train/{number}" for number in chosen}
    given["validation"] = [row for row in given["train"] if row.image_key in ours]
    given["train"] = [row for row in given["train"] if row.image_key not in ours]
    return PromptSource("easy-vqa", str(path), "MIT (Zhou 2019)", "exact", given)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.size <= MOST_BYTES:
                    stream = archive.extractfile(member)
                    assert stream is not None  # it is a file
                    yield member.name, stream.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; --data-dir is the folder that holds easy-vqa/") from None
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


_CHALLENGE = ("ARC-Challenge-train.json", "ARC-Challenge-test.json")
_ARC = "CC BY-SA 4.0 (Clark et al. 2018)"
NAMED_PROMPTS: dict[str, tuple[str, Callable[[Path], PromptSource]]] = {
    "arc-easy": ("arc", _instructions("arc-easy", "ARC-Easy-train.json", "ARC-Easy-test.json", _ARC)),
    "arc-challenge": (
        "arc",
        _instructions("arc-challenge", *_CHALLENGE, _ARC),
    ),
    "openbookqa": ("openbookqa", _instructions("openbookqa", "train.json", "test.json", "Apache-2.0")),
    "boolq": ("boolq", _instructions("boolq", "train.json", "test.json", "CC BY-SA 3.0 (Clark et al. 2019)")),
    "mawps": ("mawps", _mawps),
    "text2sql-geography": ("text2sql", _text2sql("geography", "geography-db.added-in-2020.sqlite")),
    "text2sql-atis": ("text2sql", _text2sql("atis", None)),
    "text2sql-restaurants": ("text2sql", _text2sql("restaurants", None)),
    "cmudict": ("cmudict", _cmudict),
    "easy-vqa": ("easy-vqa", _easy_vqa),
}
