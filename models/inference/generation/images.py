"""Prompts with an image: the model's own processor of transformers, PIL behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import BundleError, InputError
from models.generation import Generation, Prompt
from models.inference.generation.reader import Inputs, check_length, padded, plain_text

TOKEN_LEVEL = ("attention_mask", "token_type_ids", "mm_token_type_ids")  # a number for each token


@dataclass(frozen=True)
class ImageTextReader:
    """processor: an image processor and a tokenizer in one, as AutoProcessor finds it."""

    processor: Any
    generation: Generation
    pad_id: int

    @property
    def tokenizer(self) -> Any:
        """Of the texts."""
        return self.processor.tokenizer

    def read(self, prompt: Prompt) -> Inputs:
        """input_ids (T,) and all else that the processor makes, without the batch. Raises InputError."""
        if prompt.image is None:
            raise InputError("the prompt has no image, and this model needs one")
        given = self.processor(images=[prompt.image], text=[self._text(prompt)], return_tensors="np")
        row = {name: torch.from_numpy(np.asarray(values)[0]) for name, values in given.items() if name != "labels"}
        check_length(len(row["input_ids"]), self.generation)
        return row

    def batch(self, rows: Sequence[Inputs], *, left: bool) -> Inputs:
        """What is a number for each token is padded, what is of an image is stacked."""
        found: dict[str, Tensor] = {}
        for name in rows[0]:
            parts = [row[name] for row in rows]
            if name == "input_ids" or name in TOKEN_LEVEL:
                found[name] = padded(parts, self.pad_id if name == "input_ids" else 0, left=left)
            else:
                found[name] = torch.stack(parts)
        return found

    def _text(self, prompt: Prompt) -> str:
        if self.generation.prompt == "plain":
            return f"{getattr(self.processor, 'image_token', '')}{plain_text(self.generation, prompt)}"
        turns = [{"role": turn.role, "content": [{"type": "text", "text": turn.content}]} for turn in prompt.messages]
        turns[-1]["content"].insert(0, {"type": "image"})  # type: ignore[attr-defined]
        try:
            text: str = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # jinja's types, and whatever a template raises of roles that it does not know
            raise InputError(f"the chat template refuses this conversation: {str(error).splitlines()[0]}") from error
        return text


def load_processor(directory: Path) -> Any:
    """The processor of a directory; no code of its own is run. Raises BundleError."""
    from transformers import AutoProcessor  # noqa: PLC0415  seconds, for those who need it

    try:
        processor = AutoProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # a dozen types, all meaning: not to be loaded
        raise BundleError(f"{directory}: the processor cannot be loaded: {str(error).splitlines()[0]}") from error
    if not hasattr(processor, "image_processor"):
        raise BundleError(f"{directory}: its processor reads no images")
    return processor
