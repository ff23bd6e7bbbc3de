"""The offline commands. Each imports what it needs when it runs: torch is slow."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import InputError, NoThreshold
from models.printing import printable
from models.progress import Waiting

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.calibration.certify import Certificate
    from models.calibration.large_answers import LargeAnswers
    from models.calibration.thresholds import Choice
    from models.data.datasets import LabelledDataset
    from models.evaluation.results import Evaluation

MINILM_NAME = "all-MiniLM-L6-v2"
NO_THRESHOLD = 3  # the exit code of "no threshold meets it"


def run_tune(arguments: argparse.Namespace) -> int:
    """`gatekeeper tune`."""
    _use_threads(arguments)
    alphas, seeds = _numbers("--alpha", arguments.alpha), _seeds(arguments.seeds, arguments.seed)
    _check_training(arguments)
    data = _dataset(arguments)
    _prepare_libraries()
    if arguments.model == MINILM_NAME:
        if len(alphas) > 1 or len(seeds) > 1:
            raise InputError(f"{MINILM_NAME} is frozen and knows no alpha: no sweep")
        idle = [name for name, default in TRAINING_DEFAULTS.items() if getattr(arguments, name) != default]
        if idle:
            raise InputError(f"--{idle[0].replace('_', '-')} has no effect on {MINILM_NAME}, which is frozen")
        from models.bundle import check_output
        from models.training.linear_head import MINILM, tune_frozen_head

        check_output(arguments.output)
        bundles = [tune_frozen_head(data, MINILM, seeds[0], arguments.output, _say)]
    else:
        from models.training.sweep import run_sweep
        from models.training.tune import Teachers

        recipe, machine = _recipe(arguments, data), _machine(arguments)
        _refuse_idle_options(arguments, recipe, alphas)
        teachers = Teachers(_bundle(arguments.distill_from), _bundle(arguments.targets_from))
        bundles = run_sweep(
            data,
            recipe,
            alphas,
            seeds,
            arguments.output,
            machine,
            _say,
            teachers=teachers,
            restart=arguments.restart,
        )
    for bundle in bundles:
        _say(f"wrote {bundle.directory} (gate digest {bundle.gate_digest[:12]}); next: gatekeeper calibrate")
    return 0


# What a frozen model knows nothing of.
TRAINING_DEFAULTS = {
    "alpha": "0.5",
    "loss": "gatekeeper",
    "strength": None,
    "targets_from": None,
    "alignment": 0.0,
    "tuning_epochs": None,
    "tuning_learning_rate": None,
    "distill_from": None,
    "epochs": None,
    "learning_rate": None,
    "batch_size": None,
    "gradient_accumulation": 1,
    "lora_rank": 0,
    "precision": "fp32",
}


def _refuse_idle_options(arguments: argparse.Namespace, recipe: Any, alphas: list[float]) -> None:
    """An option that changes nothing is a misunderstanding, told before hours of training."""
    if arguments.targets_from is not None and not recipe.loss.needs_soft:
        raise InputError(f"--targets-from has no effect on {recipe.loss.name} without --alignment")
    if len(alphas) > 1 and not recipe.loss.has_alpha:
        raise InputError(f"{recipe.loss.name} has no alpha: a sweep would make the same bundle {len(alphas)} times")
    if arguments.precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--precision fp16 needs a GPU; bf16 works without")


def _recipe(arguments: argparse.Namespace, data: "LabelledDataset") -> Any:
    from models.training.losses import Loss
    from models.training.model import SMALL_CNN, TEXT_NET, Shape
    from models.training.tune import Recipe

    name = arguments.loss
    if name == "gatekeeper" and arguments.targets_from and not arguments.alignment:
        name = "soft-gatekeeper"
    return Recipe(
        model=arguments.model or (TEXT_NET if data.task == "text-classification" else SMALL_CNN),
        loss=Loss(name, _numbers("--alpha", arguments.alpha)[0], arguments.strength, arguments.alignment),
        seed=arguments.seed,
        shape=Shape(max_tokens=arguments.max_tokens, image_size=arguments.image_size, lora_rank=arguments.lora_rank),
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        tuning_epochs=arguments.tuning_epochs,
        tuning_learning_rate=arguments.tuning_learning_rate,
    )


def _machine(arguments: argparse.Namespace) -> Any:
    from models.training.stage import Machine

    return Machine(arguments.precision, arguments.gradient_accumulation, arguments.save_steps, arguments.tensorboard)


def _check_training(arguments: argparse.Namespace) -> None:
    """Every number of the training options, before anything slow begins."""
    for name in ("batch_size", "gradient_accumulation", "max_tokens", "image_size", "save_steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    for name in ("epochs", "tuning_epochs", "lora_rank"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise InputError(f"--{name.replace('_', '-')} must be 0 or more, not {value}")
    for name in ("learning_rate", "tuning_learning_rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    for alpha in _numbers("--alpha", arguments.alpha):
        if not 0.0 <= alpha <= 1.0:
            raise InputError(f"--alpha must be in [0, 1], not {alpha:g}")


def _numbers(option: str, text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option} takes numbers with commas between them, not {text!r}") from None


def _seeds(text: str | None, default: int) -> list[int]:
    try:
        seeds = [default] if text is None else list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"--seeds takes whole numbers with commas between them, not {text!r}") from None
    if any(not 0 <= seed < 2**32 for seed in seeds):
        raise InputError("a seed is a whole number from 0 to 4294967295")
    return seeds


def run_import(arguments: argparse.Namespace) -> int:
    """`gatekeeper import`."""
    from models.bundle import check_output

    check_output(arguments.output)
    _use_threads(arguments)
    _prepare_libraries()
    from models.training.importing import import_model

    bundle = import_model(
        arguments.model, arguments.output, arguments.name, arguments.labels, arguments.max_tokens, _say
    )
    _say(f"wrote {bundle.directory} (gate digest {bundle.gate_digest[:12]}); next: gatekeeper calibrate")
    return 0


def _check_calibrate(arguments: argparse.Namespace) -> None:
    """Options that contradict each other. Raises InputError."""
    targets = (
        arguments.target_deferral_ratio,
        arguments.target_accuracy,
        arguments.target_accuracy_loss,
        arguments.target_selective_accuracy,
    )
    if arguments.write and all(target is None for target in targets):
        raise InputError("--write keeps the threshold of a target: give one")
    _check_targets(arguments)
    if arguments.certainty is not None and all(target is None for target in targets):
        raise InputError("--certainty needs --target-accuracy, --target-accuracy-loss or --target-selective-accuracy")
    if arguments.threshold is not None and arguments.only_deferred_by is None:
        raise InputError("--threshold is that of --only-deferred-by; a target chooses the bundle's own")
    if arguments.data is not None and arguments.large is None:
        for option in ("target_accuracy", "target_accuracy_loss"):
            if getattr(arguments, option) is not None:
                name = option.replace("_", "-")
                raise InputError(f"--{name} on new data needs --large: joint accuracy is that of both models")
    if arguments.data is None and arguments.large is not None:
        raise InputError("--large needs --data: its answers on the calibrate split are what is recorded")


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`gatekeeper calibrate`. Exit code 3: no threshold meets the target."""
    _use_threads(arguments)
    from models.bundle import check_output, copy_bundle, load_bundle

    _check_calibrate(arguments)
    bundle = load_bundle(arguments.bundle)
    if arguments.data is not None and arguments.large is None and not arguments.forget_large:
        _refuse_to_forget(arguments.output or bundle.directory)
    if arguments.output is None:
        return _calibrate(arguments, bundle, bundle.directory)
    if arguments.data is None and not arguments.write:
        raise InputError("--output needs something to write: --data, or a target and --write")
    output = arguments.output.resolve()
    check_output(output)
    # What stands at the output is replaced by the finished bundle, or not at all.
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=output.parent) as scratch:
        copy = copy_bundle(bundle, Path(scratch) / output.name)
        code = _calibrate(arguments, copy, arguments.output)
        if code == 0 or arguments.data is not None:
            copy_bundle(load_bundle(copy.directory), output)
    return code


def _check_targets(arguments: argparse.Namespace) -> None:
    """Every number of a target, before --data replaces what is there. Raises InputError."""
    certainty = arguments.certainty
    for name, below_one in (
        ("target_deferral_ratio", False),
        ("target_accuracy", False),
        ("target_accuracy_loss", True),
        ("target_selective_accuracy", False),
    ):
        value = getattr(arguments, name)
        option = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
            raise InputError(
                f"{option} must be {'at least 0 and below 1' if below_one else 'in [0, 1]'}, not {value:g}"
            )
        if certainty is not None and name == "target_deferral_ratio":
            raise InputError(f"{option} is a choice and needs no certificate: leave --certainty out")
        if certainty is None and name == "target_selective_accuracy":
            raise InputError(f"{option} needs --certainty")
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


def _calibrate(arguments: argparse.Namespace, bundle: "Bundle", place: Path) -> int:
    """place: what the bundle is called in what is said."""
    from models.bundle import rewrite_bundle

    _prepare_libraries()
    if arguments.data is not None:
        from models.calibration.calibrate import calibrate

        large = _large(arguments)  # first: reading the data may take a minute
        data = _dataset(arguments)
        if arguments.certainty is not None:
            _check_unseen(arguments, data.content_hash, bundle)
        bundle = calibrate(bundle, data, large, _say)
        _say(f"wrote {place}/calibration.parquet (gate digest {bundle.gate_digest[:12]})")
        if bundle.manifest.calibrated_on != bundle.manifest.dataset_sha256:
            _say("note: these are not the data that the bundle was tuned on: none of them may have been trained on")
    try:
        with Waiting("looking for the threshold"):
            choice, certificate = _choose(arguments, bundle)
    except NoThreshold as answer:
        print(printable(str(answer)))
        _say_verdict(bundle)
        return NO_THRESHOLD
    _print_choice(choice, certificate)
    _say_verdict(bundle)
    if choice.note:
        _say(f"note: {choice.note}")
    if arguments.write:
        changes = {"default_threshold": choice.threshold, "certificate": certificate and asdict(certificate)}
        rewrite_bundle(bundle, changes, lambda _: None)
        _say(f"{choice.threshold!r} is now the default threshold of {place}")
    return 0


def _check_unseen(arguments: argparse.Namespace, calibrated_on: str | None, bundle: "Bundle") -> None:
    """Raise InputError where calibration items may have been trained on, before they replace others."""
    if calibrated_on != bundle.manifest.dataset_sha256 and not arguments.fresh_data:
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
        _say(f"note: {verdict}")


def _choose(arguments: argparse.Namespace, bundle: "Bundle") -> "tuple[Choice, Certificate | None]":
    """The threshold that the target asks for, with its certificate if --certainty does."""
    from models.bundle import SELECTION
    from models.calibration import thresholds

    data, score = bundle.read_calibration(), bundle.manifest.score
    if data is None:
        raise InputError(f"{bundle.directory} has no calibration data yet: give --data (and --large)")
    if arguments.certainty is None:
        if arguments.target_deferral_ratio is not None:
            return thresholds.threshold_for_ratio(data, arguments.target_deferral_ratio, score), None
        if arguments.target_accuracy is not None:
            return thresholds.threshold_for_accuracy(data, arguments.target_accuracy, score), None
        if arguments.target_accuracy_loss is not None:
            return thresholds.threshold_for_accuracy_loss(data, arguments.target_accuracy_loss, score), None
        return thresholds.expectation(data, bundle.manifest.default_threshold), None
    from models.calibration.certify import certify_accuracy_loss, certify_joint_accuracy, certify_selective_accuracy

    certifiers = {
        "--target-accuracy": (certify_joint_accuracy, arguments.target_accuracy),
        "--target-accuracy-loss": (certify_accuracy_loss, arguments.target_accuracy_loss),
        "--target-selective-accuracy": (certify_selective_accuracy, arguments.target_selective_accuracy),
    }
    wanted = [(certify, target) for certify, target in certifiers.values() if target is not None]
    _check_unseen(arguments, bundle.manifest.calibrated_on, bundle)
    selection = bundle.read_calibration(SELECTION)
    if selection is None:
        raise InputError(f"{bundle.directory} has no {SELECTION}, which a certificate needs: give --large and --data")
    certify, target = wanted[0]
    certificate = certify(selection, data, target, arguments.certainty, score)
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


def _check_evaluate(arguments: argparse.Namespace) -> None:
    """Options that contradict each other. Raises InputError."""
    if arguments.predictions is not None:
        if (
            arguments.bundle is not None
            or arguments.data is not None
            or arguments.endpoint is not None
            or arguments.large
        ):
            raise InputError("--predictions is a finished table: no bundle, --data, --large or --endpoint beside it")
        return
    if arguments.bundle is None or arguments.data is None:
        raise InputError("give a bundle and --data, or --predictions TABLE")
    if arguments.endpoint is not None and not arguments.large:
        raise InputError("--endpoint needs --large: the other side of the comparison is the whole cascade")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`gatekeeper evaluate`. Exit code 1: the endpoint decided otherwise than the offline evaluation."""
    _use_threads(arguments)
    _check_evaluate(arguments)
    if arguments.predictions is not None:
        return _evaluate_table(arguments)
    bundle = _bundle(arguments.bundle)
    assert bundle is not None
    large = _large(arguments)
    data = _dataset(arguments)
    _prepare_libraries()
    from models.calibration.large_answers import LargeTable
    from models.evaluation.evaluate import about_bundle, evaluate, write_card
    from models.evaluation.results import write_evaluation

    _make_output(arguments.output)
    evaluation = evaluate(bundle, data, large, arguments.seed)
    if isinstance(large, LargeTable):
        _say(large.note(data, ("test",)))
    _print_numbers(bundle.manifest.name, evaluation.numbers)
    if arguments.output is not None:
        with Waiting("drawing the report"):
            write_evaluation(arguments.output, evaluation, about_bundle(bundle, data, large, arguments.seed))
        _say(f"wrote {arguments.output}/report.html, metrics.json and predictions.parquet")
    if arguments.write_card:
        write_card(bundle, data, evaluation.numbers, large)
    if arguments.endpoint is not None:
        return _compare_endpoint(arguments, bundle, data, evaluation)
    return 0


def _make_output(output: Path | None) -> None:
    """Told now, not after minutes of predicting. Raises InputError."""
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error.strerror}") from error


def _evaluate_table(arguments: argparse.Namespace) -> int:
    """Neither torch nor a model: a table of a million rows takes seconds."""
    from models.evaluation.results import about_table, evaluate_table, write_evaluation
    from models.numbers.predictions import LARGEST, read_predictions

    if arguments.threshold is not None and not abs(arguments.threshold) <= LARGEST:
        raise InputError(
            f"--threshold must be a number between -{LARGEST:g} and {LARGEST:g}, not {arguments.threshold}"
        )
    _make_output(arguments.output)
    name = arguments.predictions.name
    with Waiting(f"reading {name}"):
        predictions = read_predictions(arguments.predictions)
    with Waiting(f"measuring {len(predictions.confidence):,} rows, with 200 resamples"):
        evaluation = evaluate_table(predictions, arguments.threshold, arguments.seed)
    _print_numbers(name, evaluation.numbers)
    if arguments.output is not None:
        with Waiting("drawing the report"):
            write_evaluation(arguments.output, evaluation, about_table(name, evaluation, arguments.seed))
        _say(f"wrote {arguments.output}/report.html, metrics.json and predictions.parquet")
    return 0


def _print_numbers(name: str, numbers: dict[str, Any]) -> None:
    print(f"{printable(name)}: {numbers['rows']} test items, threshold {numbers['threshold']:g}")
    for key, entry in numbers.items():
        if isinstance(entry, dict) and "value" in entry:
            if entry["value"] is None:
                print(f"  {key:34} does not exist for these data")
            elif entry["low"] is None:
                print(f"  {key:34} {entry['value']:.4f}")
            else:
                print(f"  {key:34} {entry['value']:.4f}  [{entry['low']:.4f}, {entry['high']:.4f}]")
    if numbers.get("out_of_scope"):
        print(f"  {'out-of-scope deferred':34} {numbers['out_of_scope']['deferral_ratio']:.4f}")
    if "items_per_second" in numbers:
        print(f"  {'items/s, one thread':34} {numbers['items_per_second']:,.0f}")
    if numbers.get("verdict"):
        print(f"  {numbers['verdict']}")
    if between := numbers.get("ratios_between_ties"):
        print(
            f"  no threshold comes near a deferral ratio of {', '.join(f'{ratio:g}' for ratio in between)}: items "
            "share one confidence there, and the joint accuracy is a mixture that no threshold gives"
        )


def _compare_endpoint(
    arguments: argparse.Namespace, bundle: "Bundle", data: "LabelledDataset", evaluation: "Evaluation"
) -> int:
    from models.evaluation.edge_client import api_key
    from models.evaluation.parity import compare_endpoint

    thresholds, key = _thresholds(arguments.thresholds, bundle), api_key(arguments.api_key_file)
    with Waiting(f"asking {arguments.endpoint}", len(thresholds) * len(data.test)) as progress:
        rows = compare_endpoint(arguments.endpoint, bundle, data, evaluation, thresholds, progress, key=key)
    print(f"{arguments.endpoint} against the offline evaluation, {len(data.test)} items a threshold")
    print("threshold   deferral ratio      joint accuracy      decided     within 1e-5   degraded   largest gap")
    print("            offline   online    offline   online    differently of threshold             in confidence")
    for row in rows:
        print(
            f"{row.threshold:<11.4f} {row.offline_deferral_ratio:<9.4f} {row.online_deferral_ratio:<9.4f} "
            f"{row.offline_joint_accuracy:<9.4f} {row.online_joint_accuracy:<9.4f} {row.different:<11d} "
            f"{row.near:<13d} {row.degraded:<10d} {row.largest_confidence_gap:.1e}"
        )
    return 1 if any(row.different or row.degraded for row in rows) else 0


def _thresholds(option: str | None, bundle: "Bundle") -> Sequence[float]:
    from models.calibration.thresholds import nearest_to_ratio

    if option is not None:
        return _numbers("--thresholds", option)
    calibration = bundle.read_calibration()
    if calibration is None:
        raise InputError(f"{bundle.directory} is not calibrated: give --thresholds")
    nearest = (nearest_to_ratio(calibration, ratio, bundle.manifest.score) for ratio in (0.1, 0.2, 0.4))
    return list(dict.fromkeys(nearest))  # equal confidences may leave fewer than three


def run_compare(arguments: argparse.Namespace) -> int:
    """`gatekeeper compare`."""
    _use_threads(arguments)
    for name in ("loss", "strength", "targets_from", "alignment", "restart"):
        if getattr(arguments, name) not in (None, "gatekeeper", 0.0, False):
            raise InputError(f"--{name.replace('_', '-')} is for tune; compare has its own list, see --losses")
    alphas, seeds = _numbers("--alpha", arguments.alpha), _seeds(arguments.seeds, arguments.seed)
    _check_training(arguments)
    data = _dataset(arguments)
    _prepare_libraries()
    from models.study.findings import as_table
    from models.study.study import Study, run_study

    large = _bundle(arguments.large)
    assert large is not None
    study = Study(
        data,
        large,
        _recipe(arguments, data),
        tuple(alphas),
        tuple(seeds),
        arguments.losses,
        _bundle(arguments.distill_from),
    )
    print(as_table(run_study(study, arguments.output, _machine(arguments), _say)))
    return 0


def _bundle(path: Path | None) -> "Bundle | None":
    from models.bundle import load_bundle

    return None if path is None else load_bundle(path)


def _large(arguments: argparse.Namespace) -> "LargeAnswers | None":
    """The large model's bundle or the table of its answers that --large names."""
    if arguments.large is None:
        return None
    from models.calibration.large_answers import open_large
    from models.data.records import Columns

    return open_large(arguments.large, Columns(arguments.text_column, arguments.label_column))


def _dataset(arguments: argparse.Namespace) -> "LabelledDataset":
    """The dataset, and what is odd about it on stderr."""
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed is a whole number from 0 to 4294967295, not {arguments.seed}")
    from models.data.datasets import load_dataset

    with Waiting(f"reading {arguments.data}"):
        data = load_dataset(
            arguments.data,
            arguments.data_dir and Path(arguments.data_dir),
            text_column=arguments.text_column,
            label_column=arguments.label_column,
        )
    before = getattr(arguments, "only_deferred_by", None)
    if before is not None:
        _prepare_libraries()
        from models.bundle import load_bundle
        from models.levels import only_deferred

        data = only_deferred(data, load_bundle(before), arguments.threshold)
    elif getattr(arguments, "threshold", None) is not None:
        raise InputError("--threshold is that of --only-deferred-by or of --predictions")
    for note in data.notes:
        _say(f"note: {note}")
    return data


def _use_threads(arguments: argparse.Namespace) -> None:
    from models.threads import MOST, use_threads

    if arguments.threads is not None and not 1 <= arguments.threads <= MOST:
        raise InputError(f"--threads must be from 1 to {MOST}, not {arguments.threads}")
    use_threads(arguments.threads)


def _prepare_libraries() -> None:
    """Quiet libraries, and no tokenizer threads beside torch's own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one voice, of however many processes train together
        print(printable(line), file=sys.stderr, flush=True)
