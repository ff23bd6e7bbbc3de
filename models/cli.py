"""The offline commands: tune, calibrate, evaluate. torch is imported when one of them runs, not before."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.calibrate import Choice
    from models.datasets import TextDataset
    from models.evaluate import Evaluation

TEXT_NET, MINILM_NAME = "text-net", "all-MiniLM-L6-v2"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the offline commands to the `gatekeeper` parser; each sets `run`."""
    tune = commands.add_parser("tune", help="train a small model with the Gatekeeper loss, write a bundle")
    tune.add_argument("--model", choices=(TEXT_NET, MINILM_NAME), default=TEXT_NET, help="default: %(default)s")
    tune.add_argument("--alpha", type=float, default=0.5, help="weight of the correct items, in [0, 1]")
    tune.add_argument("--output", type=Path, required=True, help="the bundle's directory")
    _add_data(tune, required=True)
    tune.set_defaults(run=run_tune)

    calibrate = commands.add_parser("calibrate", help="temperature, calibration data and thresholds of a bundle")
    calibrate.add_argument("bundle", type=Path)
    calibrate.add_argument("--large", type=Path, help="the large model's bundle")
    calibrate.add_argument("--output", type=Path, help="write a bundle of its own there; default: in place")
    _add_data(calibrate, required=False)
    target = calibrate.add_mutually_exclusive_group()
    target.add_argument("--target-deferral-ratio", type=float, metavar="R")
    target.add_argument("--target-accuracy", type=float, metavar="A", help="joint accuracy, with the fewest deferrals")
    calibrate.add_argument("--write", action="store_true", help="make it the bundle's default threshold")
    calibrate.set_defaults(run=run_calibrate)

    evaluate = commands.add_parser("evaluate", help="measure a bundle, or a running cascade, on the test split")
    evaluate.add_argument("bundle", type=Path)
    evaluate.add_argument("--large", type=Path, help="the large model's bundle")
    evaluate.add_argument("--output", type=Path, help="where predictions.parquet and metrics.json go")
    evaluate.add_argument("--write-card", action="store_true", help="put the numbers into the bundle's model card")
    evaluate.add_argument("--endpoint", metavar="URL", help="hold a running edge against these numbers")
    evaluate.add_argument(
        "--thresholds", metavar="T,T,T", help="for --endpoint; default: for 10, 20 and 40 %% deferred"
    )
    _add_data(evaluate, required=True)
    evaluate.set_defaults(run=run_evaluate)


def _add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--data", required=required, metavar="NAME", help="a named dataset: clinc150")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("GATEKEEPER_DATA_DIR"),
        help="the folder that holds it; default: GATEKEEPER_DATA_DIR",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of the bootstrap; default: 0")


def run_tune(arguments: argparse.Namespace) -> int:
    """`gatekeeper tune`."""
    from models.errors import InputError

    if not 0.0 <= arguments.alpha <= 1.0:
        raise InputError(f"--alpha must be in [0, 1], not {arguments.alpha:g}")
    data = _dataset(arguments)
    _prepare_torch()
    from models.bundle import check_output
    from models.tune import MINILM, Recipe, tune_frozen_head, tune_text_net

    check_output(arguments.output)
    if arguments.model == TEXT_NET:
        recipe = Recipe(alpha=arguments.alpha, seed=arguments.seed)
        bundle = tune_text_net(data, recipe, arguments.output, _say)
    else:
        bundle = tune_frozen_head(data, MINILM, arguments.seed, arguments.output, _say)
    _say(f"wrote {bundle.directory} (gate digest {bundle.gate_digest[:12]}); next: gatekeeper calibrate")
    return 0


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`gatekeeper calibrate`."""
    from models.bundle import copy_bundle, load_bundle, rewrite_bundle
    from models.errors import InputError

    bundle = load_bundle(arguments.bundle)
    if arguments.output is not None:
        if arguments.data is None and not arguments.write:
            raise InputError("--output needs something to write: --data, or a target and --write")
        bundle = copy_bundle(bundle, arguments.output)
    _prepare_torch()
    from models import calibrate

    if arguments.data is not None:
        large = load_bundle(arguments.large) if arguments.large else None
        bundle = calibrate.calibrate(bundle, _dataset(arguments), large, _say)
        _say(f"wrote {bundle.directory}/calibration.parquet (gate digest {bundle.gate_digest[:12]})")
    elif arguments.large is not None:
        raise InputError("--large needs --data: its answers on the calibrate split are what is recorded")
    data = bundle.read_calibration()
    if data is None:
        raise InputError(f"{bundle.directory} has no calibration data yet: give --data (and --large)")
    try:
        if arguments.target_deferral_ratio is not None:
            choice = calibrate.threshold_for_ratio(data, arguments.target_deferral_ratio, bundle.manifest.score)
        elif arguments.target_accuracy is not None:
            choice = calibrate.threshold_for_accuracy(data, arguments.target_accuracy, bundle.manifest.score)
        else:
            choice = calibrate.expectation(data, bundle.manifest.default_threshold)
    except calibrate.NoThreshold as answer:
        print(answer)
        return 3
    _print_choice(choice)
    if arguments.write:
        rewrite_bundle(bundle, {"default_threshold": choice.threshold}, lambda _: None)
        _say(f"{choice.threshold:g} is now the default threshold of {bundle.directory}")
    return 0


def _print_choice(choice: "Choice") -> None:
    joint = "unknown (calibrate with --large)" if choice.joint_accuracy is None else f"{choice.joint_accuracy:.4f}"
    print(f"threshold                {choice.threshold:g}")
    print(f"expected deferral ratio  {choice.deferral_ratio:.4f}")
    print(f"expected joint accuracy  {joint}")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`gatekeeper evaluate`. Exit code 1: the endpoint decided otherwise than the offline evaluation."""
    from models.bundle import load_bundle
    from models.errors import InputError

    if arguments.endpoint and not arguments.large:
        raise InputError("--endpoint needs --large: the other side of the comparison is the whole cascade")
    bundle, data = load_bundle(arguments.bundle), _dataset(arguments)
    large = load_bundle(arguments.large) if arguments.large else None
    _prepare_torch()
    from models.evaluate import evaluate, write_card

    evaluation = evaluate(bundle, data, large, arguments.output, arguments.seed)
    _print_numbers(bundle.manifest.name, evaluation.numbers)
    if arguments.write_card:
        write_card(bundle, data, evaluation.numbers, large)
    if arguments.endpoint:
        return _compare_endpoint(arguments, bundle, data, evaluation)
    return 0


def _print_numbers(name: str, numbers: dict[str, Any]) -> None:
    print(f"{name}: {numbers['rows']} test items, threshold {numbers['threshold']:g}")
    for key, entry in numbers.items():
        if isinstance(entry, dict) and "value" in entry:
            if entry["value"] is None:
                print(f"  {key:24} does not exist for these data")
            else:
                print(f"  {key:24} {entry['value']:.4f}  [{entry['low']:.4f}, {entry['high']:.4f}]")
    if numbers["out_of_scope"]:
        print(f"  {'out-of-scope deferred':24} {numbers['out_of_scope']['deferral_ratio']:.4f}")
    print(f"  {'sentences/s, one thread':24} {numbers['sentences_per_second']:,.0f}")


def _compare_endpoint(
    arguments: argparse.Namespace, bundle: "Bundle", data: "TextDataset", evaluation: "Evaluation"
) -> int:
    from tqdm import tqdm

    from models.endpoint import compare_endpoint

    thresholds = _thresholds(arguments.thresholds, bundle)
    with tqdm(total=len(thresholds) * len(data.test), unit=" items", file=sys.stderr) as bar:
        rows = compare_endpoint(arguments.endpoint, bundle, data, evaluation, thresholds, bar.update)
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


def _thresholds(option: str | None, bundle: "Bundle") -> list[float]:
    from models.calibrate import threshold_for_ratio
    from models.errors import InputError

    if option is not None:
        try:
            return [float(part) for part in option.split(",")]
        except ValueError:
            raise InputError(f"--thresholds takes numbers with commas between them, not {option!r}") from None
    calibration = bundle.read_calibration()
    if calibration is None:
        raise InputError(f"{bundle.directory} is not calibrated: give --thresholds")
    return [threshold_for_ratio(calibration, ratio, bundle.manifest.score).threshold for ratio in (0.1, 0.2, 0.4)]


def _dataset(arguments: argparse.Namespace) -> "TextDataset":
    from models.datasets import load_dataset

    return load_dataset(arguments.data, arguments.data_dir and Path(arguments.data_dir))


def _prepare_torch() -> None:
    """Quiet libraries, and no tokenizer threads beside torch's own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
