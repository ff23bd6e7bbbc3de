"""The model that is tuned, and how texts or images get into it: a net of ours, a local directory, or a hub id."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from models.bundle import MANIFEST, file_sha256
from models.data.datasets import LabelledDataset
from models.errors import InputError
from models.inference.architectures import SmallCNN, SmallCNNConfig, TextNet, TextNetConfig
from models.inference.encoding import PlainText
from models.inference.pixels import PROCESSOR, PixelEncoder
from models.inference.processors import load_pixel_encoder
from models.training.adapter import with_adapter
from models.training.pretrained import (
    TRIAL_TEXTS,
    check_answers,
    locate_model,
    longest_text,
    open_model,
    open_tokenizer,
    read_config,
)
from models.training.vocabulary import UNKNOWN, train_tokenizer

TEXT_NET, SMALL_CNN, WIDE_CNN = "text-net", "small-cnn", "wide-cnn"
NETS = {TEXT_NET: "text-classification", SMALL_CNN: "image-classification", WIDE_CNN: "image-classification"}
LARGEST_SIDE = 96  # images of one size up to this are taken as they are, others are brought to DEFAULT_SIDE
DEFAULT_SIDE = 64


@dataclass(frozen=True)
class Shape:
    """What of a backbone's form may be chosen. None: what fits the data, or what the pretrained model has."""

    vocabulary: int = 4000
    max_tokens: int = 128
    image_size: int | None = None
    lora_rank: int = 0


@dataclass
class Backbone:
    """prepare: once per split, texts -> token ids (images stay). batch: prepared items -> the model's inputs."""

    model: PreTrainedModel
    prepare: Callable[[Sequence[Any]], Sequence[Any]]
    batch: Callable[[Sequence[Any]], dict[str, Tensor]]
    save_encoder: Callable[[Path], None]
    max_tokens: int | None
    adapted: bool = False

    def logits(self, prepared: Sequence[Any], batch_size: int = 256) -> Tensor:
        """(N, C) float32, in evaluation mode, in order."""
        self.model.eval()
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            return torch.cat(
                [
                    self.model(
                        **{
                            name: tensor.to(device)
                            for name, tensor in self.batch(prepared[start : start + batch_size]).items()
                        }
                    )
                    .logits.float()
                    .cpu()
                    for start in range(0, len(prepared), batch_size)
                ]
            )

    def save(self, directory: Path) -> None:
        """Write what a bundle's runtime `transformers` loads; an adapter is merged into the weights."""
        model = cast("Any", self.model)
        if self.adapted:  # a copy: merging is for good, and the next loss of a sweep starts from the adapter
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(directory)
        self.save_encoder(directory)


def check_model(name: str, data: LabelledDataset) -> None:
    """Raise InputError where the model cannot classify such data: before anything slow begins."""
    if name in NETS and NETS[name] != data.task:
        fitting = [net for net, task in NETS.items() if task == data.task]
        raise InputError(f"--model {name} does {NETS[name]}, and {data.name} is {data.task}: try {', '.join(fitting)}")


def open_backbone(name: str, data: LabelledDataset, shape: Shape) -> Backbone:
    """The model of that name with an output for each label of the data. Raises InputError."""
    check_model(name, data)
    if shape.lora_rank and name in NETS:
        raise InputError(f"--lora-rank adapts a pretrained model, and {name} starts from nothing")
    if name == TEXT_NET:
        return _text_net(data, shape)
    if name in NETS:
        return _cnn(name, data, shape)
    return _pretrained(name, data, shape)


def model_digest(name: str) -> str:
    """What a run depends on besides the name: the files of a local directory, but for a bundle's own documents."""
    if name in NETS or not Path(name).is_dir():
        return ""
    files = [path for path in sorted(Path(name).iterdir()) if path.suffix in {".json", ".safetensors"}]
    return " ".join(file_sha256(path) for path in files if path.name != MANIFEST)


def _names(data: LabelledDataset) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: index for index, label in enumerate(data.labels)},
    }


def _text_net(data: LabelledDataset, shape: Shape) -> Backbone:
    tokenizer = train_tokenizer([str(text) for text in data.train.inputs], shape.vocabulary)
    model = TextNet(TextNetConfig(vocab_size=tokenizer.get_vocab_size(), **_names(data)))
    return _text_backbone(model, tokenizer, shape.max_tokens, 0, tokenizer.token_to_id(UNKNOWN) or 0)


def _text_backbone(
    model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int, pad_id: int, empty_id: int
) -> Backbone:
    read = PlainText(tokenizer)

    def prepare(texts: Sequence[Any]) -> list[Tensor]:
        tokenizer.enable_truncation(max_tokens)
        encodings = read(list(texts))
        tokenizer.no_truncation()
        return [torch.tensor(encoding.ids or [empty_id]) for encoding in encodings]

    def batch(rows: Sequence[Any]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return {"input_ids": input_ids, "attention_mask": mask.long()}

    def save(directory: Path) -> None:
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)

    return Backbone(model, prepare, batch, save, max_tokens)


def _cnn(name: str, data: LabelledDataset, shape: Shape) -> Backbone:
    encoder = PixelEncoder.fitted_to(data.train.inputs, _image_size(data, shape))
    config = SmallCNNConfig(
        image_size=(encoder.height, encoder.width),
        num_channels=len(encoder.mean),
        channels=(16, 32) if name == SMALL_CNN else (32, 64, 128),
        convolutions=1 if name == SMALL_CNN else 2,
        hidden_size=64 if name == SMALL_CNN else 128,
        dropout=0.0 if name == SMALL_CNN else 0.3,
        shift=2,
        flip=True,
        **_names(data),
    )
    if min(encoder.height, encoder.width) < 2 ** len(config.channels):
        raise InputError(f"{encoder.height}x{encoder.width} pixels are too few for {name}: give --image-size")
    return Backbone(SmallCNN(config), lambda images: images, _pixels(encoder), encoder.save, None)


def _pixels(encode: Callable[[Sequence[Any]], Tensor]) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
    return lambda images: {"pixel_values": encode(images)}


def _image_size(data: LabelledDataset, shape: Shape) -> tuple[int, int]:
    if shape.image_size is not None:
        return shape.image_size, shape.image_size
    sizes = {cast("Any", image).shape[:2] for image in data.train.inputs[:100]}
    size = sizes.pop()
    return size if not sizes and max(size) <= LARGEST_SIDE else (DEFAULT_SIDE, DEFAULT_SIDE)


def _pretrained(name: str, data: LabelledDataset, shape: Shape) -> Backbone:
    directory = locate_model(name, f"{', '.join(NETS)}, or ")
    config = read_config(directory)
    text = data.task == "text-classification"
    if not text and not (directory / PROCESSOR).is_file():
        raise InputError(f"{directory / PROCESSOR} is missing: {name} is no model for {data.task}")
    opened = open_model(directory, config, data.task, **_names(data))
    model = with_adapter(opened.model, opened.fresh, shape.lora_rank) if shape.lora_rank else opened.model
    if not text:
        save = _copy(directory / PROCESSOR)
        backbone = Backbone(model, lambda images: images, _pixels(load_pixel_encoder(directory)), save, None)
        items = list(data.train.inputs[:2])
    else:
        max_tokens, pad_id = longest_text(opened.model, shape.max_tokens), opened.model.config.pad_token_id
        empty_id = getattr(config, "unk_token_id", None) or pad_id
        backbone = _text_backbone(model, open_tokenizer(directory, max_tokens), max_tokens, pad_id, empty_id)
        items = [*TRIAL_TEXTS, TRIAL_TEXTS[0] * max_tokens]
    backbone.adapted = bool(shape.lora_rank)
    check_answers(f"--model {name}", lambda some: backbone.logits(backbone.prepare(some)), items)
    return backbone


def _copy(file: Path) -> Callable[[Path], None]:
    content = file.read_bytes()

    def save(directory: Path) -> None:
        (directory / file.name).write_bytes(content)

    return save


def is_bundle(name: str) -> bool:
    """Whether --model names a bundle, whose head is kept."""
    return (Path(name) / MANIFEST).is_file()
