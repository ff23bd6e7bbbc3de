"""The offline commands' options. What they do is in commands.py, which imports torch only when it is needed."""

import argparse
import os
from pathlib import Path
from typing import Any

from models.commands import MINILM_NAME, run_calibrate, run_compare, run_evaluate, run_import, run_tune
from models.training.recipes import FEWEST_STEPS, STRENGTHS, losses_in_words, schedule_in_words

# Of the nets that start from nothing; the schedule's epochs are few for a few rows.
MORE = f"; more where a net would have fewer than {FEWEST_STEPS[0]} and {FEWEST_STEPS[1]} steps in the two stages"


class _Lines(argparse.RawDescriptionHelpFormatter):
    """The list of losses keeps its lines."""


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the offline commands to the `gatekeeper` parser; each sets `run`."""
    tune = commands.add_parser(
        "tune",
        help="train a small model with the Gatekeeper loss, write a bundle",
        epilog=f"losses:\n{losses_in_words()}",
        formatter_class=_Lines,
    )
    tune.add_argument("--output", type=Path, required=True, help="the bundle's directory, or the sweep's")
    tune.add_argument(
        "--model",
        metavar="M",
        help=f"text-net (default for texts), small-cnn (for images), wide-cnn, {MINILM_NAME} (frozen, with a linear "
        "head), a directory with a transformers model or a bundle, or a hub id",
    )
    tune.add_argument("--seeds", metavar="S,S", help="for a sweep: 0,1,2; a bundle each; default: that of --seed")
    _add_training(tune)
    _add_data(tune)
    _add_level(tune)
    tune.set_defaults(run=run_tune)

    _add_import(commands)

    calibrate = commands.add_parser("calibrate", help="temperature, calibration data and thresholds of a bundle")
    calibrate.add_argument("bundle", type=Path)
    _add_large(calibrate)
    calibrate.add_argument(
        "--forget-large", action="store_true", help="let --data without --large replace what knows the large model"
    )
    calibrate.add_argument("--output", type=Path, help="write a bundle of its own there; default: in place")
    _add_data(calibrate, required=False)
    _add_level(calibrate)
    target = calibrate.add_mutually_exclusive_group()
    target.add_argument("--target-deferral-ratio", type=float, metavar="R", help="share of the items to defer")
    target.add_argument("--target-accuracy", type=float, metavar="A", help="joint accuracy, with the fewest deferrals")
    target.add_argument(
        "--target-accuracy-loss",
        type=float,
        metavar="L",
        help="how far the joint accuracy may be below the large model's own, such as 0.005, with the fewest deferrals",
    )
    target.add_argument(
        "--target-selective-accuracy", type=float, metavar="A", help="accuracy of what is accepted; with --certainty"
    )
    calibrate.add_argument(
        "--certainty", type=float, metavar="C", help="guarantee the target with this probability; default: none"
    )
    calibrate.add_argument(
        "--fresh-data", action="store_true", help="--certainty on other data than the tuning's: none was trained on"
    )
    calibrate.add_argument("--write", action="store_true", help="make it the bundle's default threshold")
    calibrate.set_defaults(run=run_calibrate)

    evaluate = commands.add_parser("evaluate", help="measure a bundle, a table or a running cascade on the test split")
    evaluate.add_argument("bundle", type=Path, nargs="?")
    _add_large(evaluate)
    evaluate.add_argument("--predictions", type=Path, metavar="TABLE", help="score a .csv or .parquet from elsewhere")
    evaluate.add_argument(
        "--output", type=Path, help="where predictions.parquet, metrics.json and report.html go; default: nowhere"
    )
    evaluate.add_argument("--write-card", action="store_true", help="put the numbers into the bundle's model card")
    evaluate.add_argument("--endpoint", metavar="URL", help="hold a running edge against these numbers")
    evaluate.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="the API key for --endpoint, with the scope override; default: GATEKEEPER_API_KEY",
    )
    evaluate.add_argument(
        "--thresholds", metavar="T,T,T", help="for --endpoint; default: for 10, 20 and 40 %% deferred"
    )
    _add_data(evaluate, required=False)
    _add_level(evaluate, "; or that for --predictions, default: defer 20 %%")
    evaluate.set_defaults(run=run_evaluate)

    compare = commands.add_parser(
        "compare",
        help="Gatekeeper beside its control, other losses and other gates",
        epilog=f"losses:\n{losses_in_words()}",
        formatter_class=_Lines,
    )
    compare.add_argument("--output", type=Path, required=True, help="the study's directory; a later run goes on there")
    compare.add_argument("--small", "--model", dest="model", metavar="M", help="as --model of tune")
    compare.add_argument("--large", type=Path, required=True, help="the large model's bundle")
    compare.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    compare.add_argument("--losses", default="all", help="other losses, with commas, or all (default), or none")
    _add_training(compare, alpha="0.1,0.3,0.5,0.7,0.9")
    _add_data(compare)
    compare.set_defaults(run=run_compare)


def _add_large(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--large",
        type=Path,
        metavar="L",
        help="the large model's bundle, or a .csv, .jsonl or .parquet table of its answers: columns text (for images "
        "file; or split and row) and large_label, label or large_correct",
    )


def _add_import(commands: "argparse._SubParsersAction[Any]") -> None:
    importing = commands.add_parser("import", help="make a bundle of a classifier that is fine-tuned already")
    importing.add_argument("model", help="a directory that transformers' save_pretrained wrote, or a hub id")
    importing.add_argument("--output", type=Path, required=True, help="the bundle's directory, a new or an empty one")
    importing.add_argument("--name", help="of the bundle; default: that of its directory")
    importing.add_argument(
        "--labels", metavar="A,B,C", help="or a file with one a line, in the order of the model's outputs"
    )
    importing.add_argument(
        "--max-tokens", type=int, metavar="N", help="a longer text is cut; default: the model's own limit, at most 512"
    )
    add_threads(importing)
    importing.set_defaults(run=run_import)


def _add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        required=required,
        metavar="D",
        help="clinc150, banking77, fashion-mnist, cifar10, a .csv, .jsonl or .parquet file, a folder of such files or "
        "of images by class, or a hub id",
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("GATEKEEPER_DATA_DIR") or None,
        help="the folder that holds the named datasets; default: GATEKEEPER_DATA_DIR",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of the bootstrap; default: 0")
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads, which every command that computes has."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to compute with; default: OMP_NUM_THREADS, else 1: more are many times slower on cores that "
        "others use too",
    )


def _add_level(parser: argparse.ArgumentParser, more: str = "") -> None:
    level = parser.add_argument_group("level k of a cascade")
    level.add_argument("--only-deferred-by", type=Path, metavar="BUNDLE", help="only the items that level k-1 defers")
    level.add_argument("--threshold", type=float, metavar="T", help=f"of level k-1, default: its bundle's{more}")


def _add_training(parser: argparse.ArgumentParser, alpha: str = "0.5") -> None:
    loss = parser.add_argument_group("stage 2, the loss")
    loss.add_argument(
        "--alpha",
        default=alpha,
        metavar="A",
        help="weight of the correct items, in [0, 1]; 0.1,0.3 is a sweep; default: %(default)s",
    )
    loss.add_argument("--loss", default="gatekeeper", metavar="L", help="one of those below; default: %(default)s")
    strengths = ", ".join(f"{name} {value:g}" for name, value in STRENGTHS.items())
    loss.add_argument("--strength", type=float, metavar="S", help=f"of these losses; default: {strengths}")
    loss.add_argument(
        "--targets-from", type=Path, metavar="BUNDLE", help="the large model's soft targets; default: none"
    )
    loss.add_argument(
        "--alignment", type=float, default=0.0, metavar="W", help="weight of KL to those targets, added; default: 0"
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
    form.add_argument("--max-tokens", type=int, default=128, metavar="N", help="a longer text is cut; default: 128")
    form.add_argument("--image-size", type=int, metavar="N", help="of the nets; default: the data's own, or 64")
    form.add_argument(
        "--lora-rank", type=int, default=0, metavar="R", help="adapt a pretrained model by LoRA; default: 0, not at all"
    )
    form.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: %(default)s")
    form.add_argument("--save-steps", type=int, metavar="N", help="a checkpoint each N steps; default: an epoch or 100")
    form.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the losses there; default: nowhere")
    form.add_argument("--restart", action="store_true", help="forget what an earlier, unfinished run has left")
