"""report.html and its pictures: what a cascade does on its test items, for a person to read.

One file without a reference to anything outside it, so that it can be mailed and kept. Everything from outside (texts,
labels, facts) is escaped by jinja2; the page's one script is named to the browser by its hash.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from models.errors import InputError
from models.evaluation.report import plots
from models.evaluation.report.canvas import Picture
from models.evaluation.report.certificate import told_by_test
from models.evaluation.report.classes import by_class, class_table, confusion_table
from models.evaluation.report.entropy_picture import entropy_picture
from models.evaluation.report.ladder import Ladder, ratio_table, slider_steps
from models.evaluation.report.mistakes import mistake_tables
from models.evaluation.report.text import (
    CAPTIONS,
    GRADED_CAPTIONS,
    number_rows,
    score_table,
    summarise,
    tiles,
    why_missing,
)
from models.evaluation.report.wording import four_digits, one_line, with_interval
from models.numbers.metrics import Curves, curves
from models.numbers.predictions import Predictions
from models.operating_points import deferred
from models.plotting import DARK, PALETTE
from models.replacing import write_whole_bytes

TEMPLATE = Path(__file__).with_name("page.html.j2")


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
    try:
        (directory / "plots").mkdir(parents=True, exist_ok=True)
        for name in plots.NAMES:  # a picture of an earlier run that these data do not have
            if f"plots/{name}.png" not in files:
                (directory / "plots" / f"{name}.png").unlink(missing_ok=True)
        for name, content in files.items():
            write_whole_bytes(directory / name, content)
    except OSError as error:
        raise InputError(f"the report cannot be written to {directory}: {error.strerror or error}") from error


def _pictures(predictions: Predictions, drawn: Curves, numbers: dict[str, Any]) -> dict[str, Picture]:
    """The pictures that exist for these data, by name."""
    threshold = numbers["threshold"]
    right = predictions.small_correct >= 0.5
    names = ("0.5 or more", "below 0.5") if predictions.graded else ("right", "wrong")
    ratio, accepted = numbers["deferral_ratio"]["value"], ~deferred(predictions.confidence, threshold)
    pictures = [plots.confidence_picture(predictions.confidence, right, threshold, names)]
    if drawn.deferral is not None:
        picked = (ratio, numbers["joint_accuracy"]["value"])
        pictures.append(plots.deferral_picture(drawn.deferral, picked, threshold))
    if drawn.roc is not None:
        picked = (float(accepted[~right].mean()), float(accepted[right].mean()))
        pictures.append(plots.roc_picture(drawn.roc, with_interval(numbers["auroc"]), picked))
    if drawn.reliability is not None:
        pictures.append(plots.reliability_picture(drawn.reliability))
    at = (1.0 - ratio, float(1.0 - predictions.small_correct[accepted].mean())) if accepted.any() else None
    pictures.append(plots.risk_picture(drawn.coverage, drawn.risk, four_digits(numbers["aurc"]["value"]), at))
    if predictions.answers is not None:
        drawn_entropy = entropy_picture(predictions.answers.entropy, right, names)
        pictures += [drawn_entropy] if drawn_entropy else []
    table = by_class(predictions, threshold)
    if table is not None:
        first = table.order[: plots.MOST_CLASSES]
        joint = None if table.joint is None else table.joint[first]
        shown = [table.names[index] for index in first]
        pictures.append(
            plots.classes_picture(shown, table.deferred[first], table.small[first], joint, len(table.order))
        )
    return {picture.name: picture for picture in pictures}


def _page(
    predictions: Predictions, numbers: dict[str, Any], about: dict[str, str], pictures: dict[str, Picture]
) -> str:
    threshold = numbers["threshold"]
    accepted = predictions.small_correct[~deferred(predictions.confidence, threshold)]
    accuracy = float(accepted.mean()) if len(accepted) else None
    ladder, certificate = Ladder.of(predictions), numbers.get("certificate")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"source_hash": _source_hash, "breakable": _breakable}
    facts = [(one_line(name, 60), one_line(value, 500)) for name, value in about.items()] or [("", "A cascade")]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=facts[0][1],
        kind=facts[0][0],
        about=[{"name": name, "value": value, "long": len(value) > 48} for name, value in facts[1:]],
        summary=summarise(numbers, accuracy),
        certified=told_by_test(certificate, predictions, threshold) if certificate else "",
        tiles=tiles(numbers, accuracy),
        interval_note="Intervals hold 95 % of what resampling the test items gives (bootstrap).",
        rows=number_rows(numbers),
        by_ratio=ratio_table(numbers, ladder),
        by_score=score_table(numbers),
        pictures={name: pictures.get(name) for name in plots.NAMES},
        captions=CAPTIONS | (GRADED_CAPTIONS if predictions.graded else {}),
        missing=why_missing(pictures, predictions.graded),
        threshold=f"{threshold:g}",
        graded=predictions.graded,
        steps=slider_steps(ladder, threshold, pictures["deferral"].frame if "deferral" in pictures else {}),
        classes=class_table(predictions, threshold),
        confusions=confusion_table(predictions, threshold),
        mistakes=mistake_tables(predictions, threshold),
        light=_variables(PALETTE),
        dark=_variables(DARK),
    )


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def _breakable(name: str) -> Markup:
    """A name that a narrow cell may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _source_hash(script: str) -> str:
    """How a content security policy names the one script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()}"
