"""`gatekeeper calibrate`: temperature, calibration data, and the threshold of a target, certified or not."""

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.commands import text
from models.commands.inputs import DataOptions, LevelOptions, add_data, add_large, add_level
from models.commands.options import option, runs
from models.commands.process import prepare_libraries, say, set_threads
from models.errors import InputError, NoThreshold
from models.printing import printable
from models.progress import Waiting

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.calibration.certificate import Certificate
    from models.calibration.thresholds import Choice

NO_THRESHOLD = 3  # the exit code of "no threshold meets it"


@dataclass(frozen=True)
class CalibrateOptions:
    """The bundle, its large model, and where the result goes."""

    bundle: Path
    large: Path | None
    forget_large: bool
    output: Path | None
    fresh_data: bool
    write: bool
    score: str | None = None


@dataclass(frozen=True)
class TargetOptions:
    """What the threshold is to reach: one of the four at most; certainty: guaranteed with that probability."""

    target_deferral_ratio: float | None = None
    target_accuracy: float | None = None
    target_accuracy_loss: float | None = None
    target_selective_accuracy: float | None = None
    certainty: float | None = None

    @property
    def name(self) -> str | None:
        """The field of the target that is given; None without one."""
        names = ("target_deferral_ratio", "target_accuracy", "target_accuracy_loss", "target_selective_accuracy")
        return next((name for name in names if getattr(self, name) is not None), None)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser("calibrate", help="temperature, calibration data and thresholds of a bundle")
    parser.add_argument("bundle", type=Path)
    add_large(parser)
    parser.add_argument(
        "--forget-large", action="store_true", help="let --data without --large replace what knows the large model"
    )
    parser.add_argument("--output", type=Path, help="write a bundle of its own there; default: in place")
    add_data(parser, required=False)
    add_level(parser)
    target = parser.add_mutually_exclusive_group()
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
    parser.add_argument(
        "--certainty", type=float, metavar="C", help="guarantee the target with this probability; default: none"
    )
    parser.add_argument(
        "--fresh-data", action="store_true", help="--certainty on other data than the tuning's: none was trained on"
    )
    parser.add_argument("--write", action="store_true", help="make it the bundle's default threshold")
    group = text.add_rows(parser, scorer=True)
    group.add_argument("--score", metavar="S", help="what the gate compares from now on; default: the bundle's")
    runs(parser, run, CalibrateOptions, TargetOptions, DataOptions, LevelOptions, text.RowsOptions)


def run(
    options: CalibrateOptions,
    target: TargetOptions,
    source: DataOptions,
    level: LevelOptions,
    rows: text.RowsOptions,
) -> int:
    """Exit code 3: no threshold meets the target."""
    set_threads(source.threads)
    from models.bundle import check_output, copy_bundle, load_bundle

    _check(options, target, source, level)
    text.refuse_without_data(source, rows, options.score)
    bundle = load_bundle(options.bundle)
    if source.data is not None and options.large is None and not options.forget_large:
        _refuse_to_forget(options.output or bundle.directory)
    if options.output is None:
        return _calibrate(options, target, source, level, rows, bundle, bundle.directory)
    if source.data is None and not options.write:
        raise InputError("--output needs something to write: --data, or a target and --write")
    output = options.output.resolve()
    check_output(output)
    # What stands at the output is replaced by the finished bundle, or not at all.
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=output.parent) as scratch:
        copy = copy_bundle(bundle, Path(scratch) / output.name)
        code = _calibrate(options, target, source, level, rows, copy, options.output)
        if code == 0 or source.data is not None:
            copy_bundle(load_bundle(copy.directory), output)
    return code


def _check(options: CalibrateOptions, target: TargetOptions, source: DataOptions, level: LevelOptions) -> None:
    """Options that contradict each other. Raises InputError."""
    if options.write and target.name is None:
        raise InputError("--write keeps the threshold of a target: give one")
    _check_target(target)
    if target.certainty is not None and target.name is None:
        raise InputError("--certainty needs --target-accuracy, --target-accuracy-loss or --target-selective-accuracy")
    if level.threshold is not None and level.only_deferred_by is None:
        raise InputError("--threshold is that of --only-deferred-by; a target chooses the bundle's own")
    if source.data is not None and options.large is None and target.name in {"target_accuracy", "target_accuracy_loss"}:
        raise InputError(f"{option(target.name)} on new data needs --large: joint accuracy is that of both models")
    if source.data is None and options.large is not None:
        raise InputError("--large needs --data: its answers on the calibrate split are what is recorded")


def _check_target(target: TargetOptions) -> None:
    """Every number of a target, before --data replaces what is there. Raises InputError."""
    certainty = target.certainty
    if target.name is not None:
        value, below_one = getattr(target, target.name), target.name == "target_accuracy_loss"
        if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
            most = "at least 0 and below 1" if below_one else "in [0, 1]"
            raise InputError(f"{option(target.name)} must be {most}, not {value:g}")
        if certainty is not None and target.name == "target_deferral_ratio":
            raise InputError(f"{option(target.name)} is a choice and needs no certificate: leave --certainty out")
        if certainty is None and target.name == "target_selective_accuracy":
            raise InputError(f"{option(target.name)} needs --certainty")
    if certainty is not None and not 0.5 < certainty < 1.0:
        raise InputError(f"--certainty must be above 0.5 and below 1, such as 0.95, not {certainty:g}")


def _refuse_to_forget(place: Path) -> None:
    """Calibration data that know the large model took its answers to make. Raises InputError where they would go."""
    from models.bundle import CALIBRATION, MANIFEST, SELECTION, load_bundle
    from models.errors import BundleError

    if not (place / MANIFEST).is_file():
        return
    knowing = []
    try:
        bundle = load_bundle(place)
        for file in (CALIBRATION, SELECTION):
            rows = bundle.read_calibration(file)
            knowing += [file] if rows is not None and rows.large_correct is not None else []
    except BundleError:  # there is nothing good to lose
        return
    if knowing:
        certified = " and its certificate" if bundle.manifest.certificate else ""
        raise InputError(
            f"{place} knows what the large model answers ({', '.join(knowing)}{certified}), and --data without --large "
            "would forget it: give --large, or say --forget-large, or write elsewhere with --output"
        )


def _calibrate(
    options: CalibrateOptions,
    target: TargetOptions,
    source: DataOptions,
    level: LevelOptions,
    rows: text.RowsOptions,
    bundle: "Bundle",
    place: Path,
) -> int:
    """place: what the bundle is called in what is said."""
    from models.bundle import rewrite_bundle

    prepare_libraries()
    if source.data is not None:
        bundle = _calibrated(options, target, source, level, rows, bundle, place)
        say(f"wrote {place}/calibration.parquet (gate digest {bundle.gate_digest[:12]})")
        if bundle.manifest.calibrated_on != bundle.manifest.dataset_sha256:
            say("note: these are not the data that the bundle was tuned on: none of them may have been trained on")
    try:
        with Waiting("looking for the threshold"):
            choice, certificate = _choose(options, target, bundle)
    except NoThreshold as answer:
        print(printable(str(answer)))
        _say_verdict(bundle)
        return NO_THRESHOLD
    _print_choice(choice, certificate)
    _say_verdict(bundle)
    if choice.note:
        say(f"note: {choice.note}")
    if options.write:
        changes = {"default_threshold": choice.threshold, "certificate": certificate and asdict(certificate)}
        rewrite_bundle(bundle, changes, lambda _: None)
        say(f"{choice.threshold!r} is now the default threshold of {place}")
    return 0


def _calibrated(
    options: CalibrateOptions,
    target: TargetOptions,
    source: DataOptions,
    level: LevelOptions,
    rows: text.RowsOptions,
    bundle: "Bundle",
    place: Path,
) -> "Bundle":
    """With new calibration data."""
    if bundle.manifest.writes_text:
        prompts = text.load(source, level, rows)
        if target.certainty is not None:
            _check_unseen(options, prompts.content_hash, bundle)
        return text.calibrate(bundle, place, prompts, options.large, rows, options.score)
    from models.calibration.calibrate import calibrate

    text.refuse_rows(rows)
    text.refuse_for_labels(options, ("score",))
    large = source.open_large(options.large)  # first: reading the data may take a minute
    data = source.load(level)
    if target.certainty is not None:
        _check_unseen(options, data.content_hash, bundle)
    return calibrate(bundle, data, large, say)


def _check_unseen(options: CalibrateOptions, calibrated_on: str | None, bundle: "Bundle") -> None:
    """Raise InputError where calibration items may have been trained on, before they replace others."""
    if calibrated_on != bundle.manifest.dataset_sha256 and not options.fresh_data:
        raise InputError(
            "a certificate needs calibration items that nothing was trained on, and these come from other data than "
            "the bundle was tuned on (a changed file is divided anew): calibrate with that --data, or say --fresh-data "
            "if they are new"
        )


def _say_verdict(bundle: "Bundle") -> None:
    """Where the large model is not clearly better on the calibration items, one line on stderr."""
    from models.numbers.verdict import verdict_of

    data = bundle.read_calibration()
    if data is None or data.large_correct is None:
        return
    verdict = verdict_of(data.confidence, data.small_correct, data.large_correct)
    if verdict:
        say(f"note: {verdict}")


def _choose(options: CalibrateOptions, target: TargetOptions, bundle: "Bundle") -> "tuple[Choice, Certificate | None]":
    """The threshold that the target asks for, with its certificate if --certainty does."""
    from models.bundle import SELECTION
    from models.calibration import thresholds

    data, score = bundle.read_calibration(), bundle.manifest.score
    if data is None:
        raise InputError(f"{bundle.directory} has no calibration data yet: give --data (and --large)")
    if target.certainty is None:
        choosers = {
            "target_deferral_ratio": thresholds.threshold_for_ratio,
            "target_accuracy": thresholds.threshold_for_accuracy,
            "target_accuracy_loss": thresholds.threshold_for_accuracy_loss,
        }
        if target.name is None:
            return thresholds.expectation(data, bundle.manifest.default_threshold), None
        return choosers[target.name](data, getattr(target, target.name), score), None
    from models.calibration.certify import certify_accuracy_loss, certify_joint_accuracy, certify_selective_accuracy

    certifiers = {
        "target_accuracy": certify_joint_accuracy,
        "target_accuracy_loss": certify_accuracy_loss,
        "target_selective_accuracy": certify_selective_accuracy,
    }
    assert target.name is not None  # _check has seen to it
    _check_unseen(options, bundle.manifest.calibrated_on, bundle)
    selection = bundle.read_calibration(SELECTION)
    if selection is None:
        raise InputError(f"{bundle.directory} has no {SELECTION}, which a certificate needs: give --large and --data")
    certificate = certifiers[target.name](selection, data, getattr(target, target.name), target.certainty, score)
    return thresholds.expectation(data, certificate.threshold), certificate


def _print_choice(choice: "Choice", certificate: "Certificate | None") -> None:
    joint = "unknown (calibrate with --large)" if choice.joint_accuracy is None else f"{choice.joint_accuracy:.4f}"
    print(f"threshold                {choice.threshold!r}")
    print(f"expected deferral ratio  {choice.deferral_ratio:.4f}")
    print(f"expected joint accuracy  {joint}")
    if certificate is not None:
        print(
            f"certified                {certificate.measure} >= {certificate.target:g} with certainty "
            f"{certificate.certainty:g} ({certificate.items} calibration items, {certificate.method})"
        )
