"""What a report says in words and figures: the summary, the key figures, and the meaning of each number and picture."""

from collections.abc import Collection
from typing import Any

from models.evaluation.report.wording import four_digits, percent, percent_with_interval

MEANINGS = {
    "a_S": "accuracy of the small model alone",
    "a_L": "accuracy of the large model alone",
    "large_gain": "a_L - a_S, on the same items: below 0, deferring everything would lose",
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
    "entropy": "The gate's default score is minus the mean over an answer's tokens. A good gap is wide from the start.",
    "risk_coverage": "From right to left the threshold rises: fewer answers are accepted, and fewer of them are wrong.",
}

GRADED_CAPTIONS = {
    "confidence": "Answers with a correctness of 0.5 or more, and below. " + CAPTIONS["confidence"],
    "risk_coverage": "Risk is 1 minus the mean correctness of what is accepted. " + CAPTIONS["risk_coverage"],
}


def summarise(numbers: dict[str, Any], accepted: float | None) -> str:
    """The numbers in a few plain sentences. accepted: the small model's accuracy on what it answers itself."""
    ratio, small = numbers["deferral_ratio"]["value"], numbers["a_S"]
    scores, of = ("has a mean correctness of", "on") if numbers["graded"] else ("is right in", "of")
    first = f"At the threshold {numbers['threshold']:g} the small model answers {percent(1 - ratio)} of the "
    first += f"{numbers['rows']:,} test items itself"
    sentences = [first if accepted is None else f"{first} and {scores} {percent(accepted)} {of} those"]
    if "a_L" in numbers:
        cascade, large, alone = (
            percent_with_interval(entry) for entry in (numbers["joint_accuracy"], numbers["a_L"], small)
        )
        sentences.append(f"The cascade {scores} {cascade}, the large model alone {large}, the small one {alone}")
        if verdict := numbers.get("verdict"):
            sentences.append(verdict[0].upper() + verdict[1:])
        if numbers["a_L"]["value"] <= small["value"]:
            sentences.append("The large model being no better than the small one, s_d does not exist")
    else:
        sentences.append(f"On all items it {scores} {percent_with_interval(small)}")
        sentences.append("What a large model would answer is not known, so neither is what deferring buys")
    auroc = numbers.get("auroc", {"value": None})
    if auroc["value"] is not None:
        sentences.append(
            f"A right answer is more confident than a wrong one in {percent_with_interval(auroc)} of all pairs"
        )
    elif not numbers["graded"]:
        sentences.append("All answers are right, or all are wrong: there is nothing that a confidence could tell apart")
    outside = numbers.get("out_of_scope")
    if outside:
        deferred = percent(outside["deferral_ratio"])
        sentences.append(f"Of {outside['rows']:,} out-of-scope queries {deferred} are deferred")
    return ". ".join(sentences) + "."


def tiles(numbers: dict[str, Any], accepted: float | None) -> list[dict[str, str]]:
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


def number_rows(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """Every number but those by deferral ratio, which have a table of their own; a new one is shown by its name."""
    known = [name for name in MEANINGS if name in numbers]
    names = known + [name for name in numbers if name not in known and not name.startswith("joint_accuracy_at_")]
    rows = []
    for name in names:
        entry, value, between = numbers[name], "", ""
        if name == "out_of_scope" and entry:
            value = four_digits(entry["deferral_ratio"])
        elif isinstance(entry, dict) and "value" in entry:
            value = four_digits(entry["value"])
            between = "" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        elif isinstance(entry, float) and name != "threshold":  # such as a speed
            value = f"{entry:,.0f}" if entry >= 100 else f"{entry:.4g}"
        if value:
            rows.append({"name": name, "meaning": MEANINGS.get(name, ""), "value": value, "interval": between})
    return rows


def score_table(numbers: dict[str, Any]) -> dict[str, Any] | None:
    """A row a number and a column a score; None where the data have no scores."""
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


def why_missing(pictures: Collection[str], graded: bool) -> dict[str, str]:
    """Why a picture is not there, in a sentence; empty where it is. pictures: the names of those that are."""
    one_outcome = "No ROC curve: all answers are right, or all are wrong."
    reasons = {
        "deferral": "No deferral curve: what the large model would answer is not known.",
        "roc": "No ROC curve: correctness is graded." if graded else one_outcome,
        "reliability": "No reliability diagram: it needs probabilities, and answers that are right or wrong.",
    }
    return {name: "" if name in pictures else reason for name, reason in reasons.items()}
