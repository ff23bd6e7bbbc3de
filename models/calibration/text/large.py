"""What the large model answers to prompts: a bundle that writes text, a table of its answers, or the perfect one.

    gatekeeper calibrate BUNDLE --data questions.jsonl --large runs/large
    gatekeeper calibrate BUNDLE --data questions.jsonl --large answers.csv
    gatekeeper calibrate BUNDLE --data questions.jsonl --large oracle

A table (.csv, .jsonl or .parquet) says which prompt a row is about by `prompt_id` (predictions.parquet has them) or by
`prompt`, its text; and what the large model made of it by `large_correct`, a grade between 0 and 1, or by
`large_answer`, which is scored as the small model's answer is. Every prompt needs a row; others are left aside.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, file_sha256, load_bundle
from models.calibration.large_answers import column_names, grades
from models.calibration.text.drafts import bundle_writer
from models.data.prompts.examples import Example, PromptDataset
from models.data.records import Columns
from models.data.tables import read_table
from models.errors import InputError
from models.printing import shown
from models.scoring.scorer import Reference, Scorer

Floats = NDArray[np.float64]
ORACLE = "oracle"
KEYS = ("prompt_id", "prompt")
VALUES = ("large_correct", "large_answer")
OF_PREDICTIONS = "answer"  # beside prompt_id; beside prompts it would be the data themselves, which are always right


class TextLargeAnswers(Protocol):
    """Where the large model's answers come from."""

    name: str
    digest: str

    def correct(self, data: PromptDataset, split: str, scorer: Scorer) -> Floats:
        """The correctness of its answer to each prompt of the split, in [0, 1], (N,). Raises InputError."""


def reference_of(example: Example) -> Reference:
    """What a scorer compares an answer with."""
    return Reference(example.question, example.answers, example.choices, example.database)


def open_text_large(path: Path, work: Path) -> TextLargeAnswers:
    """The source at this path. work: where a bundle's answers lie until the command is done. Raises InputError."""
    if str(path) == ORACLE:
        return Oracle()
    if path.is_dir():
        return LargeWriter(load_bundle(path), work)
    if not path.exists():
        raise InputError(f"--large {path} does not exist: it is a bundle's directory, a table of answers, or {ORACLE}")
    return LargeAnswerTable(path)


class Oracle:
    """A large model that is always right: what the gate's order of the small answers is worth by itself."""

    name = digest = ORACLE

    def correct(self, data: PromptDataset, split: str, scorer: Scorer) -> Floats:  # noqa: ARG002  it knows them all
        return np.ones(len(getattr(data, split)))


class LargeWriter:
    """The large model itself."""

    def __init__(self, bundle: Bundle, work: Path) -> None:
        self.name, self.digest = bundle.manifest.name, bundle.gate_digest
        if not bundle.manifest.writes_text:
            raise InputError(f"the large model {self.name} does {bundle.manifest.task} and writes no text")
        self._writer = bundle_writer(bundle, work)

    def correct(self, data: PromptDataset, split: str, scorer: Scorer) -> Floats:
        examples: Sequence[Example] = getattr(data, split)
        drafts = self._writer.drafts(examples, split, data.content_hash)
        return scorer([draft.answer for draft in drafts], [reference_of(example) for example in examples])


class LargeAnswerTable:
    """A table of its answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"the answers in {path.name}"
        names = column_names(path)
        key = next((name for name in KEYS if name in names), None)
        values = (*VALUES, OF_PREDICTIONS) if key == "prompt_id" else VALUES
        value = next((name for name in values if name in names), None)
        if key is None or value is None:
            raise InputError(
                f"{path} needs a column {' or '.join(KEYS)} and a column large_correct or large_answer; there is: "
                f"{', '.join(names) or 'none that can be read'}"
            )
        self.digest = f"table:{file_sha256(path)}"
        self._key, self._value = key, value
        self._answers: dict[str, str] = {}
        for part in read_table(path, Columns(key, value)).given.values():
            for asked, answer in zip(part.keys, part.labels, strict=True):
                if self._answers.setdefault(asked.strip(), answer) != answer:
                    raise InputError(f"{path} has two answers to {shown([asked], 0)}: keep one")

    def correct(self, data: PromptDataset, split: str, scorer: Scorer) -> Floats:
        examples: Sequence[Example] = getattr(data, split)
        keys = [example.id if self._key == "prompt_id" else example.question.strip() for example in examples]
        missing = [place for place, key in enumerate(keys) if key not in self._answers]
        if missing:
            raise InputError(
                f"{self.path} has no answer for {len(missing):,} of the {len(keys):,} {split} prompts; the first is "
                f"prompt {missing[0] + 1} ({shown(keys, missing[0])}); they are matched by the column {self._key!r}"
            )
        given = [self._answers[key] for key in keys]
        if self._value != "large_correct":
            return scorer(given, [reference_of(example) for example in examples])
        return grades(self.path, given)
