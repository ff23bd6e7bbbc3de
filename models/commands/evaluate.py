"""`gatekeeper evaluate`: measure a bundle on the test split, a table from elsewhere, or a running cascade."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.commands import text
from models.commands.inputs import DataOptions, LevelOptions, add_data, add_large, add_level, bundle_at
from models.commands.options import numbers, runs
from models.commands.process import prepare_libraries, say, set_threads
from models.errors import InputError
from models.printing import printable
from models.progress import Waiting
from models.replacing import writing

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.datasets import LabelledDataset
    from models.evaluation.results import Evaluation


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, against what, and where the numbers go."""

    bundle: Path | None
    large: Path | None
    predictions: Path | None
    output: Path | None
    write_card: bool
    endpoint: str | None
    api_key_file: Path | None
    thresholds: str | None


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser("evaluate", help="measure a bundle, a table or a running cascade on the test split")
    parser.add_argument("bundle", type=Path, nargs="?")
    add_large(parser)
    parser.add_argument("--predictions", type=Path, metavar="TABLE", help="score a .csv or .parquet from elsewhere")
    parser.add_argument(
        "--output", type=Path, help="where predictions.parquet, metrics.json and report.html go; default: nowhere"
    )
    parser.add_argument("--write-card", action="store_true", help="put the numbers into the bundle's model card")
    parser.add_argument("--endpoint", metavar="URL", help="hold a running edge against these numbers")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="the API key for --endpoint, with the scope override; default: GATEKEEPER_API_KEY",
    )
    parser.add_argument("--thresholds", metavar="T,T,T", help="for --endpoint; default: for 10, 20 and 40 %% deferred")
    add_data(parser, required=False)
    add_level(parser, "; or that for --predictions, default: defer 20 %%")
    text.add_rows(parser, scorer=True)
    runs(parser, run, EvaluateOptions, DataOptions, LevelOptions, text.RowsOptions)


def run(options: EvaluateOptions, source: DataOptions, level: LevelOptions, rows: text.RowsOptions) -> int:
    """Exit code 1: the endpoint decided otherwise than the offline evaluation."""
    set_threads(source.threads)
    _check(options, source)
    if options.predictions is not None:
        return _evaluate_table(options.predictions, options.output, level.threshold, source.seed)
    bundle = bundle_at(options.bundle)
    assert bundle is not None
    if bundle.manifest.writes_text:
        return _evaluate_text(options, source, level, rows, bundle)
    text.refuse_rows(rows)
    large = source.open_large(options.large)
    data = source.load(level)
    prepare_libraries()
    from models.calibration.large_answers import LargeTable
    from models.evaluation.evaluate import about_bundle, evaluate, write_card

    _make_output(options.output)
    evaluation = evaluate(bundle, data, large, source.seed)
    if isinstance(large, LargeTable):
        say(large.note(data, ("test",)))
    _print_numbers(bundle.manifest.name, evaluation.numbers)
    _write(options.output, evaluation, about_bundle(bundle, data, large, source.seed))
    if options.write_card:
        write_card(bundle, data, evaluation.numbers, large.name if large else None)
    if options.endpoint is not None:
        return _compare_endpoint(options, options.endpoint, bundle, data, evaluation)
    return 0


def _evaluate_text(
    options: EvaluateOptions, source: DataOptions, level: LevelOptions, rows: text.RowsOptions, bundle: "Bundle"
) -> int:
    text.refuse_for_text(options, ("endpoint",))
    data = text.load(source, level, rows)
    prepare_libraries()
    _make_output(options.output)
    with text.drafted(bundle.directory) as work:
        evaluation, about = text.evaluate(bundle, data, options.large, rows, source.seed, work)
        _print_numbers(bundle.manifest.name, evaluation.numbers)
        _write(options.output, evaluation, about)
        if options.write_card:
            from models.evaluation.evaluate import write_card

            write_card(bundle, data, evaluation.numbers, about["Large model"] if options.large else None)
    return 0


def _check(options: EvaluateOptions, source: DataOptions) -> None:
    """Options that contradict each other. Raises InputError."""
    if options.predictions is not None:
        others = (options.bundle, source.data, options.endpoint, options.large)
        if any(other is not None for other in others):
            raise InputError("--predictions is a finished table: no bundle, --data, --large or --endpoint beside it")
        return
    if options.bundle is None or source.data is None:
        raise InputError("give a bundle and --data, or --predictions TABLE")
    if options.endpoint is not None and options.large is None:
        raise InputError("--endpoint needs --large: the other side of the comparison is the whole cascade")


def _make_output(output: Path | None) -> None:
    """Told now, not after minutes of predicting. Raises InputError."""
    if output is not None:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)


def _write(output: Path | None, evaluation: "Evaluation", about: dict[str, str]) -> None:
    if output is None:
        return
    from models.evaluation.results import write_evaluation

    with Waiting("drawing the report"):
        write_evaluation(output, evaluation, about)
    say(f"wrote {output}/report.html, metrics.json and predictions.parquet")


def _evaluate_table(table: Path, output: Path | None, threshold: float | None, seed: int) -> int:
    """Neither torch nor a model: a table of a million rows takes seconds."""
    from models.evaluation.results import about_table, evaluate_table
    from models.numbers.predictions import LARGEST, read_predictions

    if threshold is not None and not abs(threshold) <= LARGEST:
        raise InputError(f"--threshold must be a number between -{LARGEST:g} and {LARGEST:g}, not {threshold}")
    _make_output(output)
    with Waiting(f"reading {table.name}"):
        predictions = read_predictions(table)
    with Waiting(f"measuring {len(predictions.confidence):,} rows, with 200 resamples"):
        evaluation = evaluate_table(predictions, threshold, seed)
    _print_numbers(table.name, evaluation.numbers)
    _write(output, evaluation, about_table(table.name, evaluation, seed))
    return 0


def _print_numbers(name: str, found: dict[str, Any]) -> None:
    print(f"{printable(name)}: {found['rows']} test items, threshold {found['threshold']:g}")
    for key, entry in found.items():
        if isinstance(entry, dict) and "value" in entry:
            if entry["value"] is None:
                print(f"  {key:34} does not exist for these data")
            elif entry["low"] is None:
                print(f"  {key:34} {entry['value']:.4f}")
            else:
                print(f"  {key:34} {entry['value']:.4f}  [{entry['low']:.4f}, {entry['high']:.4f}]")
    if found.get("out_of_scope"):
        print(f"  {'out-of-scope deferred':34} {found['out_of_scope']['deferral_ratio']:.4f}")
    if "items_per_second" in found:
        print(f"  {'items/s, one thread':34} {found['items_per_second']:,.0f}")
    if found.get("verdict"):
        print(f"  {found['verdict']}")
    if between := found.get("ratios_between_ties"):
        print(
            f"  no threshold comes near a deferral ratio of {', '.join(f'{ratio:g}' for ratio in between)}: items "
            "share one confidence there, and the joint accuracy is a mixture that no threshold gives"
        )


def _compare_endpoint(
    options: EvaluateOptions, url: str, bundle: "Bundle", data: "LabelledDataset", evaluation: "Evaluation"
) -> int:
    from models.evaluation.edge_client import api_key
    from models.evaluation.parity import compare_endpoint

    thresholds, key = _thresholds(options.thresholds, bundle), api_key(options.api_key_file)
    with Waiting(f"asking {url}", len(thresholds) * len(data.test)) as progress:
        rows = compare_endpoint(url, bundle, data, evaluation, thresholds, progress, key=key)
    print(f"{url} against the offline evaluation, {len(data.test)} items a threshold")
    print("threshold   deferral ratio      joint accuracy      decided     within 1e-5   degraded   largest gap")
    print("            offline   online    offline   online    differently of threshold             in confidence")
    for row in rows:
        print(
            f"{row.threshold:<11.4f} {row.offline_deferral_ratio:<9.4f} {row.online_deferral_ratio:<9.4f} "
            f"{row.offline_joint_accuracy:<9.4f} {row.online_joint_accuracy:<9.4f} {row.different:<11d} "
            f"{row.near:<13d} {row.degraded:<10d} {row.largest_confidence_gap:.1e}"
        )
    return 1 if any(row.different or row.degraded for row in rows) else 0


def _thresholds(given: str | None, bundle: "Bundle") -> Sequence[float]:
    from models.calibration.thresholds import nearest_to_ratio

    if given is not None:
        return numbers("--thresholds", given)
    calibration = bundle.read_calibration()
    if calibration is None:
        raise InputError(f"{bundle.directory} is not calibrated: give --thresholds")
    nearest = (nearest_to_ratio(calibration, ratio, bundle.manifest.score) for ratio in (0.1, 0.2, 0.4))
    return list(dict.fromkeys(nearest))  # equal confidences may leave fewer than three
