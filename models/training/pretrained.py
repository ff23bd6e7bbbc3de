"""A transformers model of somebody else's, from its directory or the hub: what can be opened, and why what cannot.

Weights are read from safetensors alone, and no code that comes with them is run.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from models.bundle import ENCODERS, MOST_JSON_BYTES, Task
from models.errors import BundleError, InputError
from models.files import MIB, read_json
from models.inference.architectures import TextNet  # the import registers ours with the Auto classes
from models.inference.hub import fetch

logging.disable_progress_bar()  # of models that are open in a moment
TOKENIZER = ENCODERS["text-classification"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
CLASSES: dict[Task, Any] = {
    "text-classification": (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification),
    "image-classification": (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification),
}
TRIAL_TEXTS = ("a word or two ", "?", "")
NEAR = 1e-3  # how far the logits of an item may lie from those that it has in another batch, for each unit of them


@dataclass(frozen=True)
class Opened:
    """A model in float32. fresh: the parameters that its files lack, or have for other labels: random numbers."""

    model: PreTrainedModel
    fresh: frozenset[str]


def locate_model(name: str, others: str) -> Path:
    """The directory of a model, by its path or a hub id. others: what else could be named. Raises InputError."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name} is a file: name the directory that holds the model's config.json and weights")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{name}: no such directory; there is also {others}a hub id OWNER/NAME")
    try:
        return fetch(name)
    except BundleError as error:
        raise InputError(f"{name} is no directory here, and {error}") from error


def read_config(directory: Path) -> Any:
    """The model's configuration, as transformers knows it. Raises InputError for what is no model to read."""
    path = directory / "config.json"
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            f"{directory} is a LoRA adapter and no whole model: merge it (peft's AutoPeftModelForSequenceClassification"
            ".from_pretrained(DIR, num_labels=N).merge_and_unload().save_pretrained(NEW)), copy its tokenizer.json "
            "into NEW, and name that"
        )
    if not path.is_file():
        raise InputError(f"{path} is missing: {directory} is no transformers model")
    try:
        document = read_json(path, 16 * MIB)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is no JSON object")
    if document.get("auto_map") and document.get("model_type") not in CONFIG_MAPPING:
        raise InputError(f"{path}: the model is code of its own (auto_map), which is never run")
    if document.get("quantization_config"):
        raise InputError(f"{path}: its weights are quantised, which are not read: name the model before that")
    _check_weights(directory)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises types of a dozen libraries, all meaning: not to be loaded
        raise InputError(f"{path} cannot be loaded: {_first_line(error)}") from error


def _check_weights(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{directory} cannot be loaded: it has its weights in {pickles[0]}, which may run code and is never read; "
            "if you trust it, convert it: AutoModelForSequenceClassification.from_pretrained(DIR).save_pretrained(NEW) "
            "writes model.safetensors (AutoModelForImageClassification for images)"
        )
    raise InputError(f"{directory / 'model.safetensors'} is missing: the model has no weights")


def tasks_of(config: Any) -> list[Task]:
    """What transformers has a classifier of this kind for."""
    return [task for task, (mapping, _) in CLASSES.items() if type(config) in mapping]


def open_model(directory: Path, config: Any, task: Task, **changes: Any) -> Opened:
    """The classifier. changes: what of its configuration is to be otherwise. Raises InputError."""
    if task not in tasks_of(config):
        raise InputError(f"{directory} cannot be loaded: transformers has no {config.model_type} for {task}")
    try:
        model, info = CLASSES[task][1].from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other labels is made anew
            output_loading_info=True,
            **changes,
        )
    except Exception as error:
        raise InputError(f"{directory} cannot be loaded: {_first_line(error)}") from error
    fresh = frozenset(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    named = {name for name, _ in model.named_parameters()}
    base = {name for name in named if model.base_model is not model and _is_of_base(model, name)}
    if base and not base - fresh:
        raise InputError(f"{directory} cannot be loaded: its weights are not those of a {config.model_type}")
    others = sorted(entry[0] for entry in info["mismatched_keys"] if entry[0] in base)
    if others:
        raise InputError(f"{directory} cannot be loaded: {others[0]} has another shape than config.json says")
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if broken:
        raise InputError(f"{directory} cannot be loaded: it holds NaN or infinite numbers in {broken[0]}")
    if task == "text-classification":
        _settle_padding(model)
    return Opened(model, fresh & named)


def _is_of_base(model: PreTrainedModel, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")


def _settle_padding(model: PreTrainedModel) -> None:
    """A padding token for a model that has none: with it, decoders find the end of a text. Our own nets have one."""
    if isinstance(model, TextNet):
        return
    config, rows = model.config, model.get_input_embeddings().num_embeddings
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    candidates = (number for number in (config.pad_token_id, *ends, 0) if number is not None and 0 <= number < rows)
    config.pad_token_id = config.get_text_config().pad_token_id = next(candidates)


def longest_text(model: PreTrainedModel, wanted: int) -> int:
    """As many tokens as wanted, or as the model has positions for."""
    said = getattr(model.config, "max_position_embeddings", None)
    longest = said if isinstance(said, int) and said > 0 else wanted  # XLNet, which has no end, says -1
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and "position" in name:
            # RoBERTa and its kin count positions from behind the padding's number.
            longest = min(longest, module.num_embeddings - module.padding_idx - 1)
    return min(wanted, longest)


def open_tokenizer(directory: Path, max_tokens: int) -> Tokenizer:
    """The fast tokenizer: its tokenizer.json, or one made of an older model's vocabulary files. Raises InputError.

    max_tokens: what a text will be cut at, for the check that something of the text is left then.
    """
    path = directory / TOKENIZER
    if path.is_file() and path.stat().st_size > MOST_JSON_BYTES:
        raise InputError(f"{path} is larger than {MOST_JSON_BYTES // MIB} MiB")
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _made_tokenizer(directory)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a word or two")
    except InputError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error
    around = tokenizer.num_special_tokens_to_add(False)
    if max_tokens <= around:
        raise InputError(f"{max_tokens} tokens hold none of a text, {around} stand around it: give --max-tokens")
    return tokenizer


def _made_tokenizer(directory: Path) -> Tokenizer:
    path = directory / TOKENIZER
    hint = f"make one: AutoTokenizer.from_pretrained(NAME).save_pretrained({str(directory)!r})"
    try:
        made = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{path} is missing, and cannot be made here ({_first_line(error)}); {hint}") from error
    vocabularies = [name for key, name in made.vocab_files_names.items() if key != "tokenizer_file"]
    if not any((directory / name).is_file() for name in vocabularies):  # what it made has no words in it
        raise InputError(f"{path} is missing, as is {' and '.join(vocabularies) or 'every vocabulary'}; {hint}")
    if not made.is_fast:
        raise InputError(f"{path} is missing, and there is no fast tokenizer of this kind: it cannot be used")
    fast: Tokenizer = made.backend_tokenizer
    return fast


def said_limit(directory: Path) -> int | None:
    """The number of tokens that the tokenizer's own files cut a text at, where they say."""
    with suppress(OSError, ValueError):
        document = read_json(directory / "tokenizer_config.json", 16 * MIB)
        limit = document.get("model_max_length") if isinstance(document, dict) else None
        if isinstance(limit, int | float) and 1 <= limit < 1_000_000:  # "none" is written as 10^30
            return int(limit)
    return None


def check_answers(what: str, logits: Callable[[Sequence[Any]], Tensor], items: Iterable[Any]) -> None:
    """Raise InputError where the model does not answer, or an item's answer depends on what is asked beside it."""
    items = list(items)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            together = logits(items)
            alone = torch.cat([logits([item]) for item in items])
    except Exception as error:
        raise InputError(f"{what} does not answer: {_first_line(error)}") from error
    if not together.isfinite().all():
        raise InputError(f"{what} answers with NaN or infinite numbers")
    if ((together - alone).abs() > NEAR * (1 + alone.abs())).any():
        raise InputError(
            f"{what} answers otherwise when other inputs stand beside one (padding moves what it sees): no threshold "
            "would mean anything"
        )


def _first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    if isinstance(error, json.JSONDecodeError):
        return "it is no JSON"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said[:300] or type(error).__name__
