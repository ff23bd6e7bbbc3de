"""What a study found: a row for each method and each gate, with paired differences against the control.

A difference is between two models of one seed on the same items. Its 95 % interval comes from 200 resamples of the
seeds and of the items, drawn alike for both sides. With a handful of seeds such an interval is rough, and too narrow
rather than too wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import fit_posthoc_head, fit_quantile_gate
from models.bootstrap import ascending, rank
from models.calibrate import fit_temperature
from models.classifier import confidences
from models.metrics import gate_statistics

Floats = NDArray[np.float64]
CONTROL = "control"
PLAIN_GATE = "max_softmax"
GATES = (PLAIN_GATE, "margin", "negative_entropy", "energy", "temperature", "post-hoc head", "quantile")
# joint: the mean joint accuracy at 10, 20 and 30 % deferral, which is what an operator pays for.
MEASURES = ("accuracy", "auroc", "s_d", "joint_0.1", "joint_0.2", "joint_0.3", "joint")
RESAMPLES = 200
TINY = 1e-9


@dataclass(frozen=True)
class Answers:
    """One model of one seed beside the large model: logits (N, C), labels (N,), the large one's correctness (N,)."""

    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    large: Mapping[str, Floats]

    def right(self, split: str) -> Floats:
        """The small model's correctness on a split, (N,)."""
        right: Floats = (self.logits[split].argmax(axis=1) == self.labels[split]).astype(np.float64)
        return right

    def confidence(self, gate: str, split: str) -> Floats:
        """The gate's confidence on a split, (N,); what a gate has to learn it learns on `calibrate`."""
        logits, known = self.logits[split], self.logits["calibrate"]
        if gate == "post-hoc head":
            return fit_posthoc_head(known, self.right("calibrate"))(logits)
        if gate == "quantile":
            return fit_quantile_gate(known, self.right("calibrate"))(logits)
        if gate == "temperature":
            temperature = fit_temperature(known.astype(np.float64), self.labels["calibrate"])
            return confidences(logits, temperature)[PLAIN_GATE]
        plain: Floats = confidences(logits, 1.0)[gate]
        return plain


@dataclass(frozen=True)
class Number:
    """A mean over seeds, its 95 % interval, and the difference to what it is compared with, likewise.

    None where a number does not exist for the data, such as an AUROC of a model that is never wrong.
    """

    value: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True)
class Row:
    """One method under the plain gate, or one gate on one method. `on_select` decides, `on_test` is reported."""

    name: str
    on_select: dict[str, Number]
    on_test: dict[str, Number]
    verdict: str


@dataclass(frozen=True)
class Findings:
    """chosen: the alpha that select prefers to the control; None where there is none."""

    methods: tuple[Row, ...]
    gates: tuple[Row, ...]
    chosen: float | None
    gates_of: str
    large_accuracy: float
    seeds: int


def find(answers: Mapping[str, Sequence[Answers]], alphas: Sequence[float]) -> Findings:
    """answers: for each method one a seed, in the same order of seeds."""
    methods = _rows({name: [(one, PLAIN_GATE) for one in some] for name, some in answers.items()}, CONTROL)
    gains = {alpha: _gain(methods, f"gatekeeper {alpha:g}") for alpha in alphas}
    best = max(alphas, key=lambda alpha: gains[alpha], default=None)
    chosen = best if best is not None and gains[best] > 0 else None
    gates_of = CONTROL if chosen is None else f"gatekeeper {chosen:g}"
    gates = _rows({gate: [(one, gate) for one in answers[gates_of]] for gate in GATES}, PLAIN_GATE)
    large = answers[CONTROL][0].large["test"]
    return Findings(tuple(methods), tuple(gates), chosen, gates_of, float(large.mean()), len(answers[CONTROL]))


def _gain(rows: Sequence[Row], name: str) -> float:
    return _difference(next(row for row in rows if row.name == name).on_select["joint"])


def _difference(number: Number) -> float:
    """Of a number that always exists: accuracy, joint accuracy."""
    assert number.difference is not None
    return number.difference


def _rows(models: Mapping[str, Sequence[tuple[Answers, str]]], against: str) -> list[Row]:
    by_split = {split: _numbers(models, against, split) for split in ("select", "test")}
    return [
        Row(name, by_split["select"][name], by_split["test"][name], _verdict(name, by_split["select"][name], against))
        for name in models
    ]


def _verdict(name: str, numbers: dict[str, Number], against: str) -> str:
    """On `select`: refused where accuracy is lost and joint accuracy is not gained."""
    if name == against:
        return "the reference"
    lost, gained = -_difference(numbers["accuracy"]), _difference(numbers["joint"])
    if lost > TINY and gained <= TINY:
        return f"refused: accuracy -{lost:.4f}, joint accuracy {gained:+.4f}"
    if gained <= TINY:
        return f"no gain: joint accuracy {gained:+.4f}"
    return f"gains {gained:+.4f} joint accuracy" + (f" for {-lost:+.4f} accuracy" if lost > TINY else "")


def _numbers(
    models: Mapping[str, Sequence[tuple[Answers, str]]], against: str, split: str
) -> dict[str, dict[str, Number]]:
    points, samples = {}, {}
    for name, some in models.items():
        measured = [_measure(one, gate, split) for one, gate in some]
        points[name] = np.array([point for point, _ in measured])  # (seeds, measures)
        samples[name] = np.array([sample for _, sample in measured])  # (seeds, resamples, measures)
    seeds = len(points[against])
    drawn = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
    resample = np.arange(RESAMPLES)[:, None]
    found: dict[str, dict[str, Number]] = {}
    for name in models:
        means = samples[name][drawn, resample].mean(axis=1)  # (resamples, measures)
        differences = means - samples[against][drawn, resample].mean(axis=1)
        value, difference = points[name].mean(axis=0), (points[name] - points[against]).mean(axis=0)
        columns = zip(value, *_interval(means), difference, *_interval(differences), strict=True)
        found[name] = {measure: Number(*map(_known, column)) for measure, column in zip(MEASURES, columns, strict=True)}
    return found


def _interval(samples: Floats) -> Floats:
    """(2, measures): the 95 % percentile interval; NaN for a number that some resample does not have."""
    interval: Floats = np.quantile(samples, [0.025, 0.975], axis=0)
    return interval


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measure(one: Answers, gate: str, split: str) -> tuple[Floats, Floats]:
    """(measures,) of all items and (resamples, measures); resample i draws the same items for every model."""
    confidence, right, large = one.confidence(gate, split), one.right(split), one.large[split]
    ranking, order = rank(confidence, right, large), ascending(confidence, right, large)
    count = len(confidence)
    draws = []
    for child in np.random.SeedSequence(0).spawn(RESAMPLES):
        weight = np.bincount(np.random.default_rng(child).integers(0, count, count), minlength=count)
        draws.append(_values(gate_statistics(ranking.groups(weight[order]))))
    return _values(gate_statistics(ranking.groups())), np.array(draws)


def _values(numbers: dict[str, float]) -> Floats:
    joint = [numbers[f"joint_accuracy_at_{ratio}"] for ratio in ("0.1", "0.2", "0.3")]
    return np.array([numbers["a_S"], numbers["auroc"], numbers["s_d"], *joint, float(np.mean(joint))])


def as_table(findings: Findings) -> str:
    """Both tables in Markdown: `test` in the columns, the verdict from `select`."""
    chosen = "none: the control stays" if findings.chosen is None else f"{findings.chosen:g}"
    about = (
        f"Test split, {findings.seeds} seeds, accuracy of the large model {findings.large_accuracy:.4f}. joint: the "
        "mean of the joint accuracy at 10, 20 and 30 % deferral; differences are paired, with 95 % intervals."
    )
    methods = _markdown("method", findings.methods, "the control")
    gates = _markdown("gate", findings.gates, PLAIN_GATE)
    choice = f"Chosen on `select`: alpha {chosen}. Gates on {findings.gates_of}:"
    return "\n".join([about, "", *methods, "", choice, "", *gates])


def _markdown(what: str, rows: Sequence[Row], against: str) -> list[str]:
    lines = [
        f"| {what} | a_S | AUROC | s_d | joint | joint - that of {against} | on select |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        joint = row.on_test["joint"]
        values = [row.on_test[name].value for name in ("accuracy", "auroc", "s_d", "joint")]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        difference = (
            f"{joint.difference:+.4f} [{joint.difference_low:+.4f}, {joint.difference_high:+.4f}]"
            if row.verdict != "the reference"
            else ""
        )
        lines.append(f"| {row.name} | {' | '.join(cells)} | {difference} | {row.verdict} |")
    return lines
