"""Prometheus' configuration and its rules, by promtool: they are valid, and pass their own tests.

Those lie in deploy/prometheus/tests, so that whoever changes a rule can run them with promtool alone.
"""

import re
from pathlib import Path

import pytest
from support.compose import find_tool, read_compose, read_yaml, run_tool
from support.processes import ROOT
from support.rules import ALERTS, PROMETHEUS, RECORDED, RULES, all_rules, metrics_in

RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def test_promtool_accepts_the_configuration() -> None:
    """The file is valid, and each target is a service of compose at the port it listens on."""
    path = PROMETHEUS / "prometheus.yml"
    run_tool([find_tool("promtool"), "check", "config", "--syntax-only", str(path)])
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in read_yaml(path)["scrape_configs"]}
    assert jobs == {"edge": ["edge-1:8000", "edge-2:8000"], "large": ["large:8001"]}
    services = read_compose()["services"]
    assert all(target.partition(":")[0] in services for targets in jobs.values() for target in targets)


def test_the_rules_are_where_prometheus_looks() -> None:
    """Compose mounts deploy/prometheus/rules at the folder that rule_files names."""
    volumes = read_compose()["services"]["prometheus"]["volumes"]
    mounted = {target: ROOT / path for path, target, *_ in (v.split(":") for v in volumes) if path.startswith(".")}
    (pattern,) = read_yaml(PROMETHEUS / "prometheus.yml")["rule_files"]
    folder = mounted[str(Path(pattern).parent)]
    assert sorted(folder.glob(Path(pattern).name)) == RULES


def test_promtool_accepts_the_rules() -> None:
    """Both files are valid, and no two rules are the same."""
    run_tool([find_tool("promtool"), "check", "rules", *map(str, RULES)])
    assert len(ALERTS) + len(RECORDED) == len(all_rules())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_rules_pass_their_own_tests(path: Path) -> None:
    """`promtool test rules`: values computed by hand, alerts that fire with these words, and alerts that do not."""
    run_tool([find_tool("promtool"), "test", "rules", str(path)])


def test_every_rule_has_a_test() -> None:
    """Of each alert there is a case in which it fires and one in which it does not; each recording rule has a value."""
    cases = [
        case for path in RULE_TESTS for group in read_yaml(path)["tests"] for case in group.get("alert_rule_test", [])
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} >= set(ALERTS)
    asked = [
        case for group in read_yaml(PROMETHEUS / "tests/recording.yml")["tests"] for case in group["promql_expr_test"]
    ]
    assert {name for case in asked for name in metrics_in(case["expr"])} == RECORDED


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_and_leads_to_what_to_do(name: str) -> None:
    """It has a severity, words with the values in them, and a link to the heading of its name in the runbook."""
    rule = ALERTS[name]
    assert rule["labels"] == {"severity": rule["labels"]["severity"], "service": "gatekeeper"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["description"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_every_threshold_says_why() -> None:
    """Below each alert's name stands a comment."""
    text = (PROMETHEUS / "rules/alerts.yml").read_text()
    assert re.findall(r"- alert: (\w+)\n +#", text) == list(ALERTS)


def test_the_runbook_has_a_heading_for_each_alert() -> None:
    """Named exactly as the alert, so that the link finds it."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert set(ALERTS) <= set(headings)
