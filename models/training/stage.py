"""One stage of training on transformers' Trainer: checkpoints, resume, precision, accumulation, many processes.

The loss goes in through the Trainer's hook.

A stage has a directory. While it runs, checkpoint-N/ lie there; when it is done, model.safetensors alone. A killed
stage goes on from its last whole checkpoint.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from models.errors import InputError
from models.replacing import write_whole
from models.training.recipes import Schedule

logging.disable_progress_bar()  # one for each file of each checkpoint
DONE = "model.safetensors"
STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint
TELL_EVERY_S = 10.0
FEWEST_STEPS_A_SAVE = 100  # an epoch of a small file is a fraction of a second, as is a save


@dataclass(frozen=True)
class Machine:
    """What does not belong to the recipe but to where it runs. save_steps: None, a checkpoint each epoch or
    each hundred steps."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_accumulation: int = 1
    save_steps: int | None = None
    tensorboard: Path | None = None


def world() -> tuple[int, int]:
    """(this process's rank, number of processes), as torchrun and accelerate launch set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Stage:
    """How a training is called, for how long it goes, and where it lies."""

    name: str
    schedule: Schedule
    seed: int
    directory: Path


@dataclass(frozen=True)
class Objective:
    """What is trained, and towards what.

    batch: numbers of rows, of `rows`, to the model's inputs and `labels`, of which those that are not -100 count.
    loss: the model's outputs, those labels and their number in the whole accumulated batch, to a scalar.
    """

    model: PreTrainedModel
    rows: int
    batch: Callable[[list[int]], dict[str, Tensor]]
    loss: Callable[[Any, Tensor, Tensor | int | None], Tensor]


def train_stage(stage: Stage, objective: Objective, machine: Machine, say: Callable[[str], None]) -> None:
    """Train the model in place, or take the weights of a stage that was done before. Raises InputError."""
    directory, model = stage.directory, objective.model
    if _taken(stage, model, say):
        return
    try:
        if stage.schedule.epochs == 0:  # kept all the same: another loss will start from these weights
            directory.mkdir(parents=True, exist_ok=True)
            if world()[0] == 0:
                _finish(model, directory)
            return
        checkpoint = _last_checkpoint(directory)
        if checkpoint is not None:
            say(f"{stage.name}: goes on from {checkpoint}")
        trainer = _trainer(stage, objective, machine, say)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        model.cpu()
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise InputError(f"{stage.name}: a weight is no number any more: lower the learning rate")
        if world()[0] == 0:
            _finish(model, directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_the_disk(error):
            raise
        raise InputError(
            f"{directory} cannot be written ({str(error).splitlines()[0]}): make room, then run the same command "
            "again, which goes on from the last checkpoint"
        ) from error


def _taken(stage: Stage, model: PreTrainedModel, say: Callable[[str], None]) -> bool:
    """Whether the stage was done before; then the model has its weights now."""
    weights = stage.directory / DONE
    if not weights.is_file():
        return False
    try:
        load_model(model, weights)
    except SafetensorError:
        say(f"{stage.name}: {weights} is damaged and is made again")
        weights.unlink()
        return False
    say(f"{stage.name}: done before, taken from {stage.directory}")
    return True


def _finish(model: PreTrainedModel, directory: Path) -> None:
    write_whole(directory / DONE, lambda scratch: save_model(model, str(scratch)))
    for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(path)


def _is_about_the_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    words = ("No space left", "write failed", "inline_container", "unexpected pos", "os error", "File too large")
    return any(word in str(error) for word in words)


def _last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint; what a kill left half written is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = []
    for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = int(path.name.rsplit("-", 1)[1])
            json.loads((path / STATE).read_bytes())
            whole.append((step, path))
        except (OSError, ValueError):
            if world()[0] == 0:
                shutil.rmtree(path, ignore_errors=True)
    return max(whole)[1] if whole else None


class _RowNumbers(Dataset[int]):
    """The Trainer shuffles these; the collator fetches what they stand for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> int:
        return position


def _trainer(stage: Stage, objective: Objective, machine: Machine, say: Callable[[str], None]) -> Trainer:
    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        return objective.loss(outputs, labels, num_items_in_batch)

    if machine.tensorboard is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(machine.tensorboard / stage.directory.name)
    trainer = Trainer(
        model=objective.model,
        args=_arguments(stage, objective.rows, machine),
        train_dataset=_RowNumbers(objective.rows),
        data_collator=objective.batch,
        compute_loss_func=compute_loss,
        callbacks=[_Progress(stage.name, say)],
    )
    for printer in ("PrinterCallback", "ProgressCallback"):
        _remove_callback(trainer, printer)
    return trainer


def _arguments(stage: Stage, rows: int, machine: Machine) -> TrainingArguments:
    schedule = stage.schedule
    steps = math.ceil(rows / (schedule.batch_size * machine.gradient_accumulation * world()[1]))  # an epoch
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(stage.directory),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=machine.gradient_accumulation,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, schedule.epochs * steps // 5),
        weight_decay=schedule.weight_decay,
        bf16=machine.precision == "bf16",
        fp16=machine.precision == "fp16",
        seed=stage.seed,
        data_seed=stage.seed,
        full_determinism=True,
        use_cpu=not cuda,
        ddp_backend=None if cuda or world()[1] == 1 else "gloo",
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=machine.save_steps or max(steps, FEWEST_STEPS_A_SAVE),
        save_total_limit=1,
        logging_steps=min(50, steps),
        logging_nan_inf_filter=False,
        report_to=["tensorboard"] if machine.tensorboard is not None else "none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )


def _remove_callback(trainer: Trainer, name: str) -> None:
    """By name: which one there is depends on the Trainer's options. Its lines are ours to print."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == name:
            trainer.remove_callback(callback)


class _Progress(TrainerCallback):
    """A line every ten seconds with the time left, and an end to a run whose loss is no number any more."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say if world()[0] == 0 else lambda _: None
        self._began = self._told = time.monotonic()
        self._first_step: int | None = None
        self._loss: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002  the Trainer's names
        """Fifty steps of a large model can take an hour."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._began = state.global_step, now
        if now - self._told < TELL_EVERY_S or state.global_step <= self._first_step:
            return
        self._told = now
        left_s = (now - self._began) / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
        loss = "" if self._loss is None else f", loss {self._loss:.4f}"
        self._say(
            f"{self._name}: step {state.global_step} of {state.max_steps}{loss}, "
            f"{int(left_s // 60)}:{int(left_s % 60):02} left"
        )

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002  the Trainer's names
        """Logs come every 50 steps at the latest."""
        loss = (given.get("logs") or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise InputError(f"{self._name}: the loss is {loss} at step {state.global_step}: lower the learning rate")
        self._loss = loss
