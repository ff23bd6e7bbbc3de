"""What tune, calibrate and evaluate do where --data holds prompts and answers: models that write text."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.commands.inputs import DataOptions, LevelOptions, bundle_at
from models.commands.options import option, seeds
from models.commands.process import prepare_libraries, say
from models.commands.training import TrainingOptions
from models.errors import InputError
from models.progress import Waiting

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.calibration.text.large import TextLargeAnswers
    from models.data.prompts.examples import PromptDataset
    from models.evaluation.results import Evaluation
    from models.scoring.scorer import Scorer
    from models.training.text.tune import TextRecipe

MODEL = "smollm2"
QUICK_SCORERS = ("exact", "choice", "number", "json")
# What tuning a classifier has, and a model that writes text has not.
OF_LABELS = ("distill_from", "strength", "alignment", "image_size")


@dataclass(frozen=True)
class RowsOptions:
    """--rows: at most so many prompts of each split. scorer, judge: what counts as right."""

    rows: int | None = None
    scorer: str | None = None
    judge: str | None = None


@dataclass(frozen=True)
class WritingOptions:
    """The form of prompts and answers. None: what fits the model and the data."""

    max_new_tokens: int | None = None
    template: str | None = None
    stop: list[str] | None = None
    extract: str | None = None
    normalize_kl: bool = False


def add_rows(parser: argparse.ArgumentParser, *, scorer: bool) -> "argparse._ArgumentGroup":
    """The options of RowsOptions. Returns the group of models that write text."""
    group = parser.add_argument_group("models that write text: --data with prompts and answers")
    group.add_argument("--rows", type=int, metavar="N", help="at most so many prompts of each split; default: all")
    if scorer:
        group.add_argument(
            "--scorer", metavar="S", help="what counts as right: exact, choice, number, ... or FILE.py:FUNCTION"
        )
        group.add_argument(
            "--judge", metavar="M", help="of --scorer judge: the directory of a language model, smollm2 or gemma3-270m"
        )
    return group


def add_writing(parser: argparse.ArgumentParser, *, scorer: bool = False) -> None:
    """The options of WritingOptions and RowsOptions."""
    group = add_rows(parser, scorer=scorer)
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="of an answer; default: a quarter more than the longest of train",
    )
    group.add_argument(
        "--template",
        metavar="T",
        help="the text around {prompt}; default: its chat template, or the prompt and a line end",
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="ends an answer and is no part of it; repeatable"
    )
    group.add_argument("--extract", metavar="REGEX", help="its first group is the answer; default: all that is written")
    group.add_argument("--normalize-kl", action="store_true", help="KL / log V, in [0, 1] whatever the vocabulary")


def load(source: DataOptions, level: LevelOptions, rows: RowsOptions) -> "PromptDataset":
    """The prompts and answers that --data names; what is odd about them goes to stderr. Raises InputError."""
    from models.data.prompts.examples import few
    from models.data.prompts.load import load_prompts

    refuse_for_text(level, ("only_deferred_by",))
    if rows.rows is not None and rows.rows < 4:
        raise InputError(f"--rows must be 4 or more, not {rows.rows}")
    assert source.data is not None  # the caller has checked it, or argparse
    with Waiting(f"reading {source.data}"):
        data = load_prompts(source.data, source.data_dir)
    for note in data.notes:
        say(f"note: {note}")
    return data if rows.rows is None else few(data, rows.rows)


def tune(
    training: TrainingOptions,
    writing: WritingOptions,
    data: "PromptDataset",
    output: Path,
    given_seeds: str | None,
    seed: int,
    *,
    restart: bool,
) -> "list[Bundle]":
    """A bundle, or a sweep's bundles. Raises InputError."""
    prepare_libraries()
    from models.training.sweep import run_sweep
    from models.training.text.objective import LOSSES, TokenLoss
    from models.training.text.tune import TextTuning, open_text_tuning

    if training.loss not in LOSSES:
        raise InputError(f"--loss {training.loss} is for labels; of answers there is {', '.join(LOSSES)}")
    large = bundle_at(training.targets_from)
    control, soft = training.loss == "cross-entropy", training.loss == "soft-gatekeeper" or large is not None
    if control and large is not None:
        raise InputError("--targets-from has no effect on cross-entropy")
    if soft and large is None:
        raise InputError("soft-gatekeeper needs the large model's targets: give --targets-from")
    alphas = training.alphas
    if control and len(alphas) > 1:
        raise InputError("cross-entropy has no alpha: a sweep would make the same bundle again")
    recipe, machine = _recipe(training, writing), training.machine()

    def opened(one: int, work: Path) -> TextTuning:
        return open_text_tuning(data, replace(recipe, seed=one), work, machine, say, large)

    losses = {alpha: TokenLoss(None if control else alpha, writing.normalize_kl, soft) for alpha in alphas}
    measures = ("token_accuracy", "entropy_right", "entropy_wrong", "entropy_auroc")
    return run_sweep(opened, losses, seeds(given_seeds, seed), output, say, measures=measures, restart=restart)


def _recipe(training: TrainingOptions, writing: WritingOptions) -> "TextRecipe":
    """Raises InputError for options that only classifiers have."""
    from models.training.text.objective import TokenLoss
    from models.training.text.open import TextShape
    from models.training.text.tune import TextRecipe

    refuse_for_text(training, OF_LABELS)
    if writing.max_new_tokens is not None and writing.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be 1 or more, not {writing.max_new_tokens}")
    shape = TextShape(
        training.max_tokens,
        writing.max_new_tokens,
        writing.template,
        tuple(writing.stop or ()),
        writing.extract,
        training.lora_rank,
    )
    return TextRecipe(
        training.model or MODEL,
        TokenLoss(normalize_kl=writing.normalize_kl),
        shape=shape,
        batch_size=training.batch_size,
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        tuning_epochs=training.tuning_epochs,
        tuning_learning_rate=training.tuning_learning_rate,
    )


def compare(
    training: TrainingOptions,
    writing: WritingOptions,
    rows: RowsOptions,
    data: "PromptDataset",
    large: Path,
    seeds: Sequence[int],
    output: Path,
) -> str:
    """What was found, in Markdown. Raises InputError."""
    prepare_libraries()
    from models.calibration.text.large import open_text_large
    from models.study.tables import as_table
    from models.study.text_study import TextStudy, run_text_study

    answers, scorer = open_text_large(large, output / "drafts"), scorer_of(rows, data)
    recipe = _recipe(training, writing)
    study = TextStudy(data, answers, scorer, recipe, tuple(training.alphas), tuple(seeds))
    return as_table(run_text_study(study, output, training.machine(), say))


def scorer_of(rows: RowsOptions, data: "PromptDataset") -> "Scorer":
    """--scorer, else the data's own. Raises InputError, also where it does not fit the data."""
    from models.calibration.text.large import reference_of
    from models.scoring.registry import scorer

    name = rows.scorer or data.scorer
    if rows.judge is None:
        found = scorer(name)
        if name in QUICK_SCORERS:  # a reference that it cannot read is told now, not after an hour of answers
            for rows_of in (data.select, data.calibrate, data.test):
                found([row.answers[0] for row in rows_of], [reference_of(row) for row in rows_of])
        return found
    if name != "judge":
        raise InputError(f"--judge is of --scorer judge, and {name} asks none")
    from models.inference.packaged import MODELS, locate

    if rows.judge not in MODELS and not Path(rows.judge).is_dir():
        raise InputError(f"--judge {rows.judge}: no such directory; there is also {', '.join(MODELS)}")
    prepare_libraries()
    from models.scoring.causal_judge import CausalJudge

    with Waiting(f"opening {rows.judge}"):
        return scorer(name, judge=CausalJudge(locate(rows.judge) if rows.judge in MODELS else Path(rows.judge)))


@contextmanager
def drafted(bundle: Path) -> Iterator[Path]:
    """Where drafts lie, beside the bundle, until all is written; what fails leaves them for another try.

    Raises InputError where another run is at work there.
    """
    from models.calibration.text.drafts import remove_drafts
    from models.replacing import held

    resolved = bundle.resolve()
    work = resolved.parent / f"{resolved.name}.work"
    with held(work):
        yield work
        remove_drafts(work)


def calibrate(
    bundle: "Bundle", place: Path, data: "PromptDataset", large: Path | None, rows: RowsOptions, score: str | None
) -> "Bundle":
    """Drafts, what is right of them, the rule. place: what the bundle is called. Raises InputError."""
    from models.calibration.text.calibrate import calibrate_text

    scorer = scorer_of(rows, data)
    with drafted(place) as work:
        return calibrate_text(bundle, data, _large(large, work), scorer, work, say, score)


def evaluate(
    bundle: "Bundle", data: "PromptDataset", large: Path | None, rows: RowsOptions, seed: int, work: Path
) -> "tuple[Evaluation, dict[str, str]]":
    """(the numbers, facts for the report's head). work: of `drafted`. Raises InputError."""
    from models.evaluation.text import about_text_bundle, evaluate_text

    source = _large(large, work)
    scorer = scorer_of(rows, data)
    evaluation = evaluate_text(bundle, data, source, scorer, work, seed)
    return evaluation, about_text_bundle(bundle, data, source, scorer, seed)


def _large(path: Path | None, work: Path) -> "TextLargeAnswers | None":
    from models.calibration.text.large import open_text_large

    return None if path is None else open_text_large(path, work)


def is_prompts(data: str | None) -> bool:
    """Whether --data holds prompts and answers. Raises InputError."""
    if data is None:
        return False
    from models.data.prompts.load import is_prompts as found

    return found(data)


def refuse_without_data(source: DataOptions, rows: RowsOptions, score: str | None) -> None:
    """Raise InputError for options that would change nothing: another score needs the drafts again."""
    for name, value in (("score", score), *asdict(rows).items()):
        if value is not None and source.data is None:
            raise InputError(f"{option(name)} needs --data: the drafts are written anew")


def refuse_for_text(options: Any, names: tuple[str, ...]) -> None:
    """Raise InputError for options that only classifiers have."""
    _refuse(options, names, "is for models that answer with labels")


def refuse_for_labels(options: Any, names: tuple[str, ...]) -> None:
    """Raise InputError for options that only models that write text have."""
    _refuse(options, names, "is for models that write text")


def refuse_writing(writing: WritingOptions, rows: RowsOptions) -> None:
    """Raise InputError where one of them is given and --data has labels."""
    refuse_for_labels(writing, tuple(field.name for field in fields(writing)))
    refuse_rows(rows)


def refuse_rows(rows: RowsOptions) -> None:
    """Raise InputError where one of them is given and the model answers with labels."""
    refuse_for_labels(rows, tuple(field.name for field in fields(rows)))


def _refuse(options: Any, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(options, name):
            raise InputError(f"{option(name)} {why}")
