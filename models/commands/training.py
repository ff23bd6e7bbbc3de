"""The options of training, which tune and compare share, and the recipe that they make."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.commands.options import numbers, option
from models.errors import InputError
from models.training.recipes import FEWEST_STEPS, schedule_in_words

if TYPE_CHECKING:
    from models.data.datasets import LabelledDataset
    from models.training.stage import Machine
    from models.training.tune import Recipe

# Of the nets that start from nothing; the schedule's epochs are few for a few rows.
MOST_TOKENS = 128  # of a text with a label
MORE = f"; more where a net would have fewer than {FEWEST_STEPS[0]} and {FEWEST_STEPS[1]} steps in the two stages"
# What a frozen model takes part in, or may be told without harm.
OF_ANY_MODEL = {"model", "max_tokens", "image_size", "save_steps", "tensorboard"}


@dataclass(frozen=True)
class TrainingOptions:
    """All that shapes a training, and where it runs. None: what suits the model and the number of rows."""

    model: str | None = None
    alpha: str = "0.5"
    loss: str = "gatekeeper"
    strength: float | None = None
    targets_from: Path | None = None
    alignment: float = 0.0
    tuning_epochs: int | None = None
    tuning_learning_rate: float | None = None
    distill_from: Path | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    gradient_accumulation: int = 1
    max_tokens: int | None = None
    image_size: int | None = None
    lora_rank: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    save_steps: int | None = None
    tensorboard: Path | None = None

    @property
    def alphas(self) -> list[float]:
        """--alpha, each once. Raises InputError."""
        return numbers("--alpha", self.alpha)

    def check(self) -> None:
        """Every number, before anything slow begins. Raises InputError."""
        for name in ("batch_size", "gradient_accumulation", "max_tokens", "image_size", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{option(name)} must be 1 or more, not {value}")
        for name in ("epochs", "tuning_epochs", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{option(name)} must be 0 or more, not {value}")
        for name in ("learning_rate", "tuning_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{option(name)} must be above 0, not {value:g}")
        for alpha in self.alphas:
            if not 0.0 <= alpha <= 1.0:
                raise InputError(f"--alpha must be in [0, 1], not {alpha:g}")

    def idle_on_a_frozen_model(self) -> list[str]:
        """The names of what was given and would change nothing."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [name for name in given if name not in OF_ANY_MODEL]

    def recipe(self, data: "LabelledDataset", seed: int) -> "Recipe":
        """What shapes the weights, of the first alpha."""
        from models.training.losses import Loss
        from models.training.model import SMALL_CNN, TEXT_NET, Shape
        from models.training.tune import Recipe

        name = self.loss
        if name == "gatekeeper" and self.targets_from and not self.alignment:
            name = "soft-gatekeeper"
        return Recipe(
            model=self.model or (TEXT_NET if data.task == "text-classification" else SMALL_CNN),
            loss=Loss(name, self.alphas[0], self.strength, self.alignment),
            seed=seed,
            shape=Shape(
                max_tokens=self.max_tokens or MOST_TOKENS, image_size=self.image_size, lora_rank=self.lora_rank or 0
            ),
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            tuning_epochs=self.tuning_epochs,
            tuning_learning_rate=self.tuning_learning_rate,
        )

    def machine(self) -> "Machine":
        """What belongs to where it runs."""
        from models.training.stage import Machine

        return Machine(self.precision, self.gradient_accumulation, self.save_steps, self.tensorboard)


def add_training(parser: argparse.ArgumentParser, alpha: str = "0.5") -> "argparse._ArgumentGroup":
    """The options of TrainingOptions but for the model and the choice of a loss. Returns the group of the loss."""
    loss = parser.add_argument_group("stage 2, the loss")
    loss.add_argument(
        "--alpha",
        default=alpha,
        metavar="A",
        help="weight of the correct items, in [0, 1]; 0.1,0.3 is a sweep; default: %(default)s",
    )
    loss.add_argument("--tuning-epochs", type=int, metavar="N", help=f"default: {schedule_in_words(1, 'epochs')}{MORE}")
    loss.add_argument(
        "--tuning-learning-rate", type=float, metavar="RATE", help=f"default: {schedule_in_words(1, 'learning_rate')}"
    )
    first = parser.add_argument_group("stage 1, cross-entropy")
    first.add_argument(
        "--distill-from", type=Path, metavar="BUNDLE", help="half of it the large model's answers; default: none of it"
    )
    first.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"0: none, for --model BUNDLE; default: {schedule_in_words(0, 'epochs')}{MORE}",
    )
    first.add_argument(
        "--learning-rate", type=float, metavar="RATE", help=f"default: {schedule_in_words(0, 'learning_rate')}"
    )
    form = parser.add_argument_group("form and machine")
    form.add_argument(
        "--batch-size", type=int, metavar="N", help=f"default: {schedule_in_words(0, 'batch_size')}; in both stages"
    )
    form.add_argument(
        "--gradient-accumulation", type=int, default=1, metavar="N", help="micro-batches a step; default: %(default)s"
    )
    form.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"a longer text is cut, a longer prompt refused; default: {MOST_TOKENS}, of prompts 1024",
    )
    form.add_argument("--image-size", type=int, metavar="N", help="of the nets; default: the data's own, or 64")
    form.add_argument(
        "--lora-rank",
        type=int,
        metavar="R",
        help="adapt a pretrained model by LoRA; default: 8 of smollm2, else 0",
    )
    form.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: %(default)s")
    form.add_argument("--save-steps", type=int, metavar="N", help="a checkpoint each N steps; default: an epoch or 100")
    form.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the losses there; default: nowhere")
    return loss
