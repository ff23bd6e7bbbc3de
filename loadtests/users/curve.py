"""The deferral curve of a threshold sweep: joint accuracy and deferral ratio over the thresholds, as a picture."""

import csv
from pathlib import Path

from loadtests.common.pictures import sweep_picture


def draw(phases: Path, picture: Path) -> str:
    """Draw the rows of a sweep's phases. One line for whoever ran it: where the picture is, or why there is none."""
    try:
        with phases.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("deferral_ratio")]
        points = [
            (
                float(row["threshold"]),
                float(row["deferral_ratio"]),
                _number(row["joint_accuracy"]),
                _number(row["small_accuracy"]),
            )
            for row in rows
        ]
    except (OSError, ValueError, LookupError) as error:
        return f"there is no picture of the curve: {phases} cannot be read ({error})"
    if len(points) < 2:
        return "there is no picture of the curve: it needs two thresholds with answers"
    sweep_picture(sorted(points), picture)
    return f"the curve: {picture}"


def _number(text: str) -> float | None:
    return float(text) if text else None
