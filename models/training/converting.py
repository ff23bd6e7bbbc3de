"""A GGUF file as a directory of transformers: float32 weights, tokenizer, chat template. Needs gguf and accelerate."""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tqdm import tqdm

from models.errors import BundleError
from models.inference.hub import transformers_library
from models.inference.packaged import WEIGHTS_FILE, PackagedModel

LIBRARIES = ("transformers", "gguf", "tokenizers")
PROMPT = "The capital of France is"


def convert(gguf: Path, model: PackagedModel, directory: Path) -> dict[str, str]:
    """Write the model that `gguf` holds into `directory`, which is there and empty; returns the versions that did it.

    Tries what it wrote: every weight is there, tied ones are one tensor, and a prompt has finite logits. Raises OSError
    and SafetensorError for what cannot be written, and BundleError for a model that does not answer.
    """
    _write_weights(gguf, directory)
    _write_tokenizer(gguf, model, directory)
    _try(model, directory)
    return {name: metadata.version(name) for name in LIBRARIES}


def _write_weights(gguf: Path, directory: Path) -> None:
    """save_pretrained refuses what transformers calls quantised, also once it is not: a fresh model takes its place."""
    t = transformers_library()
    with _without_its_bar():
        read, report = t.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
    _complete(report, gguf)
    config, generation = read.config, read.generation_config
    for key in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    with torch.device("meta"):
        model = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)  # the same tensors, no copy
    model.tie_weights()
    model.generation_config = generation
    model.save_pretrained(directory)


def _complete(report: dict[str, Any], where: Path) -> None:
    """transformers draws at random what a file lacks, and goes on."""
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise BundleError(f"{where} and transformers' model differ in {wrong[0]} ({len(wrong)} in all)")


def _write_tokenizer(gguf: Path, model: PackagedModel, directory: Path) -> None:
    t = transformers_library()
    tokenizer = t.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if model.pre_tokenizer == "digits":
        # The file says "smollm", which transformers 5.23 does not know and takes for GPT-2's: "\n\n1" would begin with
        # two tokens where SmolLM2 has learned one. llama.cpp splits at each \p{N}, then as GPT-2, and so does SmolLM2's
        # own tokenizer.json.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    config = t.AutoConfig.from_pretrained(directory)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)


def _try(model: PackagedModel, directory: Path) -> None:
    """What was written, as the next command will read it."""
    t = transformers_library()
    tokenizer = t.AutoTokenizer.from_pretrained(directory)
    net, report = t.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    _complete(report, directory / WEIGHTS_FILE)
    if len(tokenizer) > net.config.vocab_size:
        raise BundleError(f"{model.name} has {len(tokenizer)} tokens and {net.config.vocab_size} logits")
    if net.config.tie_word_embeddings and net.get_output_embeddings().weight is not net.get_input_embeddings().weight:
        raise BundleError(f"{model.name} has come apart: its input and output embeddings are to be one tensor")
    with torch.inference_mode():
        logits = net(**tokenizer(PROMPT, return_tensors="pt")).logits  # (1, T, V)
    if not torch.isfinite(logits).all():
        raise BundleError(f"{model.name} gives no finite logits for {PROMPT!r}")


@contextmanager
def _without_its_bar() -> Iterator[None]:
    """Its GGUF reader draws a bar that no setting of transformers turns off; ours is the one line on stderr."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        reader.tqdm = before


def copy_documents(model: PackagedModel, directory: Path) -> None:
    """Its licence or terms, into the directory. Raises OSError."""
    for document in model.documents:
        if path := document.path():
            shutil.copyfile(path, directory / path.name)
