"""The large model whose probabilities are the target of stage 2, token by token, where both have one vocabulary."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.prompts.examples import Example
from models.errors import InputError
from models.generation import TextTask
from models.inference.generation.text_model import load_text_model
from models.inference.generation.weights import load_reader
from models.training.text.backbone import IGNORED, Row, TextBackbone
from models.training.text.head_inputs import HeadInputs
from models.training.token_loss import SoftTargets

ROW_NUMBERS = "row_numbers"  # of a batch, beside the model's inputs


def check_one_vocabulary(large: Bundle, small: TextBackbone, name: str) -> None:
    """Raise InputError where a token of the large model is not the same token of the small one."""
    if not large.manifest.writes_text:
        raise InputError(f"--targets-from {large.manifest.name} does {large.manifest.task} and writes no text")
    reader, _ = load_reader(large)
    if reader.tokenizer.get_vocab() != small.reader.tokenizer.get_vocab():
        raise InputError(
            f"the vocabularies of {large.manifest.name} and {name} are not one, so its probabilities are no targets: "
            "leave --targets-from out"
        )


class Teacher:
    """Reads the same answers as the model that is tuned, with the prompts in its own form."""

    def __init__(self, large: Bundle, examples: Sequence[Example], rows: Sequence[Row]) -> None:
        """examples, rows: those that are trained on, and what the small model makes of them. Raises InputError."""
        text = load_text_model(large)
        task = cast("TextTask", large.manifest.task)  # check_one_vocabulary has seen it
        self.backbone = TextBackbone(
            text.model, task, text.reader, text.generation, text.pad_id, HeadInputs(text.model), lambda _: None
        )
        self._rows = [
            Row(text.reader.read(example.prompt), row.answer) for example, row in zip(examples, rows, strict=True)
        ]
        self._numbers: list[int] = []

    @contextmanager
    def listening(self, model: Any) -> Iterator[None]:
        """Note which rows each forward pass of the tuned model is of."""

        def take(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            numbers: Tensor = named.pop(ROW_NUMBERS)
            self._numbers = numbers.tolist()
            return given, named

        handle = model.register_forward_pre_hook(take, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def targets(self) -> SoftTargets:
        """At the answers' positions of the forward pass that has just been."""
        backbone = self.backbone
        batch = backbone.batch([self._rows[number] for number in self._numbers])
        device = next(backbone.model.parameters()).device
        counted = batch.pop("labels") != IGNORED
        with torch.no_grad(), backbone.head.taken():
            backbone.model(**{name: tensor.to(device) for name, tensor in batch.items()})
            hidden = backbone.head.hidden()[counted.to(device)]
        return SoftTargets(hidden, backbone.head.weight.detach(), backbone.head.bias, backbone.head.softcap)
