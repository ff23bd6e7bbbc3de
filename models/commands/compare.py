"""`gatekeeper compare`: the Gatekeeper loss beside its control, other losses and other gates."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from models.commands import text
from models.commands.inputs import DataOptions, LevelOptions, add_data, bundle_at
from models.commands.options import Lines, runs, seeds
from models.commands.process import prepare_libraries, say, set_threads
from models.commands.training import TrainingOptions, add_training
from models.errors import InputError
from models.training.recipes import COMPARED_IN_WORDS, losses_in_words

OF_TUNE = ("--loss", "--strength", "--targets-from", "--alignment", "--restart")


@dataclass(frozen=True)
class CompareOptions:
    """What compare alone has."""

    output: Path
    large: Path
    seeds: str
    losses: str


class _OfTune(argparse.Action):
    """An option that compare does not have; without a word of it, `--loss` would be taken for `--losses`."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> NoReturn:
        parser.error(f"{given[-1]} is for tune; compare has its own list, see --losses")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser(
        "compare",
        help="Gatekeeper beside its control, other losses and other gates",
        epilog=f"losses that --losses takes, beside gatekeeper and its control, cross-entropy for as long:\n"
        f"{losses_in_words(COMPARED_IN_WORDS)}",
        formatter_class=Lines,
    )
    parser.add_argument("--output", type=Path, required=True, help="the study's directory; a later run goes on there")
    parser.add_argument("--small", "--model", dest="model", metavar="M", help="as --model of tune")
    parser.add_argument(
        "--large",
        type=Path,
        required=True,
        help="the large model's bundle; of models that write text also a table of its answers, or the word oracle",
    )
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument(
        "--losses", default="all", help="of those below, with commas; or all (default), or none; of labels alone"
    )
    for name in OF_TUNE:
        parser.add_argument(name, nargs="?", action=_OfTune, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_training(parser, alpha="0.1,0.3,0.5,0.7,0.9")
    add_data(parser)
    text.add_writing(parser, scorer=True)
    runs(parser, run, CompareOptions, TrainingOptions, DataOptions, text.RowsOptions, text.WritingOptions)


def run(
    options: CompareOptions,
    training: TrainingOptions,
    source: DataOptions,
    rows: text.RowsOptions,
    writing: text.WritingOptions,
) -> int:
    """Train what is missing, print the table of what was found."""
    set_threads(source.threads)
    alphas, chosen_seeds = training.alphas, seeds(options.seeds, source.seed)
    training.check()
    if text.is_prompts(source.data):
        if options.losses not in ("all", "none"):
            raise InputError(
                "--losses is for models that answer with labels: of answers there are gatekeeper and its control"
            )
        prompts = text.load(source, LevelOptions(), rows)
        print(text.compare(training, writing, rows, prompts, options.large, chosen_seeds, options.output))
        return 0
    text.refuse_writing(writing, rows)
    data = source.load()
    prepare_libraries()
    from models.study.study import Study, run_study
    from models.study.tables import as_table

    large = bundle_at(options.large)
    assert large is not None
    study = Study(
        data,
        large,
        training.recipe(data, source.seed),
        tuple(alphas),
        tuple(chosen_seeds),
        options.losses,
        bundle_at(training.distill_from),
    )
    print(as_table(run_study(study, options.output, training.machine(), say)))
    return 0
