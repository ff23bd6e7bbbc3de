"""`gatekeeper tune`: one bundle, or one for each alpha and seed. A seed's stage 1 is trained once for all alphas."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from models.bundle import MANIFEST, Bundle, check_output, load_bundle
from models.data.datasets import LabelledDataset
from models.errors import BundleError, InputError
from models.replacing import write_whole_text, writing
from models.training.losses import Loss
from models.training.stage import Machine, world
from models.training.tune import Recipe, Teachers, Tuning, open_tuning, tune
from models.training.work import locked, remove_work

Say = Callable[[str], None]


def run_sweep(
    data: LabelledDataset,
    recipe: Recipe,
    alphas: Sequence[float],
    seeds: Sequence[int],
    output: Path,
    machine: Machine,
    say: Say,
    *,
    teachers: Teachers,
    restart: bool = False,
) -> list[Bundle]:
    """A bundle at `output`, or, for several alphas or seeds, one at output/alpha-A-seed-S each.

    What was finished by an earlier run of the same command is kept. Empty in every process but the first.
    """
    several = len(alphas) > 1 or len(seeds) > 1
    if several and (output / MANIFEST).exists():
        raise InputError(f"{output} is a bundle: name a directory for the {len(alphas) * len(seeds)} of them")
    places = {
        (alpha, seed): output / f"alpha-{alpha:g}-seed-{seed}" if several else output
        for seed in seeds
        for alpha in alphas
    }
    for place in places.values():
        check_output(place)
    if restart:
        clear(output)
    work = output / "work" if several else output.parent / f"{output.name}.work"
    bundles: list[Bundle] = []
    with locked(work):
        for seed in seeds:
            tuning = open_tuning(data, replace(recipe, seed=seed), work, machine, say, teachers)
            for alpha in alphas:
                place, loss = places[alpha, seed], replace(recipe.loss, alpha=alpha)
                found = _finished(place, tuning, loss) if several else None
                if found is None:
                    found = tune(tuning, loss, place)
                else:
                    say(f"{place}: done before")
                bundles += [found] if found else []
    if several and bundles:
        _write_table(output, bundles, say)
    remove_work(work)
    return bundles


def _finished(place: Path, tuning: Tuning, loss: Loss) -> Bundle | None:
    """The bundle that an earlier run of the same sweep wrote there."""
    try:
        bundle = load_bundle(place)
    except BundleError:
        return None
    return bundle if bundle.manifest.training.get("key") == tuning.second_directory(loss).name else None


def _write_table(output: Path, bundles: Sequence[Bundle], say: Say) -> None:
    rows = [
        {
            "bundle": bundle.directory.name,
            "alpha": bundle.manifest.alpha,
            "seed": bundle.manifest.seed,
            "select_accuracy": bundle.manifest.training["second_select_accuracy"],
            "select_auroc": bundle.manifest.training["second_select_auroc"],
        }
        for bundle in bundles
    ]
    with writing(output / "sweep.json"):
        write_whole_text(output / "sweep.json", json.dumps(rows, indent=2) + "\n")
    if world()[0] == 0:
        say("bundle                    accuracy   AUROC    (select split)")
        for row in rows:
            auroc = "-" if row["select_auroc"] is None else f"{row['select_auroc']:.4f}"  # nothing wrong, or all
            say(f"{row['bundle']:25} {row['select_accuracy']:.4f}     {auroc}")


def clear(output: Path) -> None:
    """Remove what an unfinished run has left, of a bundle or of a sweep."""
    for work in (output / "work", output.parent / f"{output.name}.work"):
        remove_work(work)
