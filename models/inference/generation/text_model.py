"""A bundle that writes text, loaded: prompts in, drafts out. One thread calls it, one batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.errors import BundleError, InputError
from models.generation import Generation, Prompt
from models.inference.generation.decode import greedy
from models.inference.generation.reader import Reader
from models.inference.generation.traces import Trace
from models.inference.generation.weights import load_reader, load_weights

MOST_HELD = 256 * 1024**2  # bytes of prompts that are kept as tensors, the pixels of some hundreds or thousands


@dataclass(frozen=True)
class Draft:
    """What a small model says before the gate. text: all it wrote; answer: the part that is one."""

    text: str
    answer: str
    trace: Trace


@dataclass(frozen=True)
class TextModel:
    """A model on torch, in evaluation mode, with its bundle's way to ask it and to read its answers."""

    model: Any
    reader: Reader
    generation: Generation
    pad_id: int

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, without special ones."""
        text: str = self.reader.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def draft(self, prompts: Sequence[Prompt]) -> list[Draft]:
        """A draft for each prompt, of one batch. Raises InputError for a prompt that it cannot take."""
        return self._draft([self.reader.read(prompt) for prompt in prompts])

    def _draft(self, rows: Sequence[Any]) -> list[Draft]:
        inputs = self.reader.batch(rows, left=True)
        traces = greedy(self.model, inputs, self.generation, self.pad_id, self.decode)
        texts = [self.decode(trace.tokens) for trace in traces]
        return [Draft(text, self.generation.answer_of(text), trace) for text, trace in zip(texts, traces, strict=True)]

    def drafts(self, prompts: Sequence[Prompt], batch_size: int = 16) -> Iterator[tuple[list[int], list[Draft]]]:
        """(positions, their drafts) batch by batch, prompts of like length together: padding is work.

        Raises InputError that names the prompt by its place, before the first draft.
        """
        lengths, read, held = [], {}, 0
        for place in range(len(prompts)):
            row = self._read(prompts, place)
            lengths.append(len(row["input_ids"]))
            held += sum(part.nbytes for part in row.values())
            if held <= MOST_HELD:
                read[place] = row
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size].tolist()
            yield places, self._draft([read.pop(place, None) or self._read(prompts, place) for place in places])

    def _read(self, prompts: Sequence[Prompt], place: int) -> Any:
        try:
            return self.reader.read(prompts[place])
        except InputError as error:
            raise InputError(f"prompt {place + 1}: {error}") from error


def load_text_model(bundle: Bundle) -> TextModel:
    """The model of a bundle that writes text, on the CPU or the GPU that is there. Raises BundleError."""
    manifest = bundle.manifest
    if not manifest.writes_text:
        raise BundleError(f"{bundle.directory}: {manifest.name} does {manifest.task} and writes no text")
    assert manifest.generation is not None  # load_bundle has checked it
    reader, pad_id = load_reader(bundle)
    return TextModel(load_weights(bundle), reader, manifest.generation, pad_id)
