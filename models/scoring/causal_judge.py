"""A causal language model of transformers as a judge: log-likelihoods of two continuations."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import BundleError, InputError
from models.inference.hub import transformers_library


class CausalJudge:
    """The model and tokenizer of a directory, in fp32, one text at a time: no grade depends on its neighbours."""

    def __init__(self, directory: Path) -> None:
        """Raises BundleError where the directory holds no causal language model with a tokenizer."""
        library = transformers_library()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(directory, **local)
            self._model, loaded = library.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, output_loading_info=True, **local
            )
        except Exception as error:  # transformers raises a dozen types for what it cannot load
            raise BundleError(
                f"{directory} holds no causal language model that transformers can load: {type(error).__name__}"
            ) from error
        if loaded["missing_keys"]:  # transformers would make them up
            raise BundleError(f"{directory} lacks weights of its language model: {min(loaded['missing_keys'])}")
        self._model.eval()
        self._context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def __call__(self, prompts: Sequence[str], continuations: tuple[str, str]) -> NDArray[np.float64]:
        """(N, 2): the sum over a continuation's tokens of log p(token | prompt and what came before), in nats.

        Raises InputError for a prompt that is longer than the model's context.
        """
        endings = [self._ids(one, special=False) for one in continuations]
        if not all(endings):
            raise InputError("the judge's tokenizer makes no token of a continuation")
        rows = [
            [self._told(number, text, ending) for ending in endings] for number, text in enumerate(prompts, start=1)
        ]
        return np.array(rows, np.float64).reshape(len(prompts), 2)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _told(self, number: int, text: str, ending: list[int]) -> float:
        ids = self._ids(text, special=True)
        if ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()  # nothing follows an end
        if not ids:
            raise InputError(f"the judge's tokenizer makes no token of prompt {number}")
        if self._context is not None and len(ids) + len(ending) > self._context:
            raise InputError(f"prompt {number} has {len(ids)} tokens, the judge's context {self._context}: shorten it")
        # The last token needs no logits: of the rest, those that foretell the ending.
        inputs = torch.tensor([ids + ending[:-1]])
        with torch.inference_mode():
            keep = {"logits_to_keep": len(ending)} if self._keeps else {}
            logits = self._model(input_ids=inputs, use_cache=False, **keep).logits[0, -len(ending) :]
        return float(logits.float().log_softmax(-1)[range(len(ending)), ending].sum())
