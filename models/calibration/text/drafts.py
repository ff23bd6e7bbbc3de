"""The drafts of a split, resumable: thousands of answers take minutes to hours, which a kill must not cost.

What is done lies in a file of one JSON document a line, named by all that decides a draft; the same command goes on
from there.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle, draft_digest
from models.data.prompts.examples import Example, prompts_of
from models.errors import InputError
from models.inference.generation.text_model import Draft, TextModel, load_text_model
from models.inference.generation.traces import Trace
from models.progress import Waiting
from models.replacing import writing

BATCH_SIZE = 16


class Writer:
    """A model that is opened when the first draft is asked for, and the directory of what it has written."""

    def __init__(
        self, name: str, key: str, open_model: Callable[[], TextModel], work: Path, *, states: bool = False
    ) -> None:
        """key: all that decides a draft, for a file's name. states: keep those of the traces, in 16 bits."""
        self.name, self._key, self._open, self._work, self._states = name, key, open_model, work, states
        self._model: TextModel | None = None

    def drafts(self, examples: Sequence[Example], split: str, content_hash: str) -> list[Draft]:
        """A draft for each example, in order. content_hash: that of the data. Raises InputError and BundleError."""
        path = self._work / f"drafts-{self._key}-{content_hash[:12]}-{split}.jsonl"
        found = dict(_read(path, len(examples), states=self._states))
        missing = [place for place in range(len(examples)) if place not in found]
        if missing:
            self._write(path, examples, split, missing, found)
        drafts = [found[place] for place in range(len(examples))]
        _check_finite(drafts, self.name, split)
        return drafts

    def _write(
        self, path: Path, examples: Sequence[Example], split: str, missing: list[int], found: dict[int, Draft]
    ) -> None:
        if self._model is None:
            self._model = self._open()
        prompts = prompts_of([examples[place] for place in missing])
        told = f"{self.name} answers {len(missing):,} {split} prompts"
        if found:
            told += f" ({len(found):,} were answered before)"
        with writing(path), Waiting(told, len(missing)) as progress:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                for places, drafts in self._model.drafts(prompts, BATCH_SIZE):
                    for place, draft in zip(places, drafts, strict=True):
                        found[missing[place]] = draft
                        document = _document(missing[place], draft, states=self._states)
                        stream.write(json.dumps(document) + "\n")
                    stream.flush()
                    progress(len(places))


def bundle_writer(bundle: Bundle, work: Path) -> Writer:
    """That of a bundle's model."""

    def opened() -> TextModel:
        with Waiting(f"loading {bundle.manifest.name}"):
            return load_text_model(bundle)

    return Writer(bundle.manifest.name, draft_digest(bundle.manifest)[:12], opened, work)


def remove_drafts(work: Path) -> None:
    """Remove what was kept for another try."""
    for path in work.glob("drafts-*.jsonl"):
        path.unlink(missing_ok=True)


def _document(place: int, draft: Draft, *, states: bool) -> dict[str, Any]:
    state = draft.trace.state
    kept = {"state": b64encode(state.astype("<f2").tobytes()).decode("ascii")} if states and state is not None else {}
    return kept | {
        "place": place,
        "text": draft.text,
        "answer": draft.answer,
        "tokens": draft.trace.tokens,
        "log_prob": draft.trace.log_prob.tolist(),
        "entropy": draft.trace.entropy.tolist(),
        "ended": draft.trace.ended,
    }


def _read(path: Path, count: int, *, states: bool) -> Iterator[tuple[int, Draft]]:
    """What an earlier try has written; its last line may be cut, and is written anew then."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0]
    if len(whole) + 1 < len(content):
        path.write_bytes(whole + b"\n" if whole else b"")
    for line in whole.splitlines():
        try:
            said = json.loads(line)
            trace = Trace(
                tuple(said["tokens"]),
                np.array(said["log_prob"], dtype=np.float64),
                np.array(said["entropy"], dtype=np.float64),
                bool(said["ended"]),
                np.frombuffer(b64decode(said["state"]), "<f2").astype(np.float64) if "state" in said else None,
            )
            if 0 <= said["place"] < count and (trace.state is not None or not states):
                yield said["place"], Draft(said["text"], said["answer"], trace)
        except (ValueError, LookupError, TypeError):  # a line that a full disk or a person has damaged
            continue


def _check_finite(drafts: Sequence[Draft], name: str, split: str) -> None:
    for place, draft in enumerate(drafts, 1):
        if not (np.isfinite(draft.trace.entropy).all() and np.isfinite(draft.trace.log_prob).all()):
            raise InputError(
                f"{name} gives no finite number for prompt {place} of {split}: its weights or what they make of this "
                "prompt are NaN or infinite; nothing was written"
            )
