"""`gatekeeper tune`: train a small model with the Gatekeeper loss and write its bundle, or a sweep's bundles."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.commands import text
from models.commands.inputs import DataOptions, LevelOptions, add_data, add_level, bundle_at
from models.commands.options import Lines, option, runs, seeds
from models.commands.process import prepare_libraries, say, set_threads
from models.commands.training import TrainingOptions, add_training
from models.errors import InputError
from models.training.recipes import LOSSES_IN_WORDS, STRENGTHS, losses_in_words

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.datasets import LabelledDataset
    from models.training.tune import Recipe

MINILM_NAME = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class TuneOptions:
    """What tune alone has."""

    output: Path
    seeds: str | None
    restart: bool


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser(
        "tune",
        help="train a small model with the Gatekeeper loss, write a bundle",
        epilog=f"losses:\n{losses_in_words(LOSSES_IN_WORDS)}",
        formatter_class=Lines,
    )
    parser.add_argument("--output", type=Path, required=True, help="the bundle's directory, or the sweep's")
    parser.add_argument(
        "--model",
        metavar="M",
        help=f"text-net (default for texts), small-cnn (for images), wide-cnn, {MINILM_NAME} (frozen, with a linear "
        "head), a directory with a transformers model or a bundle, or a hub id; to write text: smollm2 (default), "
        "gemma3-270m, tiny-decoder, tiny-t5, tiny-paligemma, a directory or a hub id",
    )
    parser.add_argument("--seeds", metavar="S,S", help="for a sweep: 0,1,2; a bundle each; default: that of --seed")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier, unfinished run has left")
    loss = add_training(parser)
    loss.add_argument("--loss", default="gatekeeper", metavar="L", help="one of those below; default: %(default)s")
    strengths = ", ".join(f"{name} {value:g}" for name, value in STRENGTHS.items())
    loss.add_argument("--strength", type=float, metavar="S", help=f"of these losses; default: {strengths}")
    loss.add_argument(
        "--targets-from", type=Path, metavar="BUNDLE", help="the large model's soft targets; default: none"
    )
    loss.add_argument(
        "--alignment", type=float, default=0.0, metavar="W", help="weight of KL to those targets, added; default: 0"
    )
    add_data(parser)
    add_level(parser)
    text.add_writing(parser)
    runs(parser, run, TuneOptions, TrainingOptions, DataOptions, LevelOptions, text.RowsOptions, text.WritingOptions)


def run(
    options: TuneOptions,
    training: TrainingOptions,
    source: DataOptions,
    level: LevelOptions,
    rows: text.RowsOptions,
    writing: text.WritingOptions,
) -> int:
    """Train and write; what was finished by an earlier run of the same command is kept."""
    set_threads(source.threads)
    alphas, chosen_seeds = training.alphas, seeds(options.seeds, source.seed)
    training.check()
    if text.is_prompts(source.data):
        prompts = text.load(source, level, rows)
        bundles = text.tune(
            training, writing, prompts, options.output, options.seeds, source.seed, restart=options.restart
        )
        return _say_written(bundles)
    text.refuse_writing(writing, rows)
    data = source.load(level)
    prepare_libraries()
    if training.model == MINILM_NAME:
        if len(alphas) > 1 or len(chosen_seeds) > 1:
            raise InputError(f"{MINILM_NAME} is frozen and knows no alpha: no sweep")
        bundles = [_tune_frozen(options, training, data, chosen_seeds[0])]
    else:
        bundles = _tune(options, training, data, chosen_seeds)
    return _say_written(bundles)


def _say_written(bundles: "list[Bundle]") -> int:
    for bundle in bundles:
        say(f"wrote {bundle.directory} (gate digest {bundle.gate_digest[:12]}); next: gatekeeper calibrate")
    return 0


def _tune(
    options: TuneOptions, training: TrainingOptions, data: "LabelledDataset", chosen_seeds: list[int]
) -> "list[Bundle]":
    from models.training.sweep import run_sweep
    from models.training.tune import Teachers, Tuning, open_tuning

    recipe = training.recipe(data, chosen_seeds[0])
    _refuse_idle_options(training, recipe)
    teachers, machine = Teachers(bundle_at(training.distill_from), bundle_at(training.targets_from)), training.machine()

    def opened(seed: int, work: Path) -> Tuning:
        return open_tuning(data, replace(recipe, seed=seed), work, machine, say, teachers)

    losses = {alpha: replace(recipe.loss, alpha=alpha) for alpha in training.alphas}
    measures = ("accuracy", "auroc")
    return run_sweep(opened, losses, chosen_seeds, options.output, say, measures=measures, restart=options.restart)


def _tune_frozen(options: TuneOptions, training: TrainingOptions, data: "LabelledDataset", seed: int) -> "Bundle":
    idle = training.idle_on_a_frozen_model()
    if idle:
        raise InputError(f"{option(idle[0])} has no effect on {MINILM_NAME}, which is frozen")
    from models.bundle import check_output
    from models.training.linear_head import MINILM, tune_frozen_head

    check_output(options.output)
    return tune_frozen_head(data, MINILM, seed, options.output, say)


def _refuse_idle_options(training: TrainingOptions, recipe: "Recipe") -> None:
    """An option that changes nothing is a misunderstanding, told before hours of training."""
    if training.targets_from is not None and not recipe.loss.needs_soft:
        raise InputError(f"--targets-from has no effect on {recipe.loss.name} without --alignment")
    count = len(training.alphas)
    if count > 1 and not recipe.loss.has_alpha:
        raise InputError(f"{recipe.loss.name} has no alpha: a sweep would make the same bundle {count} times")
    if training.precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--precision fp16 needs a GPU; bf16 works without")
