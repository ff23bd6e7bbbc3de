"""What the cascade saves, end to end: large-model calls and latency at no, half a point and one point of accuracy lost.

    make savings            python -m loadtests.savings --sentences clinc150
    python -m loadtests.savings --bundle runs/small --large-bundle runs/large --data test.csv

Starts the edge and the large model and sends every sentence over one connection: once to the large model alone, and
once with each threshold that `gatekeeper calibrate --target-accuracy-loss` chooses from the calibration data, plain and
certified. All go through the edge. For each sentence the variants take turns, each time another one first, so that the
machine's noise is the same for all. Out-of-scope queries, which no label fits, follow in the same way.
Exit code 1: something was not answered as it should be.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loadtests.common import own_data, sentences
from loadtests.common.answers import ContractBroken, Output, read_answer
from loadtests.common.datasets import DataMissing, clinc150
from loadtests.common.edge import running_edge
from loadtests.common.options import RESULTS, between
from loadtests.common.own_data import BadData
from loadtests.common.servers import ROOT, BenchFailed, Cores, choose_cores, free_port, running
from loadtests.users.choice import DATA_VARIABLE, path_type

BUNDLE, LARGE_BUNDLE = ROOT / "models/bundles/clinc150-small", ROOT / "models/bundles/clinc150-large"
LOSSES, CERTAINTY = (0.0, 0.005, 0.01), 0.95
NO_THRESHOLD = 3  # gatekeeper calibrate's exit code where none can be certified
WARM_UP = 20


@dataclass
class Variant:
    """One way to be asked. threshold: None sends everything to the large model; `missing` says why there is none."""

    name: str
    threshold: float | None = None
    missing: str = ""
    right: list[bool] = field(default_factory=list)
    large: list[bool] = field(default_factory=list)  # of in-scope sentences: whether the large model was asked
    odd_large: list[bool] = field(default_factory=list)  # of out-of-scope queries
    seconds: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"route": "large"} if self.threshold is None else {"threshold": self.threshold}


@dataclass(frozen=True)
class Row:
    """Shares of 1; saved: of the large model's calls, in-scope and where the out-of-scope queries are mixed in."""

    name: str
    threshold: float | None
    accuracy: float
    lost: float
    saved: float
    saved_mixed: float | None
    odd_deferred: float | None
    mean_ms: float
    p50_ms: float
    p95_ms: float


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = _parser().parse_args(argv)
    try:
        known, odd = _sentences(arguments)
        variants = [Variant("large model alone"), *thresholds(arguments.bundle)]
        sent = list(known)[:: arguments.every]
        odd = odd[:: arguments.every]
        with tempfile.TemporaryDirectory() as scratch:
            asked = [one for one in variants if not one.missing]
            ask_all(Path(scratch), choose_cores(), asked, known, sent, odd, arguments.bundle, arguments.large_bundle)
    except (BadData, BenchFailed, DataMissing, ContractBroken, httpx.HTTPError) as error:
        print(f"savings: {error}", file=sys.stderr)
        return 1
    rows = summarise(variants)
    print(table(variants, rows, len(sent), len(odd)))
    RESULTS.mkdir(exist_ok=True)
    refused = {one.name: one.missing for one in variants if one.missing}
    found = {
        "sentences": len(sent),
        "out_of_scope": len(odd),
        "rows": [asdict(row) for row in rows],
        "refused": refused,
    }
    (RESULTS / "savings.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _sentences(arguments: argparse.Namespace) -> tuple[dict[str, str], tuple[str, ...]]:
    """(the right label of each, odd ones without). Raises BadData for what is not for this bundle."""
    if arguments.data:
        found = own_data.read(Path(arguments.data), arguments.text_column, arguments.label_column)
        known = {item: right for item, right in found if isinstance(item, str)}
        if not known:
            raise BadData(f"{arguments.data} holds images, and the savings are measured with sentences")
        odd: tuple[str, ...] = ()
    elif arguments.sentences == "clinc150":
        known, odd = clinc150()
    else:
        known, odd = sentences.EASY_LABELS | sentences.HARD_LABELS, sentences.ODD
    for bundle in (arguments.bundle, arguments.large_bundle):
        _check_labels(bundle, set(known.values()))
    return known, odd


def _check_labels(bundle: Path, wanted: set[str]) -> None:
    try:
        manifest = json.loads((bundle / "gatekeeper.json").read_bytes())
        labels = {str(label) for label in manifest["labels"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise BadData(f"{bundle} is no bundle: it has no gatekeeper.json that can be read") from None
    foreign = wanted - labels
    if 2 * len(foreign) > len(wanted):
        raise BadData(
            f"{len(foreign)} of the {len(wanted)} labels of these sentences are unknown to {bundle}, such as "
            f"{min(foreign)[:60]!r}: give sentences of its own with --data"
        )
    if foreign:
        print(f"savings: {bundle} does not know {len(foreign)} labels, such as {min(foreign)[:60]!r}", file=sys.stderr)


def thresholds(bundle: Path) -> list[Variant]:
    """What `gatekeeper calibrate` answers for each loss, plain and certified."""
    found = []
    for loss in LOSSES:
        for certified in ((), ("--certainty", f"{CERTAINTY:g}")):
            points = f"{100 * loss:g} point{'' if loss == 0.01 else 's'}"
            name = f"{'certified' if certified else 'plain'}, at most {points} lost"
            command = [
                sys.executable,
                "-m",
                "service.cli",
                "calibrate",
                str(bundle),
                "--target-accuracy-loss",
                f"{loss:g}",
            ]
            done = subprocess.run([*command, *certified], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)  # noqa: S603  our own command
            threshold = re.search(r"^threshold +(\S+)$", done.stdout, re.MULTILINE)
            if threshold is not None and done.returncode == 0:
                found.append(Variant(name, float(threshold[1])))
            elif done.returncode == NO_THRESHOLD:
                found.append(Variant(name, missing=done.stdout.strip()))
            else:
                raise BenchFailed(f"gatekeeper calibrate: {done.stderr.strip() or done.stdout.strip()}")
    return found


def ask_all(
    directory: Path,
    cores: Cores,
    variants: Sequence[Variant],
    known: dict[str, str],
    sent: Sequence[str],
    odd: Sequence[str],
    bundle: Path,
    large_bundle: Path,
) -> None:
    """Fill in the variants' lists."""
    large = running(
        "large", ["service.cli", "serve-large"], port=free_port(), ready="/readyz",
        environment={"GATEKEEPER_LARGE_BUNDLE": str(large_bundle)}, directory=directory,
        core=cores.servers,
    )  # fmt: skip
    with (
        large as remote,
        running_edge(directory, cores, remote.url, bundle) as edge,
        httpx.Client(base_url=edge.url, trust_env=False, timeout=30.0) as client,
    ):
        for text in sent[:WARM_UP]:
            for one in variants:
                _ask(client, text, one)
        for number, text in enumerate(sent):
            first = number % len(variants)
            for one in [*variants[first:], *variants[:first]]:
                began = time.perf_counter()
                output = _ask(client, text, one)
                one.seconds.append(time.perf_counter() - began)
                one.right.append(output.label == known[text])
                one.large.append(output.answered_by == "large")
        for text in odd:
            for one in variants:
                one.odd_large.append(_ask(client, text, one).answered_by == "large")


def _ask(client: httpx.Client, text: str, one: Variant) -> Output:
    response = client.post("/v1/classify", json={"inputs": text, "parameters": one.parameters})
    if response.status_code != 200:
        raise BenchFailed(f"{one.name}: {response.status_code} {response.text[:200]}")
    output = read_answer(response.content, 1).outputs[0]
    if output.decision == "degraded":
        raise BenchFailed(f"{one.name}: degraded, {output.reason}: the large model was out of reach")
    return output


def summarise(variants: Sequence[Variant]) -> list[Row]:
    """A row for each that was asked; the first is the large model alone."""
    alone = float(np.mean(variants[0].right))
    rows = []
    for one in variants:
        if one.missing:
            continue
        milliseconds = 1e3 * np.array(one.seconds)
        mixed = [*one.large, *one.odd_large]
        rows.append(
            Row(
                name=one.name,
                threshold=one.threshold,
                accuracy=float(np.mean(one.right)),
                lost=alone - float(np.mean(one.right)),
                saved=1.0 - float(np.mean(one.large)),
                saved_mixed=1.0 - float(np.mean(mixed)) if one.odd_large else None,
                odd_deferred=float(np.mean(one.odd_large)) if one.odd_large else None,
                mean_ms=float(milliseconds.mean()),
                p50_ms=float(np.median(milliseconds)),
                p95_ms=float(np.quantile(milliseconds, 0.95)),
            )
        )
    return rows


def table(variants: Sequence[Variant], rows: Sequence[Row], sent: int, odd: int) -> str:
    """As Markdown, which a terminal shows as well."""
    titles = (
        *("threshold", "value", "accuracy", "large-model calls saved", "with out-of-scope mixed in"),
        *("of these deferred", "mean ms", "p50", "p95"),
    )
    lines = [
        f"{sent:,} in-scope sentences, {odd:,} out-of-scope queries, one connection, each variant in turn",
        "",
        f"| {' | '.join(titles)} |",
        "| --- " * len(titles) + "|",
    ]
    by_name = {row.name: row for row in rows}
    for one in variants:
        row = by_name.get(one.name)
        if row is None:
            lines.append(f"| {one.name} | none | | | | | | | |")
            continue
        value = "" if row.threshold is None else f"{row.threshold:g}"
        odd_cells = "- | -" if row.saved_mixed is None else f"{row.saved_mixed:.1%} | {row.odd_deferred:.1%}"
        lines.append(
            f"| {row.name} | {value} | {row.accuracy:.4f} | {row.saved:.1%} | {odd_cells} "
            f"| {row.mean_ms:.1f} | {row.p50_ms:.1f} | {row.p95_ms:.1f} |"
        )
    return "\n".join([*lines, *(f"\n{one.name}: {one.missing}" for one in variants if one.missing)])


def _absolute(text: str) -> Path:
    return Path(path_type(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="savings", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--sentences",
        choices=("ours", "clinc150"),
        default="ours",
        help="ours: those of this directory (default); clinc150: the test split, from GATEKEEPER_DATA_DIR",
    )
    parser.add_argument(
        "--data",
        type=path_type,
        default=os.environ.get(DATA_VARIABLE) or None,
        help=f"sentences of your own instead: a .csv, .jsonl or .parquet file; or {DATA_VARIABLE}",
    )
    parser.add_argument("--text-column", default="text", help="of --data; default: %(default)s")
    parser.add_argument("--label-column", default="label", help="of --data; default: %(default)s")
    parser.add_argument("--bundle", type=_absolute, default=BUNDLE, help="the small model's; default: the packaged one")
    parser.add_argument("--large-bundle", type=_absolute, default=LARGE_BUNDLE, help="the large model's")
    parser.add_argument("--every", type=between(1, 1000, int), default=1, metavar="N", help="only each Nth sentence")
    return parser


if __name__ == "__main__":
    sys.exit(main())
