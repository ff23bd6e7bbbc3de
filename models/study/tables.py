"""What a study found, as tables in Markdown."""

from collections.abc import Sequence

from models.study.findings import CONTROL, Findings, Number, Row


def as_table(findings: Findings) -> str:
    """The tables in Markdown: `test` in the columns, the verdict from `select`."""
    chosen = "none: the control stays" if findings.chosen is None else f"{findings.chosen:g}"
    about = (
        f"Test split, {findings.seeds} seed{'s' * (findings.seeds != 1)}, "
        f"accuracy of the large model a_L {findings.large_accuracy:.4f}"
        f"{_large_interval(findings)}. joint: the mean of the joint accuracy at 10, 20 and 30 % deferral; differences "
        "are paired, with 95 % intervals over seeds and items."
    )
    if findings.writes_text:
        about += " s_d perfect: beside a large model that is always right."
    methods = _markdown("method", findings.methods, "the control", findings)
    gates = _markdown("gate", findings.gates, findings.gates[0].name, findings)
    choice = f"Chosen on `select`: alpha {chosen}. Gates on {findings.gates_of}:"
    best = "The best of each kind, as `select` ranks them."
    if any(", merged " in row.name for row in findings.summary):
        best += " merged w: a deferred item gets argmax(log p_L + w log p_S), and s_d is against that."
    return "\n".join([about, "", *methods, "", choice, "", *gates, "", best, "", *_summary_table(findings)])


def _large_interval(findings: Findings) -> str:
    number = next(row.on_test["large"] for row in findings.methods if row.name == CONTROL)
    return f" [{number.low:.4f}, {number.high:.4f}]"


def _summary_table(findings: Findings) -> list[str]:
    columns = {
        "a_S": "accuracy",
        "s_d": "s_d",
        **({"s_d perfect": "s_d_perfect"} if findings.writes_text else {}),
        **({"Pearson's r": "pearson"} if findings.graded else {"s_o": "s_o", "AUROC": "auroc"}),
        "joint at 10 %": "joint_0.1",
        "at 20 %": "joint_0.2",
        "at 30 %": "joint_0.3",
    }
    lines = [f"| | {' | '.join(columns)} | joint - that of the control |", "| --- " * (len(columns) + 2) + "|"]
    for row in findings.summary:
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


def _markdown(what: str, rows: Sequence[Row], against: str, findings: Findings) -> list[str]:
    columns = {
        "a_S": "accuracy",
        **({"Pearson's r": "pearson"} if findings.graded else {"AUROC": "auroc"}),
        "s_d": "s_d",
        **({"s_d perfect": "s_d_perfect"} if findings.writes_text else {}),
        "joint": "joint",
    }
    lines = [
        f"| {what} | {' | '.join(columns)} | joint - that of {against} | on select |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for row in rows:
        joint = row.on_test["joint"]
        values = [row.on_test[name].value for name in columns.values()]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        difference = "" if row.verdict == "the reference" else _difference_with_interval(joint)
        lines.append(f"| {row.name} | {' | '.join(cells)} | {difference} | {row.verdict} |")
    return lines
