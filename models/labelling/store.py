"""The answers of an LLM on disk: what was paid for is never asked again, across kills and other budgets.

A line of JSON each, in a file that its owner alone can read: it holds the labels, and fingerprints of the texts.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import InputError
from models.replacing import writing

# What may have been the server's fault at that moment: it is asked again in the next run.
PASSING = ("schema", "empty", "cut", "rejected")


@dataclass(frozen=True)
class Kept:
    """One answer. label None: it is none of the labels, and `fault` says in a word what it was instead."""

    key: str
    label: str | None
    score: float | None
    fault: str
    prompt_tokens: int
    completion_tokens: int


def key_of(model: str, question: str, again: int = 0) -> str:
    """What an answer is kept by: all that the LLM was asked. again: the how manieth time the same is asked."""
    return hashlib.sha256(json.dumps([model, question, again]).encode()).hexdigest()


class AnswerStore:
    """The answers that there are, and the file that they go to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Kept] = dict(self._read())

    @contextmanager
    def appending(self) -> Iterator["AnswerStore"]:
        """Raises InputError where the file cannot be written."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.fchmod(descriptor, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as self._stream:
                try:
                    fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise InputError(f"another run is writing {self.path}: wait for it, or end it") from None
                yield self
            if not self.answers:
                self.path.unlink(missing_ok=True)

    def keep(self, answer: Kept) -> None:
        """At once on its way to the disk: a kill loses the calls that are out, nothing else. Raises OSError."""
        self.answers[answer.key] = answer
        self._stream.write(json.dumps(asdict(answer)) + "\n")
        self._stream.flush()

    def _read(self) -> Iterator[tuple[str, Kept]]:
        try:
            content = self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        whole = content.rpartition(b"\n")[0]
        if len(whole) + 1 < len(content):  # a line that a kill has cut
            with writing(self.path):
                self.path.write_bytes(whole + b"\n" if whole else b"")
        for line in whole.splitlines():
            try:
                answer = Kept(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if answer.fault not in PASSING:
                yield answer.key, answer
