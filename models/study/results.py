"""A study's files: study.json, study.md, study.png and curves.png."""

import json
from dataclasses import asdict
from pathlib import Path

from models.replacing import write_whole_bytes, write_whole_text, writing
from models.study.curves import study_curves
from models.study.findings import Findings
from models.study.picture import study_picture
from models.study.tables import as_table


def write_findings(output: Path, findings: Findings) -> None:
    """Each whole or not at all. Raises InputError."""
    with writing(output):
        write_whole_text(output / "study.json", json.dumps(asdict(findings), indent=2) + "\n")
        write_whole_text(output / "study.md", as_table(findings) + "\n")
        for name, draw in (("study.png", study_picture), ("curves.png", study_curves)):
            write_whole_bytes(output / name, draw(findings))
