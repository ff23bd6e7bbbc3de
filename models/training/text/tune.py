"""Tune a model that writes text: stage 1 cross-entropy on the answers' tokens, stage 2 the Gatekeeper loss on them.

    gatekeeper tune --data questions.jsonl --model smollm2 --alpha 0.5 --output BUNDLE

The result is a bundle without calibration. What is half done lies in OUTPUT.work, as for labels (training/tune.py).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import set_seed

from models.bundle import Bundle, write_bundle
from models.data.prompts.examples import Each, Example, PromptDataset
from models.errors import InputError
from models.progress import Waiting
from models.threads import threads_in_words
from models.training.manifest import circumstances, code_commit, write_first_card
from models.training.model import model_digest
from models.training.recipes import TEXT_ADAPTED, TEXT_NETS, TEXT_PRETRAINED, Schedule
from models.training.stage import DONE, Machine, Stage, train_stage, world
from models.training.text.backbone import Row, TextBackbone
from models.training.text.nets import NETS
from models.training.text.objective import TokenLoss, measures, objective
from models.training.text.open import TextShape, open_text_backbone
from models.training.text.teacher import Teacher, check_one_vocabulary
from models.training.work import key_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class TextRecipe:
    """Everything about the training that shapes the weights. None: what suits the model."""

    model: str
    loss: TokenLoss = field(default_factory=TokenLoss)
    seed: int = 0
    shape: TextShape = field(default_factory=TextShape)
    batch_size: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    tuning_epochs: int | None = None
    tuning_learning_rate: float | None = None

    def schedules(self, adapted: bool) -> tuple[Schedule, Schedule]:
        """(stage 1, stage 2)."""
        default = TEXT_NETS if self.model in NETS else TEXT_ADAPTED if adapted else TEXT_PRETRAINED
        given = ((self.epochs, self.learning_rate), (self.tuning_epochs, self.tuning_learning_rate))
        first, second = (
            replace(
                schedule,
                batch_size=self.batch_size or schedule.batch_size,
                epochs=schedule.epochs if epochs is None else epochs,
                learning_rate=schedule.learning_rate if rate is None else rate,
            )
            for schedule, (epochs, rate) in zip(default, given, strict=True)
        )
        return first, second


def open_text_tuning(
    data: PromptDataset, recipe: TextRecipe, work: Path, machine: Machine, say: Say, large: Bundle | None = None
) -> "TextTuning":
    """Seed, open the model and tokenise. large: of a soft loss. Raises InputError, before anything slow if it can."""
    set_seed(recipe.seed)
    with Waiting(f"opening {recipe.model}"):
        backbone = open_text_backbone(recipe.model, data, recipe.shape)
    if large is not None:
        check_one_vocabulary(large, backbone, recipe.model)
    with Waiting(f"preparing {len(data.train)} answers"):
        train, select = (
            _rows(backbone, split, name) for split, name in ((data.train, "train"), (data.select, "select"))
        )
    return TextTuning(data, recipe, work, machine, say, backbone, train, select, large=large)


def _rows(backbone: TextBackbone, split: Sequence[Example], name: str) -> Sequence[Row]:
    """Raises InputError that says how many rows do not fit, and shows the first."""
    made = Each(lambda example: backbone.row(example.prompt, example.answers[0]), split)
    kept, bad = [], []
    for place, example in enumerate(split):
        try:
            row = made[place]
        except InputError as error:
            bad.append(f"row {place + 1} of {name}: {error}")
            continue
        if example.image is None:
            kept.append(row)
    if bad:
        more = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}{more}")
    return kept or made


class TextTuning:
    """Both stages of one recipe but for its loss: stage 1 is trained once, then any number of losses start from it."""

    def __init__(
        self,
        data: PromptDataset,
        recipe: TextRecipe,
        work: Path,
        machine: Machine,
        say: Say,
        backbone: TextBackbone,
        train: Sequence[Row],
        select: Sequence[Row],
        *,
        large: Bundle | None = None,
    ) -> None:
        """train, select: the splits as the backbone prepared them. large: whose probabilities are the target of a soft
        loss. open_text_tuning makes one."""
        self.data, self.recipe, self._work, self.machine, self._say = data, recipe, work, machine, say
        self.backbone, self._train, self._select, self._large = backbone, train, select, large
        self.schedules = recipe.schedules(backbone.adapted)
        self.measures: dict[str, float] = {}
        self.first_directory = work / f"first-{self._first_key()}"

    def train(self, loss: TokenLoss | None) -> TextBackbone:
        """The model after stage 1, and, with a loss, after stage 2 from there. What is done is taken, not trained."""
        self._stage("first", TokenLoss(), self.schedules[0], self.first_directory)
        if loss is not None:
            self._stage("second", loss, self.schedules[1], self.second_directory(loss))
        return self.backbone

    def tune(self, loss: TokenLoss, output: Path) -> Bundle | None:
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
        manifest = {
            "name": output.name,
            "task": backbone.task,
            "runtime": backbone.runtime,
            "score": "negative_predictive_entropy",
            "temperature": 1.0,
            "default_threshold": -0.5,
            "dtype": "float32",
            "base": backbone.base,
            "generation": backbone.generation,
            "seed": recipe.seed,
            "dataset": data.name,
            "dataset_sha256": data.content_hash,
            "code_commit": code_commit(),
            "alpha": loss.alpha,
            "loss": loss.name,
            "training": asdict(replace(recipe, model=Path(recipe.model).name))
            | circumstances(self.machine)
            | stages
            | self.measures
            | ({"targets_from": self._large.gate_digest} if self._large and loss.soft else {})
            | {"scorer": data.scorer, "threads": torch.get_num_threads(), "key": self.second_directory(loss).name},
        }
        return write_bundle(output, manifest, write_files)

    def second_directory(self, loss: TokenLoss) -> Path:
        """Where stage 2 with this loss lies, or will lie."""
        large = self._large.gate_digest if self._large and loss.soft else None
        key = key_of([self.first_directory.name, asdict(loss), asdict(self.schedules[1]), large])
        return self._work / f"second-{key}"

    def _first_key(self) -> str:
        recipe = asdict(replace(self.recipe, loss=TokenLoss()))
        return key_of(
            [
                {name: value for name, value in recipe.items() if "tuning" not in name},
                self.backbone.generation.model_dump(),
                self.backbone.base and self.backbone.base.model_dump(),
                model_digest(self.recipe.model),
                self.data.content_hash,
                asdict(self.schedules[0]),
                circumstances(self.machine),
                [version(package) for package in ("torch", "transformers", "tokenizers")],
            ]
        )

    def _stage(self, name: str, loss: TokenLoss, schedule: Schedule, directory: Path) -> None:
        what = f"stage {name} ({loss.in_words})"
        if world()[0] == 0 and not (directory / DONE).is_file():
            self._say(f"{what}: {schedule.epochs} epochs of {len(self._train)} answers on {threads_in_words()}")
        with ExitStack() as stack:
            teacher = None
            if loss.soft and not (directory / DONE).is_file():
                assert self._large is not None  # open_text_tuning has checked it
                with Waiting(f"opening {self._large.manifest.name}"):
                    teacher = Teacher(self._large, self.data.train, self._train)
                stack.enter_context(teacher.listening(self.backbone.model))
            stack.enter_context(self.backbone.head.taken())
            stage = Stage(what, schedule, self.recipe.seed, directory)
            train_stage(stage, objective(self.backbone, self._train, loss, teacher), self.machine, self._say)
        if f"{name}_select_token_accuracy" in self.measures and name == "first":  # a sweep comes back to it
            return
        with Waiting(f"{what}: measuring on the select split"):
            found = measures(self.backbone, self._select, schedule.batch_size)
        self.measures |= {f"{name}_select_{measure}": value for measure, value in found.items()}
        if world()[0] == 0:
            self._say(f"{what}: on the select split, {in_words(found)}")


def in_words(found: dict[str, float]) -> str:
    """Of `measures`."""
    groups = [name for name in ("right", "wrong") if f"entropy_{name}" in found]
    entropies = [f"mean entropy where {name} {found[f'entropy_{name}']:.3f}" for name in groups]
    return ", ".join([f"token accuracy {found['token_accuracy']:.4f}", *entropies])
