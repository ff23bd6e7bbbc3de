"""Compare Gatekeeper with what it must beat: the untuned model, an equal-length control, other losses, other gates.

    gatekeeper compare --data clinc150 --data-dir DIR --large models/bundles/clinc150-large --output runs/study

Trains every method from the same first stage, once a seed; what it needs of a model is its logits on three splits.
These lie in OUTPUT/logits, so a killed run goes on where it was; stage 1's weights stay in OUTPUT/work, so that another
alpha or loss costs its own stage 2 alone. Gates are fitted on `calibrate`, choices are made on
`select`, and `test` is only reported (findings.py).
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data.datasets import LabelledDataset
from models.errors import InputError
from models.inference.answers import answers
from models.inference.classifier import load_classifier
from models.labels import check_same_labels, places
from models.progress import Waiting
from models.replacing import write_whole, writing
from models.study.findings import CONTROL, UNTUNED, Findings, find
from models.study.label_answers import Answers
from models.study.results import write_findings
from models.training.losses import Loss
from models.training.model import Backbone
from models.training.stage import Machine, world
from models.training.tune import Recipe, Teachers, Tuning, open_tuning
from models.training.work import locked

Say = Callable[[str], None]
Arrays = dict[str, NDArray[Any]]
SPLITS = ("select", "calibrate", "test")
OTHERS = {
    "confidence-penalty": Loss("confidence-penalty"),
    "label-smoothing": Loss("label-smoothing"),
    "focal": Loss("focal"),
    "outlier-exposure": Loss("outlier-exposure"),
    "static-partition": Loss("static-partition"),
    "soft-gatekeeper": Loss("soft-gatekeeper"),
    "aligned-gatekeeper": Loss("gatekeeper", alignment=0.5),
}


@dataclass(frozen=True)
class Study:
    """What is compared: a small model under every method and seed, beside one large model."""

    data: LabelledDataset
    large: Bundle
    recipe: Recipe
    alphas: Sequence[float]
    seeds: Sequence[int]
    losses: str = "all"
    distill_from: Bundle | None = None
    methods: dict[str, Loss | None] = field(init=False)

    def __post_init__(self) -> None:
        names = {"all": tuple(OTHERS), "none": ()}.get(self.losses, tuple(self.losses.split(",")))
        unknown = [name for name in names if name not in OTHERS]
        if unknown:
            raise InputError(f"--losses takes {', '.join(OTHERS)}, all or none; not {unknown[0]!r}")
        methods: dict[str, Loss | None] = {UNTUNED: None, CONTROL: Loss("cross-entropy")}
        methods |= {f"gatekeeper {alpha:g}": Loss("gatekeeper", alpha) for alpha in self.alphas}
        methods |= {name: OTHERS[name] for name in names}
        object.__setattr__(self, "methods", methods)


def run_study(study: Study, output: Path, machine: Machine, say: Say) -> Findings:
    """Train what is missing, then find. Raises InputError; a kill loses the stage that was running."""
    if world()[1] > 1:
        raise InputError("compare runs in one process: its trainings are small and many")
    check_same_labels(study.large.manifest.name, study.large.manifest.labels, study.data.name, study.data.labels)
    with locked(output / "work"):
        findings = _run(study, output, machine, say)
    write_findings(output, findings)
    return findings


def _run(study: Study, output: Path, machine: Machine, say: Say) -> Findings:
    clock = _Clock(study, say)
    large = _large(study, output, say)
    answers_of: dict[str, list[Answers]] = {name: [] for name in study.methods}
    for seed in study.seeds:
        work = output / "work" / f"seed-{seed}"
        teachers = Teachers(study.distill_from, study.large)
        tuning = open_tuning(study.data, replace(study.recipe, seed=seed), work, machine, say, teachers)
        clock.begin(tuning)
        for name, loss in study.methods.items():
            place = tuning.first_directory if loss is None else tuning.second_directory(loss)
            kept = output / "logits" / f"{place.name}.npz"
            trained = not kept.is_file()
            arrays = _cached(kept, partial(_train, tuning, loss))
            answers_of[name].append(_answers(study.data, arrays, large))
            if loss is not None:
                shutil.rmtree(place, ignore_errors=True)  # its logits are all that is wanted
            clock.tick(name, seed, loss, trained=trained)
    with Waiting("comparing the methods, with their intervals"):
        return find(answers_of, tuple(study.alphas))


def _train(tuning: Tuning, loss: Loss | None) -> Arrays:
    return _logits(tuning.train(loss), tuning.data)


def _logits(backbone: Backbone, data: LabelledDataset) -> Arrays:
    with Waiting("predicting the three splits"):
        found = {name: backbone.logits(backbone.prepare(getattr(data, name).inputs)).numpy() for name in SPLITS}
    for name, logits in found.items():
        if not np.isfinite(logits).all():
            raise InputError(f"the tuned model gives NaN or infinite numbers on {name}: lower the learning rate")
    return found


def _large(study: Study, output: Path, say: Say) -> Arrays:
    """The large model's logits on each split, (N, C), in the order of the data's labels."""

    def ask() -> Arrays:
        say(f"asking {study.large.manifest.name} about the three splits")
        classifier = load_classifier(study.large)
        columns = places(study.data.labels, classifier.labels)
        found = {
            name: answers(classifier, study.large.manifest.name, getattr(study.data, name).inputs, name).logits
            for name in SPLITS
        }
        return {name: logits[:, columns] for name, logits in found.items()}

    key = f"large-logits-{study.large.gate_digest[:12]}-{study.data.content_hash[:12]}"
    return _cached(output / "logits" / f"{key}.npz", ask)


def _cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Arrays by name from a file that is there whole or not at all."""
    if not path.is_file():
        arrays = make()

        def write(scratch: Path) -> None:
            with scratch.open("wb") as stream:  # numpy adds its own suffix to a name that lacks it
                np.savez(stream, allow_pickle=False, **arrays)

        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _answers(data: LabelledDataset, arrays: Arrays, large: Arrays) -> Answers:
    labels = {name: np.array(getattr(data, name).labels) for name in SPLITS}
    right = {name: (large[name].argmax(axis=1) == labels[name]).astype(np.float64) for name in SPLITS}
    return Answers(arrays, labels, right, large)


class _Clock:
    """How many of the trainings are done, and how long the rest will take, counted in epochs."""

    def __init__(self, study: Study, say: Say) -> None:
        self._study, self._say = study, say
        self._began = self._last = time.monotonic()
        self._done = 0
        self._seconds = 0.0
        self._epochs = 0
        self._first_epochs = self._second_epochs = 0

    def begin(self, tuning: Tuning) -> None:
        self._first_epochs, self._second_epochs = (schedule.epochs for schedule in tuning.schedules)
        self._last = time.monotonic()

    def tick(self, name: str, seed: int, loss: Loss | None, *, trained: bool) -> None:
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._done += 1
        if trained:
            self._seconds += took
            self._epochs += self._first_epochs if loss is None else self._second_epochs
        total = len(self._study.seeds) * len(self._study.methods)
        seeds_left = len(self._study.seeds) - 1 - list(self._study.seeds).index(seed)
        methods_left = total - self._done - seeds_left * len(self._study.methods)
        epochs = (methods_left + seeds_left * (len(self._study.methods) - 1)) * self._second_epochs
        epochs += seeds_left * self._first_epochs
        left = ""
        if self._epochs:
            left_s = epochs * self._seconds / self._epochs
            left = f"; about {int(left_s // 60)}:{int(left_s % 60):02} left"
        self._say(f"{self._done} of {total} done ({name}, seed {seed}){left}")
