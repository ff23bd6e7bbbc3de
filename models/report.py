"""report.html and its pictures: what a cascade does on its test items, for a person to read.

One file without a reference to anything outside it, so that it can be mailed and kept. Everything from outside (texts,
labels, facts) is escaped by jinja2; the page's one script is named to the browser by its hash.
"""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image as Pillow

from models import plots
from models.errors import InputError
from models.metrics import Curves, curves
from models.plots import Picture, one_line, percent
from models.predictions import Predictions

TEMPLATE = Path(__file__).with_name("report.html.j2")
MISTAKES, CONFUSIONS, MOST_ROWS, STEPS, THUMBNAIL = 15, 12, 1000, 200, 64

MEANINGS = {
    "a_S": "accuracy of the small model alone",
    "a_L": "accuracy of the large model alone",
    "h": "share where the small model is right and the large one wrong: what deferring can lose; the paper assumes 0",
    "q": "share where the small model is wrong and the large one right: all that deferring can gain",
    "s_o": "overlap of the confidence densities of right and wrong answers; 0 is perfect separation (equation 9)",
    "pearson": "correlation of confidence and correctness; stands for s_o where correctness is graded",
    "s_d": "share of an ideal gate's gain over random deferral (equations 10, 11); can exceed 1 where h is not 0",
    "s_d_oracle": "the same share of the oracle's gain, which knows both models' mistakes; at most 1",
    "auroc": "chance that a right answer is more confident than a wrong one; 0.5 is a coin (equation 12)",
    "aurc": "risk averaged over all coverages; lower is better",
    "ece": "expected calibration error: mean distance of confidence and accuracy; lower is better",
    "deferral_ratio": "share of the items below the threshold, which go to the large model (equation 6)",
    "joint_accuracy": "accuracy of the cascade at the threshold",
    "deferral_ratio_for_95_percent_gain": "smallest deferral ratio that gains 95 % of a_L - a_S",
    "items_per_second": "of the small model, in batches of 32 on one thread; depends on the machine",
    "out_of_scope": "share of the out-of-scope queries below the threshold; more is better",
}
CAPTIONS = {
    "confidence": (
        "Each outline adds up to 100 % of its group; the less the two overlap, the better the gate. What lies beyond "
        "the axis is in its outermost columns."
    ),
    "deferral": (
        "The least confident items are deferred first. Ideal: only wrong answers are deferred and the large model errs "
        "evenly (equation 11). Oracle: knows which model is right on each item."
    ),
    "roc": "Every threshold is a point; the curve of a useless confidence is the dashed diagonal.",
    "reliability": (
        "On the dashed line a confidence of 0.8 is right in 80 % of the cases. Bars are 95 % intervals; the columns "
        "below count the items, their heights drawn as square roots."
    ),
    "classes": "The classes with the highest deferral ratios at the threshold, and how often their answers are right.",
    "risk_coverage": "From right to left the threshold rises: fewer answers are accepted, and fewer of them are wrong.",
}

GRADED_CAPTIONS = {
    "confidence": "Answers with a correctness of 0.5 or more, and below. " + CAPTIONS["confidence"],
    "risk_coverage": "Risk is 1 minus the mean correctness of what is accepted. " + CAPTIONS["risk_coverage"],
}


def write_report(directory: Path, predictions: Predictions, numbers: dict[str, Any], about: dict[str, str]) -> None:
    """Write report.html and plots/*.png into the directory, which is made if need be.

    numbers: as `measure` returns them; about: facts for the head, in order. The same input gives the same bytes.
    Raises InputError when the files cannot be written.
    """
    pictures = _pictures(predictions, curves(predictions), numbers)
    page = _page(predictions, numbers, about, pictures)
    files = {f"plots/{picture.name}.png": picture.png for picture in pictures.values()}
    files["report.html"] = page.encode("utf-8", "replace")  # a lone surrogate, from a damaged table, has no bytes
    _write(directory, files)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """All bytes are there before the first file is touched; a file is replaced whole or not at all."""
    partial = directory / "plots" / ".partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for name in plots.NAMES:  # a picture of an earlier run that these data do not have
            if f"plots/{name}.png" not in files:
                (directory / "plots" / f"{name}.png").unlink(missing_ok=True)
        try:
            for name, content in files.items():
                partial.write_bytes(content)
                partial.replace(directory / name)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the report cannot be written to {directory}: {error.strerror or error}") from error


# ---- what is drawn


@dataclass(frozen=True)
class _Ladder:
    """What each possible threshold does, from the items in ascending order of confidence."""

    ordered: NDArray[np.float64]  # (N,)
    small: NDArray[np.float64]  # (N + 1,) correct answers of the small model among the k lowest
    large: NDArray[np.float64] | None

    @classmethod
    def of(cls, predictions: Predictions) -> "_Ladder":
        order = np.argsort(predictions.confidence)
        large = predictions.large_correct
        return cls(
            predictions.confidence[order],
            np.append(0.0, np.cumsum(predictions.small_correct[order])),
            None if large is None else np.append(0.0, np.cumsum(large[order])),
        )

    def step(self, threshold: float) -> tuple[str, float, float | None, float | None]:
        """The threshold in digits, deferral ratio, joint accuracy and accuracy of the accepted; None: unknown."""
        rows, deferred = len(self.ordered), int(np.searchsorted(self.ordered, threshold))
        accepted = float(self.small[-1] - self.small[deferred])
        joint = None if self.large is None else float(self.large[deferred] + accepted) / rows
        return repr(threshold), deferred / rows, joint, accepted / (rows - deferred) if deferred < rows else None

    def threshold(self, ratio: float) -> float:
        """The threshold that defers this share of the items, or the nearest that equal confidences allow.

        Half-way between the last deferred and the first accepted confidence, in as few digits as part the same items.
        """
        wanted = min(round(ratio * len(self.ordered)), len(self.ordered) - 1)
        ends = [int(np.searchsorted(self.ordered, self.ordered[wanted], side)) for side in ("left", "right")]
        first = min((end for end in ends if end < len(self.ordered)), key=lambda end: abs(end - wanted))
        above = float(self.ordered[first])
        below = float(self.ordered[first - 1]) if first else 0.0 if above > 0 else 2 * above - 1.0
        shorter = (float(f"{(below + above) / 2:.{digits}g}") for digits in range(1, 17))
        return next((value for value in shorter if below < value <= above), above)


def _pictures(predictions: Predictions, drawn: Curves, numbers: dict[str, Any]) -> dict[str, Picture]:
    """The pictures that exist for these data, by name."""
    threshold = numbers["threshold"]
    right = predictions.small_correct >= 0.5
    names = ("0.5 or more", "below 0.5") if predictions.graded else ("right", "wrong")
    ratio, accepted = numbers["deferral_ratio"]["value"], predictions.confidence >= threshold
    pictures = [plots.confidence_picture(predictions.confidence, right, threshold, names)]
    if drawn.deferral is not None:
        picked = (ratio, numbers["joint_accuracy"]["value"])
        pictures.append(plots.deferral_picture(drawn.deferral, picked, threshold))
    if drawn.roc is not None:
        picked = (float(accepted[~right].mean()), float(accepted[right].mean()))
        pictures.append(plots.roc_picture(drawn.roc, _interval(numbers["auroc"]), picked))
    if drawn.reliability is not None:
        pictures.append(plots.reliability_picture(drawn.reliability))
    at = (1.0 - ratio, float(1.0 - predictions.small_correct[accepted].mean())) if accepted.any() else None
    pictures.append(plots.risk_picture(drawn.coverage, drawn.risk, _number(numbers["aurc"]["value"]), at))
    table = _by_class(predictions, threshold)
    if table is not None:
        first = table.order[: plots.MOST_CLASSES]
        joint = None if table.joint is None else table.joint[first]
        shown = [table.names[index] for index in first]
        pictures.append(
            plots.classes_picture(shown, table.deferred[first], table.small[first], joint, len(table.order))
        )
    return {picture.name: picture for picture in pictures}


@dataclass(frozen=True)
class _ByClass:
    """Shares of each class (C,); `order` are the classes that occur, the most deferred first."""

    names: tuple[str, ...]
    items: NDArray[np.int64]
    deferred: NDArray[np.float64]
    small: NDArray[np.float64]
    joint: NDArray[np.float64] | None
    order: NDArray[np.int64]


def _by_class(predictions: Predictions, threshold: float) -> _ByClass | None:
    if predictions.classes is None or predictions.label is None:
        return None
    label = predictions.label
    items: NDArray[np.int64] = np.bincount(label, minlength=len(predictions.classes))

    def share(values: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.bincount(label, values, len(items)) / np.maximum(items, 1)
        return means

    below = predictions.confidence < threshold
    joint = None
    if predictions.large_correct is not None:
        joint = share(np.where(below, predictions.large_correct, predictions.small_correct))
    deferred = share(below.astype(np.float64))
    order = np.argsort(-deferred, kind="stable")
    return _ByClass(
        predictions.classes, items, deferred, share(predictions.small_correct), joint, order[items[order] > 0]
    )


# ---- what is said


def _number(value: float | None) -> str:
    return "does not exist" if value is None else f"{value:.4f}"


def _interval(entry: dict[str, float | None], digits: int = 3) -> str:
    """0.931 [0.918, 0.942]"""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None:
        return "does not exist"
    return f"{value:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f},\u00a0{high:.{digits}f}]")


def _share(entry: dict[str, float | None]) -> str:
    """95.5 % [94.9, 96.1]"""
    value, low, high = entry["value"], entry["low"], entry["high"]
    assert value is not None
    return percent(value) + ("" if low is None or high is None else f" [{100 * low:.1f},\u00a0{100 * high:.1f}]")


def summarise(numbers: dict[str, Any], accepted: float | None) -> str:
    """The numbers in a few plain sentences. accepted: the small model's accuracy on what it answers itself."""
    ratio, small = numbers["deferral_ratio"]["value"], numbers["a_S"]
    scores, of = ("has a mean correctness of", "on") if numbers["graded"] else ("is right in", "of")
    first = f"At the threshold {numbers['threshold']:g} the small model answers {percent(1 - ratio)} of the "
    first += f"{numbers['rows']:,} test items itself"
    sentences = [first if accepted is None else f"{first} and {scores} {percent(accepted)} {of} those"]
    if "a_L" in numbers:
        cascade, large = _share(numbers["joint_accuracy"]), _share(numbers["a_L"])
        sentences.append(
            f"The cascade {scores} {cascade}, the large model alone {large}, the small one {_share(small)}"
        )
        if numbers["a_L"]["value"] <= small["value"]:
            worse = "The large model is no better than the small one here: deferring helps only where the two err on "
            sentences.append(worse + "different items, and s_d does not exist")
    else:
        sentences.append(f"On all items it {scores} {_share(small)}")
        sentences.append("What a large model would answer is not known, so neither is what deferring buys")
    auroc = numbers.get("auroc", {"value": None})
    if auroc["value"] is not None:
        sentences.append(f"A right answer is more confident than a wrong one in {_share(auroc)} of all pairs")
    elif not numbers["graded"]:
        sentences.append("All answers are right, or all are wrong: there is nothing that a confidence could tell apart")
    outside = numbers.get("out_of_scope")
    if outside:
        deferred = percent(outside["deferral_ratio"])
        sentences.append(f"Of {outside['rows']:,} out-of-scope queries {deferred} are deferred")
    return ". ".join(sentences) + "."


def _tiles(numbers: dict[str, Any], accepted: float | None) -> list[dict[str, str]]:
    """The key figures that these data have."""

    def tile(label: str, key: str, note: str, *, share: bool = True) -> list[dict[str, str]]:
        entry = numbers.get(key)
        if entry is None or entry["value"] is None:
            return []
        value = percent(entry["value"]) if share else f"{entry['value']:.3f}"
        scale, digits = (100, 1) if share else (1, 3)
        between = (
            "" if entry["low"] is None else f"{scale * entry['low']:.{digits}f} to {scale * entry['high']:.{digits}f}"
        )
        return [{"label": label, "value": value, "note": " · ".join(part for part in (between, note) if part)}]

    accepted_tile = {"label": "Accepted answers", "value": percent(accepted or 0.0), "note": "right, of those"}
    return [
        *tile("Joint accuracy", "joint_accuracy", "at the threshold"),
        *tile("Deferral ratio", "deferral_ratio", "at the threshold"),
        *([accepted_tile] if accepted is not None and "a_L" not in numbers else []),
        *tile("Small model", "a_S", "alone"),
        *tile("Large model", "a_L", "alone"),
        *tile("AUROC", "auroc", "right against wrong", share=False),
        *tile("s_d", "s_d", "share of the ideal gain", share=False),
    ]


def _rows(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Every number but those by deferral ratio, which have a table of their own; a new one is shown by its name."""
    known = [name for name in MEANINGS if name in numbers]
    names = known + [name for name in numbers if name not in known and not name.startswith("joint_accuracy_at_")]
    rows = []
    for name in names:
        entry, value, between = numbers[name], "", ""
        if name == "out_of_scope" and entry:
            value = _number(entry["deferral_ratio"])
        elif isinstance(entry, dict) and "value" in entry:
            value = _number(entry["value"])
            between = "" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        elif isinstance(entry, float) and name != "threshold":  # such as a speed
            value = f"{entry:,.0f}" if entry >= 100 else f"{entry:.4g}"
        if value:
            rows.append({"name": name, "meaning": MEANINGS.get(name, ""), "value": value, "interval": between})
    return rows


def _by_ratio(numbers: dict[str, Any], ladder: _Ladder) -> dict[str, Any]:
    """What to set for a wanted deferral ratio."""
    head, rows = ["deferral ratio", "threshold", "joint accuracy"], []
    if ladder.large is None:
        head[2] = "accuracy of the accepted"
    for twentieths in range(1, 11):
        ratio = twentieths / 20
        threshold, deferred, _, accepted = ladder.step(ladder.threshold(ratio))
        if abs(deferred - ratio) > max(0.005, 1 / numbers["rows"]):
            threshold = "none"  # equal confidences, which no threshold parts
        entry = numbers.get(f"joint_accuracy_at_{ratio:g}")
        accuracy = _interval(entry) if entry else "" if accepted is None else f"{accepted:.3f}"
        rows.append([f"{ratio:g}", threshold, accuracy])
    return {"head": head, "rows": rows, "none": any(row[1] == "none" for row in rows)}


def _by_score(numbers: dict[str, Any]) -> dict[str, Any] | None:
    scores: dict[str, dict[str, float | None]] = numbers.get("by_score") or {}
    columns = list(dict.fromkeys(key for values in scores.values() for key in values))
    if not columns:
        return None
    head = ["number", *scores]
    rows = []
    for column in columns:
        cells = [values.get(column) for values in scores.values()]
        name = column.replace("joint_accuracy_at_", "joint accuracy at ")
        rows.append([name, *("-" if cell is None else f"{cell:.4f}" for cell in cells)])
    return {"head": head, "rows": rows}


def _confusions(predictions: Predictions, threshold: float) -> dict[str, Any] | None:
    """The pairs of classes that are taken for one another most often."""
    classes, label, prediction = predictions.classes, predictions.label, predictions.prediction
    if classes is None or label is None or prediction is None:
        return None
    wrong = np.flatnonzero(label != prediction)
    pairs, inverse, count = np.unique(
        label[wrong] * len(classes) + prediction[wrong], return_inverse=True, return_counts=True
    )
    deferred = np.bincount(inverse, predictions.confidence[wrong] < threshold, len(pairs))
    first = np.argsort(-count, kind="stable")[:CONFUSIONS]
    rows = [
        [
            *(one_line(classes[index], 60) for index in divmod(int(pairs[k]), len(classes))),
            f"{count[k]:,}",
            percent(deferred[k] / count[k], 0),
        ]
        for k in first
    ]
    return {"head": ["expected", "predicted", "times", "deferred"], "rows": rows}


def _class_rows(predictions: Predictions, threshold: float) -> dict[str, Any] | None:
    table = _by_class(predictions, threshold)
    if table is None:
        return None
    head = ["class", "items", "deferred", "small right", *([] if table.joint is None else ["cascade right"])]
    columns = [table.deferred, table.small, *([] if table.joint is None else [table.joint])]
    rows = [
        [one_line(table.names[index], 80), f"{table.items[index]:,}", *(percent(column[index]) for column in columns)]
        for index in table.order[:MOST_ROWS]
    ]
    return {"head": head, "rows": rows, "count": len(table.order), "left_out": max(0, len(table.order) - MOST_ROWS)}


# ---- mistakes


def _mistakes(predictions: Predictions, threshold: float) -> dict[str, Any]:
    """The wrong answers that say most: those the gate lets through with confidence, and those it nearly knows."""
    wrong = np.flatnonzero(predictions.small_correct < 0.5)
    if predictions.items is None:
        return {"reason": "The items themselves are not part of these predictions, so none can be shown.", "tables": []}
    if not len(wrong):
        return {"reason": "The small model makes no mistake on these items.", "tables": []}
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]
    confident = (
        "The small model is sure and wrong: a label to check, two classes that are hard to tell apart, or an item "
    )
    confident += "unlike those of training."
    unsure = "The small model is wrong and knows it: what the gate is for."
    tables = [("The most confident", confident, wrong[:MISTAKES])]
    if len(wrong) > MISTAKES:
        tables.append(("The least confident", unsure, wrong[: -MISTAKES - 1 : -1]))
    head = ["item", *(["expected", "predicted"] if _named(predictions) else []), "confidence", "large model", "gate"]
    return {
        "reason": "",
        "head": head,
        "tables": [
            {
                "title": f"{title} of {len(wrong):,} mistakes" if len(tables) > 1 else f"All mistakes: {len(wrong)}",
                "meaning": meaning,
                "rows": [_mistake(predictions, int(row), threshold) for row in rows],
            }
            for title, meaning, rows in tables
        ],
    }


def _named(predictions: Predictions) -> bool:
    return predictions.classes is not None and predictions.label is not None and predictions.prediction is not None


def _mistake(predictions: Predictions, row: int, threshold: float) -> dict[str, Any]:
    assert predictions.items is not None
    item, expected, predicted = predictions.items[row], None, None
    if predictions.classes is not None and predictions.label is not None and predictions.prediction is not None:
        expected = one_line(predictions.classes[predictions.label[row]], 80)
        predicted = one_line(predictions.classes[predictions.prediction[row]], 80)
    large = None if predictions.large_correct is None else float(predictions.large_correct[row])
    words = {None: "unknown", 1.0: "right", 0.0: "wrong"}
    return {
        "position": row + 1,
        "text": one_line(item, 200) if isinstance(item, str) else None,
        "image": None if isinstance(item, str) else _thumbnail(item),
        "expected": expected,
        "predicted": predicted,
        "confidence": f"{predictions.confidence[row]:#.4g}",
        "large": words.get(large, f"{large:.2f}" if large is not None else ""),
        "large_class": "yes" if large == 1.0 else "no" if large == 0.0 else "",
        "decision": "accepted" if predictions.confidence[row] >= threshold else "deferred",
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    """An image, (H, W) grey or (H, W, 3), as a data URI; the page enlarges a small one without smoothing."""
    image, file = Pillow.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# ---- the page


def _steps(ladder: _Ladder, threshold: float, frame: dict[str, list[float]]) -> dict[str, Any]:
    """What the slider reads: some 200 thresholds with what they do, and which of them is the bundle's."""
    thresholds = sorted({ladder.threshold(ratio) for ratio in np.linspace(0.0, 1.0, STEPS)} | {threshold})
    points = [ladder.step(value) for value in thresholds]
    rounded = [[point[0], *(None if value is None else round(value, 5) for value in point[1:])] for point in points]
    return {"points": rounded, "start": thresholds.index(threshold), "frame": frame}


def _missing(predictions: Predictions, pictures: dict[str, Picture]) -> dict[str, str]:
    """Why a picture is not there, in a sentence; empty where it is."""
    one_outcome = "No ROC curve: all answers are right, or all are wrong."
    reasons = {
        "deferral": "No deferral curve: what the large model would answer is not known.",
        "roc": "No ROC curve: correctness is graded." if predictions.graded else one_outcome,
        "reliability": "No reliability diagram: it needs probabilities, and answers that are right or wrong.",
    }
    return {name: "" if name in pictures else reason for name, reason in reasons.items()}


def _page(
    predictions: Predictions, numbers: dict[str, Any], about: dict[str, str], pictures: dict[str, Picture]
) -> str:
    threshold = numbers["threshold"]
    accepted = predictions.small_correct[predictions.confidence >= threshold]
    accuracy = float(accepted.mean()) if len(accepted) else None
    ladder = _Ladder.of(predictions)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"source_hash": _source_hash, "breakable": _breakable}
    facts = [(one_line(name, 60), one_line(value, 500)) for name, value in about.items()] or [("", "A cascade")]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=facts[0][1],
        kind=facts[0][0],
        about=[{"name": name, "value": value, "long": len(value) > 48} for name, value in facts[1:]],
        summary=summarise(numbers, accuracy),
        tiles=_tiles(numbers, accuracy),
        interval_note="Intervals hold 95 % of what resampling the test items gives (bootstrap).",
        rows=_rows(numbers),
        by_ratio=_by_ratio(numbers, ladder),
        by_score=_by_score(numbers),
        pictures={name: pictures.get(name) for name in plots.NAMES},
        captions=CAPTIONS | (GRADED_CAPTIONS if predictions.graded else {}),
        missing=_missing(predictions, pictures),
        threshold=f"{threshold:g}",
        graded=predictions.graded,
        steps=_steps(ladder, threshold, pictures["deferral"].frame if "deferral" in pictures else {}),
        classes=_class_rows(predictions, threshold),
        confusions=_confusions(predictions, threshold),
        mistakes=_mistakes(predictions, threshold),
        light=_variables(plots.PALETTE),
        dark=_variables(plots.DARK),
    )


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def _breakable(name: str) -> Markup:
    """A name that a narrow cell may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _source_hash(script: str) -> str:
    """How a content security policy names the one script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()}"
