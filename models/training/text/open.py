"""Which model is tuned to write text: what `gatekeeper fetch` has converted, a directory, a hub id, or a small net of
transformers' own classes that starts from nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.bundle import Base, file_sha256
from models.data.prompts.examples import PromptDataset
from models.errors import InputError
from models.generation import Generation, TextTask
from models.inference.generation.images import ImageTextReader, load_processor
from models.inference.generation.reader import Reader, TextReader, load_tokenizer
from models.inference.generation.weights import open_weights, padding_id
from models.inference.packaged import MODELS, locate, read_source
from models.training.adapter import with_text_adapter
from models.training.pretrained import locate_model, read_config
from models.training.text.backbone import TextBackbone
from models.training.text.head_inputs import HeadInputs
from models.training.text.nets import NETS, start_net

LORA_RANK = 8  # of a packaged model, whose weights no bundle should hold
PLAIN = "{prompt}\n"
MOST_PROMPT_TOKENS = 1024
MOST_NEW_TOKENS = 512


@dataclass(frozen=True)
class TextShape:
    """What of the form may be chosen. None: what fits the model and the data."""

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    template: str | None = None
    stop: tuple[str, ...] = ()
    extract: str | None = None
    lora_rank: int | None = None


def open_text_backbone(name: str, data: PromptDataset, shape: TextShape) -> TextBackbone:
    """The model of that name, ready to be tuned. Raises InputError."""
    if name in NETS:
        if shape.lora_rank:
            raise InputError(f"--lora-rank adapts a pretrained model, and {name} starts from nothing")
        return _net(name, data, shape)
    return _pretrained(name, data, shape)


def _net(name: str, data: PromptDataset, shape: TextShape) -> TextBackbone:
    net = start_net(name, data)
    return _backbone(net.model, net.encoder, net.task, shape, data)


def _pretrained(name: str, data: PromptDataset, shape: TextShape) -> TextBackbone:
    directory, base = _located(name)
    task = _task(directory, data)
    try:
        model = open_weights(directory, task)
    except Exception as error:  # transformers raises types of a dozen libraries, all meaning: not to be loaded
        raise InputError(f"{directory} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    encoder = load_processor(directory) if task == "image-text-to-text" else load_tokenizer(directory)
    backbone = _backbone(model, encoder, task, shape, data)
    rank = shape.lora_rank if shape.lora_rank is not None else (LORA_RANK if base and base.fetch else 0)
    if rank:
        backbone.model, backbone.adapted = with_text_adapter(model, rank), True
        backbone.base = base
    return backbone


def _located(name: str) -> tuple[Path, Base | None]:
    """(directory, how a bundle names it): None for a directory of one's own, which no other machine has."""
    if name in MODELS:
        source = read_source(name)
        base = Base(fetch=name, weights_sha256=source.weights_sha256, tokenizer_sha256=source.tokenizer_sha256)
        return locate(name), base
    directory = locate_model(name, f"{', '.join((*MODELS, *NETS))}, or ")
    return directory, None if Path(name).is_dir() else _base(directory, hub_id=name)


def _base(directory: Path, **where: str) -> Base:
    weights, tokenizer = directory / "model.safetensors", directory / "tokenizer.json"
    for path in (weights, tokenizer):
        if not path.is_file():
            raise InputError(f"{path} is missing: adapt a copy of the whole model in a directory instead")
    return Base(weights_sha256=file_sha256(weights), tokenizer_sha256=file_sha256(tokenizer), **where)


def _task(directory: Path, data: PromptDataset) -> TextTask:
    """What transformers has the model for. Raises InputError where it does not fit the data."""
    from transformers import (  # noqa: PLC0415  seconds
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    kind = type(read_config(directory))
    if data.task == "image-text-to-text":
        if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise InputError(f"{directory} reads no images, and {data.name} has them")
        return "image-text-to-text"
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return "text2text-generation"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "text-generation"
    raise InputError(f"{directory} cannot be loaded: transformers has no {kind.model_type} that writes text")


def _backbone(model: Any, encoder: Any, task: TextTask, shape: TextShape, data: PromptDataset) -> TextBackbone:
    tokenizer = encoder.tokenizer if task == "image-text-to-text" else encoder
    pad_id = padding_id(tokenizer)
    generation = _generation(model, encoder, tokenizer, shape, data)
    reader: Reader = (
        ImageTextReader(encoder, generation, pad_id)
        if task == "image-text-to-text"
        else TextReader(tokenizer, generation, pad_id)
    )

    def save_encoder(directory: Path) -> None:
        encoder.save_pretrained(directory)

    return TextBackbone(model, task, reader, generation, pad_id, HeadInputs(model), save_encoder)


def _generation(model: Any, encoder: Any, tokenizer: Any, shape: TextShape, data: PromptDataset) -> Generation:
    chat = shape.template is None and bool(getattr(encoder, "chat_template", None))
    ends = _end_tokens(model, tokenizer)
    context = _context(model)
    longest = max(len(tokenizer(row.answers[0], add_special_tokens=False)["input_ids"]) + 1 for row in data.train)
    new = shape.max_new_tokens or min(MOST_NEW_TOKENS, longest + max(4, longest // 4))
    room = None if context is None else context - new
    if room is not None and room < 1:
        raise InputError(f"the model has {context:,} positions, and an answer may take {new:,}: lower --max-new-tokens")
    prompt = shape.max_prompt_tokens or min(MOST_PROMPT_TOKENS, room or MOST_PROMPT_TOKENS)
    if room is not None and prompt > room:
        raise InputError(
            f"--max-tokens {prompt:,} and {new:,} of an answer do not fit the model's {context:,} positions"
        )
    try:
        return Generation(
            prompt="chat" if chat else "plain",
            template=None if chat else (shape.template or PLAIN),
            vocabulary=min(len(tokenizer), model.get_output_embeddings().weight.shape[0]),
            end_tokens=ends,
            stop=shape.stop,
            extract=shape.extract,
            max_prompt_tokens=prompt,
            max_new_tokens=new,
        )
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"the form of prompts and answers cannot be: {why}") from None


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokenizer's own end first, which training teaches, then those that the model says."""
    said = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])]
    ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not ends:
        raise InputError("neither the tokenizer nor the model has an end token: set eos_token in tokenizer_config.json")
    return ends


def _context(model: Any) -> int | None:
    """How many positions a sequence may have; None: no end, or, with an encoder, one for each side."""
    if model.config.is_encoder_decoder:
        return None
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
