"""`gatekeeper tune`: one bundle, or one for each alpha and seed. A seed's stage 1 is trained once for all alphas."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from models.bundle import MANIFEST, Bundle, check_output, load_bundle
from models.errors import BundleError, InputError
from models.replacing import write_whole_text, writing
from models.training.stage import world
from models.training.work import locked, remove_work

Say = Callable[[str], None]
Loss_contra = TypeVar("Loss_contra", contravariant=True)
Loss = TypeVar("Loss")


class Opened(Protocol[Loss_contra]):
    """A model and its data, ready to be tuned: training/tune.py for labels, training/text/tune.py for text."""

    def second_directory(self, loss: Loss_contra) -> Path:
        """Where stage 2 with this loss lies, or will lie."""

    def tune(self, loss: Loss_contra, output: Path) -> Bundle | None:
        """Both stages, then a bundle at `output`; None in every process but the first."""


def run_sweep(
    opened: Callable[[int, Path], Opened[Loss]],
    losses: Mapping[float, Loss],
    seeds: Sequence[int],
    output: Path,
    say: Say,
    *,
    measures: Sequence[str],
    restart: bool = False,
) -> list[Bundle]:
    """A bundle at `output`, or, for several alphas or seeds, one at output/alpha-A-seed-S each.

    opened: (seed, work directory) to what is tuned. losses: by alpha. measures: of stage 2 on the select split, for the
    table of a sweep. What was finished by an earlier run of the same command is kept. Empty in every process but the
    first.
    """
    several = len(losses) > 1 or len(seeds) > 1
    if several and (output / MANIFEST).exists():
        raise InputError(f"{output} is a bundle: name a directory for the {len(losses) * len(seeds)} of them")
    places = {
        (alpha, seed): output / f"alpha-{alpha:g}-seed-{seed}" if several else output
        for seed in seeds
        for alpha in losses
    }
    for place in places.values():
        check_output(place)
    if restart:
        clear(output)
    work = output / "work" if several else output.parent / f"{output.name}.work"
    bundles: list[Bundle] = []
    with locked(work):
        for seed in seeds:
            tuning = opened(seed, work)
            for alpha, loss in losses.items():
                place = places[alpha, seed]
                found = _finished(place, tuning.second_directory(loss).name) if several else None
                if found is None:
                    found = tuning.tune(loss, place)
                else:
                    say(f"{place}: done before")
                bundles += [found] if found else []
    if several and bundles:
        _write_table(output, bundles, measures, say)
    remove_work(work)
    return bundles


def _finished(place: Path, key: str) -> Bundle | None:
    """The bundle that an earlier run of the same sweep wrote there."""
    try:
        bundle = load_bundle(place)
    except BundleError:
        return None
    return bundle if bundle.manifest.training.get("key") == key else None


def _write_table(output: Path, bundles: Sequence[Bundle], measures: Sequence[str], say: Say) -> None:
    rows = [
        {
            "bundle": bundle.directory.name,
            "alpha": bundle.manifest.alpha,
            "seed": bundle.manifest.seed,
            **{f"select_{name}": bundle.manifest.training.get(f"second_select_{name}") for name in measures},
        }
        for bundle in bundles
    ]
    with writing(output / "sweep.json"):
        write_whole_text(output / "sweep.json", json.dumps(rows, indent=2) + "\n")
    if world()[0] == 0:
        titles = {"accuracy": "accuracy", "auroc": "AUROC"}
        say("  ".join([f"{'bundle':24}", *(titles.get(name, name) for name in measures)]) + "    (select split)")
        for row in rows:
            cells = [_cell(row[f"select_{name}"], len(titles.get(name, name))) for name in measures]
            say("  ".join([f"{row['bundle']:24}", *cells]))


def _cell(value: object, width: int) -> str:
    return f"{value:<{width}.4f}" if isinstance(value, float) else f"{'-':{width}}"  # nothing wrong, or all


def clear(output: Path) -> None:
    """Remove what an unfinished run has left, of a bundle or of a sweep."""
    for work in (output / "work", output.parent / f"{output.name}.work"):
        remove_work(work)
