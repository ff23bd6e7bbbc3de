"""Greedy decoding on torch, the reference: transformers' own `generate`, with each token's entropy on the way.

Entropies and log-probabilities are reduced while the answer is made; no array over the vocabulary outlives its step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from models.errors import InputError
from models.generation import Generation
from models.inference.generation.reader import Inputs
from models.inference.generation.traces import Trace

Decode = Callable[[Sequence[int]], str]


class Recorder(LogitsProcessor):
    """Sees the raw logits of each step, (B, V), and keeps (B,) of them: the largest log-probability, the entropy."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.log_prob: list[Tensor] = []
        self.entropy: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  transformers' names
        """The same logits, but for entries that are no tokens, which can not be chosen."""
        log_p = torch.log_softmax(scores[:, : self.vocabulary].float(), dim=-1)
        self.log_prob.append(log_p.amax(dim=-1))
        p = log_p.exp()
        self.entropy.append(-torch.xlogy(p, p).sum(dim=-1))  # 0 where p is 0, also for a logit of -inf
        if self.vocabulary < scores.shape[1]:
            scores = scores.clone()
            scores[:, self.vocabulary :] = -torch.inf
        return scores


@contextmanager
def head_states(model: Any) -> Iterator[list[Tensor]]:
    """The hidden state (B, E) of which the output layer makes each step's logits."""
    found: list[Tensor] = []

    def take(_: Any, given: tuple[Tensor, ...]) -> None:
        found.append(given[0][:, -1].float())

    handle = model.get_output_embeddings().register_forward_pre_hook(take)
    try:
        yield found
    finally:
        handle.remove()


class StopTexts(StoppingCriteria):
    """Ends a row when what it wrote holds a stop text."""

    def __init__(self, stop: Sequence[str], decode: Decode, start: int) -> None:
        """start: where the new tokens begin."""
        self._stop, self._decode, self._start = stop, decode, start

    def __call__(self, input_ids: Tensor, scores: Any, **given: Any) -> Tensor:  # noqa: ARG002  transformers' names
        """(B,), whether each row is done."""
        written = (self._decode(row) for row in input_ids[:, self._start :].tolist())
        done = [any(stop in text for stop in self._stop) for text in written]
        return torch.tensor(done, device=input_ids.device)


def greedy(model: Any, inputs: Inputs, generation: Generation, pad_id: int, decode: Decode) -> list[Trace]:
    """The answers to a batch of prompts that is padded on the left. decode: tokens to the text they stand for."""
    recorder = Recorder(generation.vocabulary)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    start = 1 if encoder_decoder else inputs["input_ids"].shape[1]
    stopping = [StopTexts(generation.stop, decode, start)] if generation.stop else []
    with torch.inference_mode(), head_states(model) as states:
        found: Tensor = model.generate(
            **{name: tensor.to(model.device) for name, tensor in inputs.items()},
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=generation.max_new_tokens,
                eos_token_id=list(generation.end_tokens),
                pad_token_id=pad_id,
                bos_token_id=getattr(model.config, "bos_token_id", None),
                decoder_start_token_id=decoder_start(model) if encoder_decoder else None,
            ),
            logits_processor=LogitsProcessorList([recorder]),
            stopping_criteria=StoppingCriteriaList(stopping),
        )
    log_prob = torch.stack(recorder.log_prob, dim=1).double().cpu().numpy()
    entropy = torch.stack(recorder.entropy, dim=1).double().cpu().numpy()
    state = torch.stack(states, dim=1).double().cpu().numpy()
    traces = []
    for row, tokens in enumerate(found[:, start:].tolist()):
        length, ended = _length(tokens, generation, decode)
        own = np.s_[row, :length]
        traces.append(
            Trace(tuple(tokens[:length]), log_prob[own].copy(), entropy[own].copy(), ended, state[own].mean(axis=0))
        )
    return traces


def decoder_start(model: Any) -> int:
    """The token that an encoder-decoder model's decoder begins with, as transformers finds it. Raises InputError."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in (model.generation_config, model.config):
            found = getattr(config, name, None)
            if found is not None:
                return int(found)
    raise InputError("the model says no decoder_start_token_id: set it in its config.json")


def _length(tokens: Sequence[int], generation: Generation, decode: Decode) -> tuple[int, bool]:
    """(how many tokens are the answer's, whether it came to its end): up to the first end token or stop text."""
    for count, token in enumerate(tokens, 1):
        if token in generation.end_tokens:
            return count, True
        if generation.stop:
            written = decode(tokens[:count])
            if any(stop in written for stop in generation.stop):
                return count, True
    return len(tokens), False
