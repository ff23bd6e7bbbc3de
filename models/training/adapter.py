"""LoRA: low-rank matrices beside the linear layers of a pretrained model, and its head trained whole."""

import warnings
from collections.abc import Collection, Iterable
from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from models.errors import InputError


def with_adapter(model: PreTrainedModel, fresh: Iterable[str], rank: int) -> PreTrainedModel:
    """A classifier with an adapter of this rank. fresh: parameters that the checkpoint lacks. Raises InputError."""
    return _adapted(model, rank, trained_whole(model, fresh))


def with_text_adapter(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """A model that writes text with an adapter of this rank; its output layer stays as it is. Raises InputError."""
    head = model.get_output_embeddings()
    return _adapted(model, rank, [], [name for name, module in model.named_modules() if module is head])


def _adapted(model: PreTrainedModel, rank: int, whole: list[str], left: Collection[str] = ()) -> PreTrainedModel:
    """whole: modules that are trained as they are; left: those that are not trained."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  a second to import, for those who ask for it

    adapted = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not _lies_in(name, [*whole, *left])
    }
    if not adapted:
        raise InputError(
            f"--lora-rank adapts linear layers, and {model.config.model_type} has none but its head: tune it without"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules=list(adapted),
        modules_to_save=whole or None,
        fan_in_fan_out=all(adapted.values()),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's business
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # of a model with layers of both kinds
        return cast("PreTrainedModel", get_peft_model(model, config))


def trained_whole(model: PreTrainedModel, fresh: Iterable[str]) -> list[str]:
    """The modules that no adapter can help: the head, whatever it is called, and what starts from random numbers."""
    base = model.base_model
    names = [
        name
        for name, child in model.named_children()
        if base is not model and child is not base and next(child.parameters(), None) is not None
    ]
    owners = {name.rpartition(".")[0] for name in fresh} - {""}
    names += sorted(owners, key=len)
    outermost: list[str] = []
    for name in names:
        if not _lies_in(name, outermost):
            outermost.append(name)
    return outermost


def _lies_in(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
