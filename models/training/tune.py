"""Tune a small model: stage 1 cross-entropy (or distillation), stage 2 the Gatekeeper loss or one it is compared with.

    gatekeeper tune --data clinc150 --data-dir DIR --alpha 0.5 --output BUNDLE
    gatekeeper tune --data mails.csv --alpha 0.1,0.3,0.5 --seeds 0,1 --output DIR

The result is a bundle without calibration; `gatekeeper calibrate` is the next step. What is half done lies in
OUTPUT.work, and the same command goes on from there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import set_seed

from models.bundle import Bundle, load_bundle, write_bundle
from models.data.datasets import LabelledDataset
from models.errors import InputError
from models.inference.answers import answers
from models.inference.classifier import load_classifier
from models.labels import check_same_labels, places
from models.progress import Waiting
from models.replacing import write_whole, writing
from models.threads import threads_in_words
from models.training.losses import Loss, Targets
from models.training.manifest import circumstances, manifest_fields, write_first_card
from models.training.model import NETS, TEXT_NET, Backbone, Shape, check_model, is_bundle, model_digest, open_backbone
from models.training.recipes import ADAPTED, FEWEST_STEPS, PRETRAINED, SCHEDULES, Schedule
from models.training.stage import DONE, Machine, Objective, Stage, train_stage, world
from models.training.work import key_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Everything about the training that shapes the weights. None: what suits the model and the number of rows."""

    model: str = TEXT_NET
    loss: Loss = field(default_factory=Loss)
    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    batch_size: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    tuning_epochs: int | None = None
    tuning_learning_rate: float | None = None

    def schedules(self, rows: int) -> tuple[Schedule, Schedule]:
        """(stage 1, stage 2) for that many training rows."""
        default = ADAPTED if self.shape.lora_rank else SCHEDULES.get(self.model, PRETRAINED)
        chosen = []
        given = ((self.epochs, self.learning_rate), (self.tuning_epochs, self.tuning_learning_rate))
        for schedule, (epochs, rate), fewest in zip(default, given, FEWEST_STEPS, strict=True):
            size = self.batch_size or schedule.batch_size
            enough = math.ceil(fewest / math.ceil(rows / size)) if self.model in NETS else 0
            chosen.append(
                replace(
                    schedule,
                    batch_size=size,
                    epochs=max(schedule.epochs, enough) if epochs is None else epochs,
                    learning_rate=schedule.learning_rate if rate is None else rate,
                )
            )
        return chosen[0], chosen[1]


class Teachers(NamedTuple):
    """The large models of stage 1 (distillation) and of stage 2 (soft targets, alignment), where there are any."""

    first: Bundle | None = None
    second: Bundle | None = None


def open_tuning(
    data: LabelledDataset, recipe: Recipe, work: Path, machine: Machine, say: Say, teachers: Teachers
) -> "Tuning":
    """Check the recipe, then seed, open the model and tokenise. Raises InputError, before anything slow if it can."""
    check_recipe(data, recipe, teachers)
    set_seed(recipe.seed)
    backbone = open_backbone(recipe.model, data, recipe.shape)
    with Waiting(f"preparing {len(data.train)} items"):
        train, select = (backbone.prepare(split.inputs) for split in (data.train, data.select))
    return Tuning(data, recipe, work, machine, say, teachers, backbone=backbone, train=train, select=select)


def check_recipe(data: LabelledDataset, recipe: Recipe, teachers: Teachers) -> None:
    """Raise InputError where the recipe does not fit the data or the large models."""
    check_model(recipe.model, data)
    if recipe.schedules(len(data.train))[0].epochs == 0:
        if not is_bundle(recipe.model):
            raise InputError(f"--epochs 0 is for a model that knows these labels, a bundle; {recipe.model} is none")
        if load_bundle(Path(recipe.model)).manifest.labels != data.labels:
            raise InputError(f"--epochs 0 keeps the labels of {recipe.model}, and those of {data.name} are others")
    _check_targets(recipe.loss, teachers)
    for large in teachers:
        if large is not None:
            check_same_labels(large.manifest.name, large.manifest.labels, data.name, data.labels)


def _check_targets(loss: Loss, teachers: Teachers) -> None:
    if loss.needs_soft and teachers.second is None:
        raise InputError(f"{loss.name} here needs the large model's targets: give --targets-from")


class Tuning:
    """Both stages of one recipe but for its loss: stage 1 is trained once, then any number of losses start from it."""

    def __init__(
        self,
        data: LabelledDataset,
        recipe: Recipe,
        work: Path,
        machine: Machine,
        say: Say,
        teachers: Teachers,
        *,
        backbone: Backbone,
        train: Sequence[Any],
        select: Sequence[Any],
    ) -> None:
        """train, select: the splits as the backbone prepared them. open_tuning makes one."""
        self.data, self.recipe, self._work, self.machine, self._say = data, recipe, work, machine, say
        self._teachers, self.backbone, self._train, self._select = teachers, backbone, train, select
        self.schedules = recipe.schedules(len(data.train))
        self.measures: dict[str, float] = {}
        self._targets = Targets(torch.tensor(data.train.labels))
        self.first_directory = work / f"first-{self._first_key()}"

    def train(self, loss: Loss | None) -> Backbone:
        """The backbone after stage 1, and, with a loss, after stage 2 from there. What is done is taken, not trained.

        There is one set of weights: every loss goes back to those of stage 1 first.
        """
        self._first()
        if loss is not None:
            self._second(loss)
        return self.backbone

    def _first(self) -> None:
        soft_from = self._teachers.first
        loss = Loss("distillation" if soft_from else "cross-entropy")
        self._stage("first", loss, soft_from, self.schedules[0], self.first_directory)

    def _second(self, loss: Loss) -> None:
        _check_targets(loss, self._teachers)
        if loss.name == "static-partition":
            right = self.backbone.logits(self._train).argmax(dim=-1) == self._targets.labels
            self._targets = self._targets.with_easy(right)
        soft_from = self._teachers.second if loss.needs_soft else None
        self._stage("second", loss, soft_from, self.schedules[1], self.second_directory(loss))

    def tune(self, loss: Loss, output: Path) -> Bundle | None:
        """Both stages, then a bundle at `output`; None in every process but the first.

        Same seed, same machine: same weights.
        """
        data, recipe = self.data, replace(self.recipe, loss=loss)
        backbone = self.train(loss)
        if world()[0] != 0:
            return None

        def write_files(directory: Path) -> None:
            backbone.save(directory)
            write_first_card(directory, output.name, data)

        stages = {f"stage_{place}": asdict(stage) for place, stage in enumerate(self.schedules, 1)}
        manifest = manifest_fields(output.name, data, recipe.seed, backbone.max_tokens) | {
            "runtime": "transformers",
            "alpha": loss.alpha if loss.has_alpha else None,
            "loss": loss.name,
            "training": plain(recipe)
            | circumstances(self.machine)
            | stages
            | self.measures
            | {"threads": torch.get_num_threads()}
            | {"key": self.second_directory(loss).name},
        }
        return write_bundle(output, manifest, write_files)

    def second_directory(self, loss: Loss) -> Path:
        """Where stage 2 with this loss lies, or will lie."""
        teacher = self._teachers.second
        digest = teacher.gate_digest if teacher and loss.needs_soft else None
        key = key_of([self.first_directory.name, asdict(loss), asdict(self.schedules[1]), digest])
        return self._work / f"second-{key}"

    def _first_key(self) -> str:
        recipe = asdict(replace(self.recipe, loss=Loss()))
        return key_of(
            [
                {name: value for name, value in recipe.items() if "tuning" not in name},
                model_digest(self.recipe.model),
                self.data.content_hash,
                asdict(self.schedules[0]),
                self._teachers.first and self._teachers.first.gate_digest,
                circumstances(self.machine),
                [version(package) for package in ("torch", "transformers", "tokenizers")],
            ]
        )

    def _stage(self, name: str, loss: Loss, soft_from: Bundle | None, schedule: Schedule, directory: Path) -> None:
        targets = self._targets
        # What is done needs no targets, and a large model may take minutes to give them.
        if soft_from is not None and not (directory / DONE).is_file():
            targets = replace(targets, soft=soft_targets(soft_from, self.data, self._work, self._say))
        what = f"stage {name} ({loss.name}{f', alpha {loss.alpha:g}' if loss.has_alpha else ''})"
        if world()[0] == 0 and not (directory / DONE).is_file():
            self._say(f"{what}: {schedule.epochs} epochs of {len(self.data.train)} items on {threads_in_words()}")
        stage = Stage(what, schedule, self.recipe.seed, directory)
        train_stage(stage, objective(self.backbone, self._train, loss, targets), self.machine, self._say)
        with Waiting(f"{what}: measuring on the select split"):
            accuracy, auroc = measure(self.backbone.logits(self._select), self.data.select.labels)
        self.measures |= {f"{name}_select_accuracy": accuracy, f"{name}_select_auroc": auroc}
        if world()[0] == 0:
            self._say(f"{what}: accuracy {accuracy:.4f}, AUROC {auroc:.4f} on the select split")


def objective(backbone: Backbone, prepared: Sequence[Any], loss: Loss, targets: Targets) -> Objective:
    """A classifier towards a loss. `labels` of a batch are row numbers: the loss finds all that is known of a row by
    them, its label, the large model's probabilities, its side of a partition."""
    there = targets.to(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else targets

    def batch(rows: list[int]) -> dict[str, Tensor]:
        return {**backbone.batch([prepared[row] for row in rows]), "labels": torch.tensor(rows)}

    def loss_of(outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        return loss(outputs["logits"], there.at(labels), num_items)

    return Objective(backbone.model, len(prepared), batch, loss_of)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe for the manifest: a model in a directory by its last name, no path of this machine."""
    return asdict(replace(recipe, model=recipe.model if recipe.model in NETS else Path(recipe.model).name))


def measure(logits: Tensor, labels: Sequence[int]) -> tuple[float, float]:
    """(accuracy, AUROC of max softmax, right against wrong); NaN where there is only one of them."""
    best = logits.softmax(dim=-1).max(dim=-1)
    correct = (best.indices == torch.tensor(labels)).numpy()
    auroc = float(roc_auc_score(correct, best.values.numpy())) if 0 < correct.sum() < len(correct) else float("nan")
    return float(correct.mean()), auroc


def soft_targets(large: Bundle, data: LabelledDataset, work: Path, say: Say) -> Tensor:
    """The large model's probabilities on the train split, (M, C), in the order of the data's labels; computed once."""
    check_same_labels(large.manifest.name, large.manifest.labels, data.name, data.labels)
    path = work / f"soft-{key_of([large.gate_digest, data.content_hash])}.npy"
    if not path.is_file():
        say(f"asking {large.manifest.name} about {len(data.train)} training items")
        outputs = answers(load_classifier(large), large.manifest.name, data.train.inputs, "train")
        logits = outputs.logits / large.manifest.temperature
        columns = logits[:, places(data.labels, large.manifest.labels)]
        probabilities = torch.softmax(torch.from_numpy(columns), dim=-1).numpy()

        def write(scratch: Path) -> None:
            with scratch.open("wb") as stream:  # numpy adds its own suffix to a name that lacks it
                np.save(stream, probabilities)

        with writing(path):  # several processes may come here at once
            work.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)
    return torch.from_numpy(np.load(path))
