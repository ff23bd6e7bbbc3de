"""What a study found: a row for each method, each gate and each merge, with paired differences against the control.

A difference is between two models of one seed on the same items. Its 95 % interval comes from 200 resamples of the
seeds and of the items, drawn alike for both sides. With a handful of seeds such an interval is rough, and too narrow
rather than too wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.numbers.bootstrap import Groups, ascending, rank
from models.numbers.density import overlapping_share
from models.numbers.metrics import gate_statistics, pearson
from models.numbers.predictions import is_graded
from models.study.compared import PAID_FOR, Compared, Floats

UNTUNED, CONTROL = "untuned", "control"
RATIOS = tuple(step / 20 for step in range(21))  # where the deferral curves are kept
MEASURES = (
    "accuracy",
    "large",
    "auroc",
    "s_d",
    "s_d_perfect",
    "s_o",
    "pearson",
    "joint",
    *(f"joint_{ratio:g}" for ratio in RATIOS),
)
MERGE_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RESAMPLES = 200
TINY = 1e-9


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
    writes_text: bool = False
    graded: bool = False


def find(answers: Mapping[str, Sequence[Compared]], alphas: Sequence[float]) -> Findings:
    """answers: for each method one a seed, in the same order of seeds."""
    kind = answers[CONTROL][0]
    plain = kind.gates[0]
    methods = _rows({name: [(one, plain) for one in some] for name, some in answers.items()}, CONTROL)
    gains = {alpha: _gain(methods, f"gatekeeper {alpha:g}") for alpha in alphas}
    best = max(alphas, key=lambda alpha: gains[alpha], default=None)
    chosen = best if best is not None and gains[best] > 0 else None
    gates_of = CONTROL if chosen is None else f"gatekeeper {chosen:g}"
    gates = _rows({gate: [(one, gate) for one in answers[gates_of]] for gate in kind.gates}, plain)
    return Findings(
        tuple(methods),
        tuple(gates),
        tuple(_summary(answers, methods, gates, best, gates_of)),
        chosen,
        gates_of,
        float(kind.large["test"].mean()),
        len(answers[CONTROL]),
        writes_text=kind.writes_text,
        graded=any(is_graded(one.right("test")) for some in answers.values() for one in some),
    )


def _summary(
    answers: Mapping[str, Sequence[Compared]],
    methods: Sequence[Row],
    gates: Sequence[Row],
    alpha: float | None,
    gates_of: str,
) -> list[Row]:
    def best(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
        return [max(names, key=lambda name: _gain(rows, name))] if names else []

    others = [name for name in answers if name not in (UNTUNED, CONTROL) and not name.startswith("gatekeeper ")]
    plain = gates[0].name
    shown_methods = [
        *(name for name in (UNTUNED, CONTROL) if name in answers),
        *([] if alpha is None else [f"gatekeeper {alpha:g}"]),
        *best(others, methods),
    ]
    shown = {name: [(one, plain) for one in answers[name]] for name in shown_methods}
    for gate in best([row.name for row in gates if row.name != plain], gates):
        shown[f"{gates_of}, {gate}"] = [(one, gate) for one in answers[gates_of]]
    for name in dict.fromkeys([CONTROL, gates_of]):
        if all(one.merges for one in answers[name]):
            merges = {weight: [one.merged(weight) for one in answers[name]] for weight in MERGE_WEIGHTS}
            weight = max(merges, key=lambda weight: sum(one.joint("select") for one in merges[weight]))
            shown[f"{name}, merged {weight:g}"] = [(one, plain) for one in merges[weight]]
    return _rows(shown, CONTROL)


def _gain(rows: Sequence[Row], name: str) -> float:
    return _difference(next(row for row in rows if row.name == name).on_select["joint"])


def _difference(number: Number) -> float:
    """Of a number that always exists: accuracy, joint accuracy."""
    assert number.difference is not None
    return number.difference


def _rows(models: Mapping[str, Sequence[tuple[Compared, str]]], against: str) -> list[Row]:
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
    models: Mapping[str, Sequence[tuple[Compared, str]]], against: str, split: str
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


def _measure(one: Compared, gate: str, split: str) -> tuple[Floats, Floats]:
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
    of_gate = (numbers["auroc"], numbers["s_d"], numbers["s_d_perfect"], overlapping_share(groups), pearson(groups))
    return np.array([numbers["a_S"], large, *of_gate, float(np.mean(joint)), *curve])
