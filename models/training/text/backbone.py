"""The model that is tuned to write text: how prompts and answers get into it, and how it is saved."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.bundle import Base
from models.errors import InputError
from models.generation import Generation, Prompt, TextTask
from models.inference.generation.decode import decoder_start
from models.inference.generation.images import TOKEN_LEVEL
from models.inference.generation.reader import Inputs, Reader, padded
from models.inference.generation.text_model import TextModel
from models.training.text.head_inputs import HeadInputs

IGNORED = -100  # torch's number for a position that no loss counts


class Row(NamedTuple):
    """A prompt as the model's inputs, and the answer's tokens (A,), the end token among them."""

    prompt: Inputs
    answer: Tensor


@dataclass
class TextBackbone:
    """base: where the frozen weights lie, of which the bundle holds an adapter alone; None: it holds all of them."""

    model: Any
    task: TextTask
    reader: Reader
    generation: Generation
    pad_id: int
    head: HeadInputs
    save_encoder: Callable[[Path], None]
    adapted: bool = False
    base: Base | None = None

    def row(self, prompt: Prompt, answer: str) -> Row:
        """Raises InputError for a prompt or an answer that is too long."""
        tokens = self.reader.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(tokens) + 1 > self.generation.max_new_tokens:
            raise InputError(
                f"the answer has {len(tokens) + 1:,} tokens with its end, and an answer may have "
                f"{self.generation.max_new_tokens:,}: give --max-new-tokens"
            )
        return Row(self.reader.read(prompt), torch.tensor([*tokens, self.generation.end_tokens[0]]))

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The model's inputs under teacher forcing, and `labels` (B, T): each position's next token, or IGNORED."""
        return self._of_both(rows) if self.task == "text2text-generation" else self._of_one(rows)

    def _of_one(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Prompt and answer in one sequence."""
        whole = []
        for prompt, answer in rows:
            more = len(answer) - 1
            row = dict(prompt)
            row["input_ids"] = torch.cat([prompt["input_ids"], answer[:-1]])
            for name in TOKEN_LEVEL:
                if name in prompt:
                    row[name] = torch.cat([prompt[name], torch.ones(more, dtype=prompt[name].dtype)])
            whole.append(row)
        labels = [torch.cat([torch.full((len(row.prompt["input_ids"]) - 1,), IGNORED), row.answer]) for row in rows]
        return {**self.reader.batch(whole, left=False), "labels": padded(labels, IGNORED, left=False)}

    def _of_both(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The prompt for the encoder, the answer for the decoder."""
        start = torch.tensor([decoder_start(self.model)])
        answers = [torch.cat([start, row.answer[:-1]]) for row in rows]
        return {
            **self.reader.batch([row.prompt for row in rows], left=False),
            "decoder_input_ids": padded(answers, self.pad_id, left=False),
            "labels": padded([row.answer for row in rows], IGNORED, left=False),
        }

    def text_model(self) -> TextModel:
        """The same weights, to write with; training may go on afterwards."""
        return TextModel(self.model.eval(), self.reader, self.generation, self.pad_id)

    def save(self, directory: Path) -> None:
        """Write what the bundle's runtime loads: the adapter, or the whole weights, into which one is merged."""
        model = self.model
        if self.base is not None:
            # The name, no path: where the base lies is this machine's business.
            model.peft_config["default"].base_model_name_or_path = self.base.fetch or self.base.hub_id
            model.save_pretrained(directory, save_embedding_layers=False)
            (directory / "README.md").unlink(missing_ok=True)  # peft's card of nothing
            return
        if self.adapted:  # a copy: merging is for good, and the next loss of a sweep starts from the adapter
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(directory)
        self.save_encoder(directory)

    @property
    def runtime(self) -> str:
        """The bundle's."""
        return "transformers" if self.base is None else "peft"
