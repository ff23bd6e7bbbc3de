"""Prompts to what a model takes: the bundle's prompt form, tokens, and images where it reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.errors import BundleError, InputError
from models.generation import PLACE, Generation, Prompt

Inputs = dict[str, Tensor]


class Reader(Protocol):
    """One for each kind of model."""

    @property
    def tokenizer(self) -> Any:
        """Of the texts: a PreTrainedTokenizerFast of transformers."""

    def read(self, prompt: Prompt) -> Inputs:
        """A prompt as the model's inputs, each (T, ...) or, of an image, whatever the model takes; without a batch.

        Raises InputError for a prompt that the model cannot take, such as one that is too long.
        """

    def batch(self, rows: Sequence[Inputs], *, left: bool) -> Inputs:
        """Rows to one batch, padded on the left (to generate) or on the right (to train)."""


@dataclass(frozen=True)
class TextReader:
    """Texts alone. tokenizer: a PreTrainedTokenizerFast of transformers."""

    tokenizer: Any
    generation: Generation
    pad_id: int

    def read(self, prompt: Prompt) -> Inputs:
        """input_ids (T,). Raises InputError."""
        if prompt.image is not None:
            raise InputError("the prompt has an image, and this model reads texts alone")
        ids = self._ids(prompt)
        check_length(len(ids), self.generation)
        return {"input_ids": torch.tensor(ids, dtype=torch.long)}

    def batch(self, rows: Sequence[Inputs], *, left: bool) -> Inputs:
        """input_ids and attention_mask, (B, T)."""
        ids = padded([row["input_ids"] for row in rows], self.pad_id, left=left)
        mask = padded([torch.ones_like(row["input_ids"]) for row in rows], 0, left=left)
        return {"input_ids": ids, "attention_mask": mask}

    def _ids(self, prompt: Prompt) -> list[int]:
        if self.generation.prompt == "chat":
            text = render_chat(self.tokenizer, prompt)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(plain_text(self.generation, prompt))["input_ids"])
        return ids or [self.pad_id]  # a tokenizer that adds no special tokens makes nothing of ""


def render_chat(tokenizer: Any, prompt: Prompt) -> str:
    """The conversation in the tokenizer's chat template, ready for the assistant's turn. Raises InputError."""
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # jinja's types, and whatever a template raises of roles that it does not know
        raise InputError(f"the chat template refuses this conversation: {str(error).splitlines()[0]}") from error
    return text


def plain_text(generation: Generation, prompt: Prompt) -> str:
    """The prompt in the bundle's own form."""
    assert generation.template is not None  # Generation has checked it
    return generation.template.replace(PLACE, prompt.text)


def check_length(tokens: int, generation: Generation) -> None:
    """Raise InputError for a prompt longer than the model takes."""
    if tokens > generation.max_prompt_tokens:
        raise InputError(f"the prompt has {tokens:,} tokens, and this model takes {generation.max_prompt_tokens:,}")


def padded(rows: Sequence[Tensor], value: int, *, left: bool) -> Tensor:
    """(B, T), each row's numbers at the right (left padding) or at the left."""
    longest = max(len(row) for row in rows)
    batch = torch.full((len(rows), longest), value, dtype=torch.long)
    for place, row in zip(batch, rows, strict=True):
        if left:
            place[longest - len(row) :] = row
        else:
            place[: len(row)] = row
    return batch


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory; no code of its own is run. Raises BundleError."""
    from transformers import AutoTokenizer  # noqa: PLC0415  seconds, for those who need it

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise BundleError(f"{directory}: the tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error
