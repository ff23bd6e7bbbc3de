"""The rules of deploy/prometheus, read, and the metrics that an expression names."""

import re
from typing import Any

from support.compose import read_yaml
from support.processes import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


def all_rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in read_yaml(path)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in all_rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in all_rules() if "record" in rule}


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names: its words without functions, labels, strings, numbers and durations."""
    rest = re.sub(r'"(?:\\.|[^"\\])*"', "", expression)
    if rest.startswith("label_values("):
        rest = rest.removeprefix("label_values(").rpartition(",")[0]
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right) *\([^)]*\)"
    rest = re.sub(rf"\{{[^}}]*\}}|\[[^\]]*\]|{grouping}", " ", rest)
    return set(re.findall(r"\b[A-Za-z_:][\w:]*\b(?! *\()", rest)) - {"and", "or", "unless", "bool", "offset"}
