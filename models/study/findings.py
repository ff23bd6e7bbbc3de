"""What a study found: a row for each method, each gate and each merge, with paired differences against the control.

A difference is between two models of one seed on the same items. Its 95 % interval comes from 200 resamples of the
seeds and of the items, drawn alike for both sides. With a handful of seeds such an interval is rough, and too narrow
rather than too wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from models.calibration.calibrate import fit_temperature
from models.inference.confidence import confidences
from models.numbers.bootstrap import Groups, ascending, rank
from models.numbers.density import overlapping_share
from models.numbers.metrics import deferral_curve, gate_statistics
from models.training.gates import fit_posthoc_head, fit_quantile_gate

Floats = NDArray[np.float64]
UNTUNED, CONTROL = "untuned", "control"
PLAIN_GATE = "max_softmax"
GATES = (PLAIN_GATE, "margin", "negative_entropy", "energy", "temperature", "post-hoc head", "quantile")
# joint: the mean joint accuracy at 10, 20 and 30 % deferral, which is what an operator pays for.
PAID_FOR = (0.1, 0.2, 0.3)
RATIOS = tuple(step / 20 for step in range(21))  # where the deferral curves are kept
MEASURES = ("accuracy", "large", "auroc", "s_d", "s_o", "joint", *(f"joint_{ratio:g}" for ratio in RATIOS))
MERGE_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RESAMPLES = 200
TINY = 1e-9


@dataclass(frozen=True)
class Answers:
    """One model of one seed beside the large model: logits (N, C), labels (N,), the large one's correctness (N,).

    large_logits: the large model's own (N, C), in the order of the small one's; None where it gives none.
    """

    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    large: Mapping[str, Floats]
    large_logits: Mapping[str, NDArray[np.float32]] | None = None
    measured: dict[tuple[str, str], tuple[Floats, Floats]] = field(default_factory=dict, init=False, compare=False)

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

    def merged(self, weight: float) -> "Answers":
        """The same where a deferred item gets argmax(log p_L + weight log p_S): both know something about it.

        Each model at the temperature that fits it on `select`.
        """
        assert self.large_logits is not None
        known = self.labels["select"]
        parts = {}
        for name, logits in (("small", self.logits), ("large", self.large_logits)):
            temperature = fit_temperature(logits["select"].astype(np.float64), known)
            parts[name] = {split: log_softmax(rows / temperature, axis=1) for split, rows in logits.items()}
        right = {
            split: ((parts["large"][split] + weight * parts["small"][split]).argmax(axis=1) == labels).astype(
                np.float64
            )
            for split, labels in self.labels.items()
        }
        return replace(self, large=right)

    def joint(self, split: str) -> float:
        """The mean joint accuracy at PAID_FOR under the plain gate."""
        curve = deferral_curve(self.confidence(PLAIN_GATE, split), self.right(split), self.large[split])
        return float(np.interp(PAID_FOR, np.linspace(0.0, 1.0, len(curve)), curve).mean())


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
    """chosen: the alpha that select prefers to the control; None where there is none.

    summary: untuned, the control, the best of the alphas, of the other losses and of the other gates, as `select` ranks
    them, and answers of both models where deferred; differences are to the control.
    """

    methods: tuple[Row, ...]
    gates: tuple[Row, ...]
    summary: tuple[Row, ...]
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
    summary = _summary(answers, methods, gates, best, gates_of)
    return Findings(
        tuple(methods), tuple(gates), tuple(summary), chosen, gates_of, float(large.mean()), len(answers[CONTROL])
    )


def _summary(
    answers: Mapping[str, Sequence[Answers]],
    methods: Sequence[Row],
    gates: Sequence[Row],
    alpha: float | None,
    gates_of: str,
) -> list[Row]:
    def best(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
        return [max(names, key=lambda name: _gain(rows, name))] if names else []

    others = [name for name in answers if name not in (UNTUNED, CONTROL) and not name.startswith("gatekeeper ")]
    plain = [
        *(name for name in (UNTUNED, CONTROL) if name in answers),
        *([] if alpha is None else [f"gatekeeper {alpha:g}"]),
        *best(others, methods),
    ]
    shown = {name: [(one, PLAIN_GATE) for one in answers[name]] for name in plain}
    for gate in best([row.name for row in gates if row.name != PLAIN_GATE], gates):
        shown[f"{gates_of}, {gate}"] = [(one, gate) for one in answers[gates_of]]
    for name in dict.fromkeys([CONTROL, gates_of]):
        if all(one.large_logits is not None for one in answers[name]):
            merges = {weight: [one.merged(weight) for one in answers[name]] for weight in MERGE_WEIGHTS}
            weight = max(merges, key=lambda weight: sum(one.joint("select") for one in merges[weight]))
            shown[f"{name}, merged {weight:g}"] = [(one, PLAIN_GATE) for one in merges[weight]]
    return _rows(shown, CONTROL)


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
    """Of each model, mean over its seeds. Intervals on `test` alone: on `select` the means decide."""
    points = {
        name: np.array([_measure(one, gate, split)[0] for one, gate in some]) for name, some in models.items()
    }  # (seeds, measures)
    seeds = len(points[against])
    drawn = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))

    def resampled(name: str) -> Floats:
        if split != "test":
            return np.full((1, len(MEASURES)), np.nan)
        samples = np.array([_measure(one, gate, split)[1] for one, gate in models[name]])
        means: Floats = samples[drawn, np.arange(RESAMPLES)[:, None]].mean(axis=1)
        return means  # (resamples, measures)

    reference = resampled(against)
    found: dict[str, dict[str, Number]] = {}
    for name in models:
        means = resampled(name)
        value, difference = points[name].mean(axis=0), (points[name] - points[against]).mean(axis=0)
        columns = zip(value, *_interval(means), difference, *_interval(means - reference), strict=True)
        found[name] = {measure: Number(*map(_known, column)) for measure, column in zip(MEASURES, columns, strict=True)}
    return found


def _interval(samples: Floats) -> Floats:
    """(2, measures): the 95 % percentile interval; NaN for a number that some resample does not have."""
    interval: Floats = np.quantile(samples, [0.025, 0.975], axis=0)
    return interval


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measure(one: Answers, gate: str, split: str) -> tuple[Floats, Floats]:
    """(measures,) of all items and, on `test`, (resamples, measures); resample i draws the same items for every model.

    A model stands in several tables and is measured once.
    """
    known = one.measured
    if (gate, split) not in known:
        confidence, right, large = one.confidence(gate, split), one.right(split), one.large[split]
        ranking, order = rank(confidence, right, large), ascending(confidence, right, large)
        count = len(confidence)
        draws = []
        for child in np.random.SeedSequence(0).spawn(RESAMPLES if split == "test" else 0):
            weight = np.bincount(np.random.default_rng(child).integers(0, count, count), minlength=count)
            draws.append(_values(ranking.groups(weight[order])))
        known[gate, split] = _values(ranking.groups()), np.array(draws)
    return known[gate, split]


def _values(groups: Groups) -> Floats:
    assert groups.large is not None
    numbers = gate_statistics(groups)
    deferred = np.append(0.0, np.cumsum(groups.rows)) / groups.total
    gained = np.append(0.0, np.cumsum(groups.large - groups.small)) / groups.total
    curve = numbers["a_S"] + np.interp(RATIOS, deferred, gained)
    joint = [numbers[f"joint_accuracy_at_{ratio:g}"] for ratio in PAID_FOR]
    large = groups.large.sum() / groups.total
    alone = [numbers["a_S"], large, numbers["auroc"], numbers["s_d"], overlapping_share(groups)]
    return np.array([*alone, float(np.mean(joint)), *curve])


def as_table(findings: Findings) -> str:
    """The tables in Markdown: `test` in the columns, the verdict from `select`."""
    chosen = "none: the control stays" if findings.chosen is None else f"{findings.chosen:g}"
    about = (
        f"Test split, {findings.seeds} seeds, accuracy of the large model a_L {findings.large_accuracy:.4f}"
        f"{_large_interval(findings)}. joint: the mean of the joint accuracy at 10, 20 and 30 % deferral; differences "
        "are paired, with 95 % intervals over seeds and items."
    )
    methods = _markdown("method", findings.methods, "the control")
    gates = _markdown("gate", findings.gates, PLAIN_GATE)
    choice = f"Chosen on `select`: alpha {chosen}. Gates on {findings.gates_of}:"
    merged = (
        "The best of each kind, as `select` ranks them. merged w: a deferred item gets argmax(log p_L + w log p_S), "
        "and s_d is against that."
    )
    return "\n".join([about, "", *methods, "", choice, "", *gates, "", merged, "", *_summary_table(findings.summary)])


def _large_interval(findings: Findings) -> str:
    number = next(row.on_test["large"] for row in findings.methods if row.name == CONTROL)
    return f" [{number.low:.4f}, {number.high:.4f}]"


def _summary_table(rows: Sequence[Row]) -> list[str]:
    columns = {
        "a_S": "accuracy",
        "s_d": "s_d",
        "s_o": "s_o",
        "AUROC": "auroc",
        "joint at 10 %": "joint_0.1",
        "at 20 %": "joint_0.2",
        "at 30 %": "joint_0.3",
    }
    lines = [f"| | {' | '.join(columns)} | joint - that of the control |", "| --- " * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [_with_interval(row.on_test[measure]) for measure in columns.values()]
        joint = row.on_test["joint"]
        same = "" if row.name == CONTROL else _difference_with_interval(joint)
        lines.append(f"| {row.name} | {' | '.join(cells)} | {same} |")
    return lines


def _with_interval(number: Number) -> str:
    """No interval where some resample does not have the number, such as s_d where the small model is the better one."""
    if number.value is None:
        return "-"
    interval = "" if number.low is None or number.high is None else f" [{number.low:.4f}, {number.high:.4f}]"
    return f"{number.value:.4f}{interval}"


def _difference_with_interval(number: Number) -> str:
    return f"{number.difference:+.4f} [{number.difference_low:+.4f}, {number.difference_high:+.4f}]"


def _markdown(what: str, rows: Sequence[Row], against: str) -> list[str]:
    lines = [
        f"| {what} | a_S | AUROC | s_d | joint | joint - that of {against} | on select |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        joint = row.on_test["joint"]
        values = [row.on_test[name].value for name in ("accuracy", "auroc", "s_d", "joint")]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        difference = "" if row.verdict == "the reference" else _difference_with_interval(joint)
        lines.append(f"| {row.name} | {' | '.join(cells)} | {difference} | {row.verdict} |")
    return lines
