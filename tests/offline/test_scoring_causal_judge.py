"""A causal language model as the judge: its log-likelihoods are those of the dense logits, text by text."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.tiny_models import KINDS, write_model

from models.errors import BundleError, InputError
from models.scoring.causal_judge import CausalJudge
from models.scoring.registry import scorer
from models.scoring.scorer import Reference

CONTINUATIONS = (" Same", " Different")


def write_causal(kind: str, directory: Path, **changes: Any) -> Path:
    """A tiny random language model with a head of its own."""
    torch.manual_seed(0)
    made = KINDS[kind]
    assert made.tokenizer is not None
    config = made.config(max_position_embeddings=1_024, **changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made.tokenizer(), eos_token="</s>").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_likelihoods_are_those_of_the_dense_logits(kind: str, tmp_path: Path) -> None:
    directory = write_causal(kind, tmp_path)
    prompts = ["one prompt:", "another, longer than the one before:"]
    told = CausalJudge(directory)(prompts, CONTINUATIONS)
    assert told.shape == (2, 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    for prompt, row in zip(prompts, told, strict=True):
        for continuation, value in zip(CONTINUATIONS, row, strict=True):
            before = tokenizer(prompt)["input_ids"]
            ending = tokenizer(continuation, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([before + ending])).logits[0].double().log_softmax(-1)
            wanted = sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(ending))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_it_grades_in_the_unit_interval(llama: Path) -> None:
    grades = scorer("judge", judge=CausalJudge(llama))(
        ["a cat", "\ud800\0"], [Reference("What?", ("a dog", "a cat"))] * 2
    )
    assert ((grades > 0) & (grades < 1)).all()


def test_of_no_prompts_there_are_no_numbers(llama: Path) -> None:
    assert CausalJudge(llama)([], CONTINUATIONS).shape == (0, 2)


def test_a_prompt_beyond_the_context_is_an_error(llama: Path) -> None:
    with pytest.raises(InputError, match="prompt 2 has 2001 tokens, the judge's context 1024: shorten it"):
        CausalJudge(llama)(["x", "x" * 2_000], CONTINUATIONS)


def test_a_directory_that_holds_no_language_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no causal language model"):
        CausalJudge(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_model("llama", tmp_path)
    with pytest.raises(BundleError, match=r"lacks weights of its language model: lm_head.weight"):
        CausalJudge(tmp_path)


def test_a_continuation_without_a_token_is_an_error(llama: Path) -> None:
    judge = CausalJudge(llama)
    with pytest.raises(InputError, match="makes no token of a continuation"):
        judge(["x"], (" Same", ""))
    assert np.isfinite(judge(["x"], CONTINUATIONS)).all()
