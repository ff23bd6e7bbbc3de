"""The dashboards and the rules against an edge and a large model that run. The rules alone: test_monitoring_rules.py.

A real Prometheus, with the committed rules, scrapes a real edge and its large model, and every query of every panel,
annotation and variable is asked.

One file because what holds at rest and what is asked of Prometheus goes through the same reading of the panels.
"""

import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.compose import Pair, find_tool, read_compose, read_yaml, run_tool, running_pair
from support.processes import ROOT, Service, admin, eventually, free_port, stopping
from support.rules import ALERTS, PROMETHEUS, RECORDED, RULES, all_rules, metrics_in

from deploy.grafana.write import documents
from service.commands.demo import EASY, HARDER, ODD

DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
}
KINDS = {"stat", "timeseries", "heatmap", "barchart", "table"}
# Longer than this test runs: what Prometheus computes over it is exactly what was sent.
WINDOW = {"__rate_interval": "10m", "__range": "10m"}
# On the page of a model without a gate.
ONLY_WITH_A_GATE = {
    ("Confidence drift", "A"),
    ("Confidence quantiles", "E"),
    ("Confidence, live and calibration", "B"),
    ("Drift over time", "A"),
    ("Deferral ratio by replica", "A"),
    ("Deferral ratio by replica", "B"),
}


def panels(page: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[page]["panels"] if panel["type"] != "row"]


def variables(page: str) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in DASHBOARDS[page]["templating"]["list"]}


def annotations(page: str) -> list[dict[str, Any]]:
    return [annotation for annotation in DASHBOARDS[page]["annotations"]["list"] if not annotation.get("builtIn")]


# At rest


def test_the_committed_dashboards_are_those_the_program_writes() -> None:
    """`python -m deploy.grafana.write` would change nothing, and there is no other file."""
    committed = {path.name: path.read_text() for path in (ROOT / "deploy/grafana/dashboards").iterdir()}
    assert committed == documents()


def test_provisioning_leads_to_the_dashboards_and_the_data() -> None:
    """What Grafana is told to read is mounted there, and the data source is compose's Prometheus."""
    services = read_compose()["services"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("./"))
    provider = read_yaml(ROOT / "deploy/grafana/provisioning/dashboards/gatekeeper.yml")["providers"][0]
    source = read_yaml(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    scraped = read_yaml(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    sources = {target: (ROOT / path).resolve() for path, target in mounted.items()}
    assert sources[provider["options"]["path"]] == ROOT / "deploy/grafana/dashboards"
    assert sources["/etc/grafana/provisioning/dashboards"] == ROOT / "deploy/grafana/provisioning/dashboards"
    assert sources["/etc/grafana/provisioning/datasources"] == ROOT / "deploy/grafana/provisioning/datasources"
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scraped
    for page in DASHBOARDS:
        assert variables(page)["datasource"]["query"] == source["type"] == "prometheus"
        assert variables(page)["datasource"]["current"]["value"] == source["uid"]


def test_the_runbook_is_among_grafanas_public_files() -> None:
    """The panels' links to it find it: compose mounts docs/operations.md where Grafana serves /public."""
    volumes = read_compose()["services"]["grafana"]["volumes"]
    assert "./docs/operations.md:/usr/share/grafana/public/operations.md:ro" in volumes


def test_the_pages_lead_to_each_other() -> None:
    """By their links, which keep variables and time range, and by the values of a model."""
    assert {page: DASHBOARDS[page]["uid"] for page in DASHBOARDS} == {
        "overview": "gatekeeper-cascade",
        "model": "gatekeeper-model",
    }
    for page, other in (("overview", "model"), ("model", "overview")):
        (link,) = DASHBOARDS[page]["links"]
        assert link["url"] == f"/d/{DASHBOARDS[other]['uid']}"
        assert link["includeVars"]
        assert link["keepTime"]
        assert list(variables(page)) == ["datasource", "model", "replica"]
    urls = [link["url"] for panel in panels("overview") for link in panel["fieldConfig"]["defaults"].get("links", [])]
    assert len(urls) == 3
    for url in urls:
        assert url.startswith("/d/gatekeeper-model?${__url_time_range}&")
        assert "var-model=${__field.labels.model}" in url


@pytest.mark.parametrize("page", DASHBOARDS)
def test_panels_are_whole(page: str) -> None:
    """Every panel says what it shows, in which unit, from the chosen data source, and none covers another."""
    dashboard = DASHBOARDS[page]
    assert dashboard["schemaVersion"] == 42, "the last of the classic model"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({panel["title"] for panel in panels(page)}) == len(panels(page))
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(annotation["datasource"] == source for annotation in annotations(page))
    for panel in panels(page):
        assert panel["type"] in KINDS
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]
        assert all(part["datasource"] == source for part in (panel, *panel["targets"]))
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for link in panel.get("links", []):
            assert link["url"] == f"/public/operations.md#{link['title'].removeprefix('Runbook: ').lower()}"
            assert link["title"].removeprefix("Runbook: ") in ALERTS
            assert link["targetBlank"], "within Grafana's own pages the link would not leave them"
    for one, other in combinations((panel["gridPos"] for panel in dashboard["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels(page)) == 24


def test_tables_name_the_fields_that_their_queries_give() -> None:
    """What a transformation picks is a label of the query, or the value of one."""
    for page in DASHBOARDS:
        for panel in panels(page):
            if panel["type"] not in {"table", "barchart"}:
                continue
            assert {target["format"] for target in panel["targets"]} == {"table"}
            assert all(target["instant"] for target in panel["targets"])
            picked = next(step for step in panel["transformations"] if step["id"] == "filterFieldsByName")
            values = {f"Value #{target['refId']}" for target in panel["targets"]}
            assert {name for name in picked["options"]["include"]["names"] if name.startswith("Value")} <= values


@pytest.mark.parametrize("page", DASHBOARDS)
def test_promtool_accepts_every_query(page: str, tmp_path: Path) -> None:
    """As a rule each, because not every version has a check for a query alone."""
    values = {"model": "m", "replica": "a:1|b:1"}
    expressions = [target["expr"] for panel in panels(page) for target in panel["targets"]]
    expressions += [annotation["expr"] for annotation in annotations(page)]
    rules = [{"record": f"query:{number}", "expr": filled(expr, values)} for number, expr in enumerate(expressions)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run_tool([find_tool("promtool"), "check", "rules", "--lint=none", str(tmp_path / "queries.yml")])


# All of it, running


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str

    def series(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each finite sample that it has for an instant query now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=10.0).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        assert answer["data"]["resultType"] == "vector", query
        samples = [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]
        return [sample for sample in samples if math.isfinite(sample[1])]

    def ask(self, query: str) -> list[float]:
        """The values alone."""
        return [value for _, value in self.series(query)]

    def label_values(self, metric: str, label: str) -> list[str]:
        """What Grafana's label_values(metric, label) gives."""
        url = f"{self.url}/api/v1/label/{label}/values"
        answer = httpx.get(url, params={"match[]": metric}, timeout=10.0).json()
        assert answer["status"] == "success", f"{metric}: {answer}"
        values: list[str] = answer["data"]
        return values

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Compose's edge-1, large and redis as processes."""
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture(scope="module")
def prometheus(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Compose's Prometheus as a process: its command, the committed configuration and rules.

    With other targets, every second, and alerts that do not wait: the rules' own tests have how long they do.
    """
    program = find_tool("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    configuration = read_yaml(PROMETHEUS / "prometheus.yml")
    configuration["global"] = dict.fromkeys(configuration["global"], "1s")
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{getattr(pair, job['job_name']).port}"]}]
    configuration["rule_files"] = [str(directory / "rules" / "*.yml")]
    (directory / "rules").mkdir()
    for path in RULES:
        text, waiting = re.subn(r"^( +for): \w+$", r"\1: 0s", path.read_text(), flags=re.MULTILINE)
        assert waiting == (len(ALERTS) if path.stem == "alerts" else 0)
        (directory / "rules" / path.name).write_text(text)
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    paths = {"/etc/prometheus/prometheus.yml": directory / "prometheus.yml", "/prometheus": directory / "data"}
    command = [program]
    for argument in read_compose()["services"]["prometheus"]["command"]:
        flag, _, value = argument.partition("=")
        command.append(f"{flag}={paths.get(value, value)}")
    port, log = free_port(), directory / "prometheus.log"
    with log.open("wb") as stream:
        listen = f"--web.listen-address=127.0.0.1:{port}"
        process = subprocess.Popen([*command, listen, "--log.level=warn"], stdout=stream, stderr=stream)
    with stopping(service := Service(process, port, log)):
        prometheus = Prometheus(service.url)
        eventually(prometheus.ready, "Prometheus is ready", within_s=20.0)
        # Every counter is seen at zero before the first request, so that none of its growth is missed.
        eventually(lambda: prometheus.ask("sum(up)") == [2.0], "both targets scraped", within_s=20.0)
        yield prometheus


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_query_has_an_answer(pair: Pair, prometheus: Prometheus) -> None:
    """Every panel, annotation and variable finds data, the numbers are those of the answers sent, no metric is foreign.

    The last of this file: it ends the large model.
    """
    with httpx.Client(base_url=pair.edge.url, timeout=20.0) as client:
        idle = prometheus.series('ALERTS{alertstate="firing"}')
        assert idle == [], "fresh and without traffic, nothing fires, however little it waits"
        traffic = Traffic(client)
        traffic.with_a_large_model()
        large = chosen("model", prometheus, model="clinc150-large")
        without_gate = {key for key in queries("model", large) if key in ONLY_WITH_A_GATE}
        assert without_gate == ONLY_WITH_A_GATE
        asked_until_answered(prometheus, traffic, queries("model", large), without=without_gate)
        samples = exposed(pair.large.url)

        # For the model page as for the overview: all decisions, a breaker that opens, an alert that fires.
        pair.large.kill()
        traffic.without_a_large_model()
        assert min(traffic.answers[decision] for decision in ("accepted", "deferred", "degraded", "failed")) > 0
        for page in DASHBOARDS:
            small = chosen(page, prometheus, model="clinc150-small")
            asked_until_answered(prometheus, traffic, queries(page, small))
            for annotation in annotations(page):
                marks = f"max_over_time(({filled(annotation['expr'], small)})[10m:1s])"
                found = eventually(lambda marks=marks: prometheus.series(marks), f"{annotation['name']}: {marks}")
                named = set(re.findall(r"{{(\w+)}}", annotation["titleFormat"])) | {annotation["tagKeys"]}
                assert all(named <= set(labels) for labels, _ in found)
        samples |= exposed(pair.edge.url)

        overview = queries("overview", chosen("overview", prometheus, model="clinc150-small"))
        check_numbers(prometheus, traffic, overview, pair.edge.url)

    known = samples | RECORDED | {"up", "ALERTS"}
    assert {name for rule in all_rules() for name in metrics_in(rule["expr"])} <= known
    for page in DASHBOARDS:
        named = [target["expr"] for panel in panels(page) for target in panel["targets"]]
        named += [annotation["expr"] for annotation in annotations(page)]
        named += [variable["query"]["query"] for variable in variables(page).values() if variable["type"] == "query"]
        assert {name for expression in named for name in metrics_in(expression)} <= known


def check_numbers(
    prometheus: Prometheus, traffic: "Traffic", overview: dict[tuple[str, str], str], edge_url: str
) -> None:
    """What Prometheus makes of them is what was sent, and what /metrics says."""
    answers = traffic.answers
    deferred = answers["deferred"] + answers["degraded"] + answers["failed"]
    expected = {
        ("Deferral ratio", "A"): deferred / answers.total(),
        ("Deferral ratio over time", "A"): deferred / answers.total(),
        ("Calls saved, share", "A"): answers["accepted"] / answers.total(),
    }
    for key, value in expected.items():
        query = overview[key]
        eventually(
            lambda query=query, value=value: prometheus.ask(query) == [pytest.approx(value, rel=1e-9)],
            f"{query} = {value}",
        )
    text = httpx.get(f"{edge_url}/metrics", timeout=10.0).text
    shares: dict[str, dict[str, float]] = {"gatekeeper_confidence_bucket": {}, "gatekeeper_calibration_confidence": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in shares:
                shares[sample.name][sample.labels["le"]] = sample.value
    live, calibration = shares.values()
    drift = max(abs(live[bound] / live["+Inf"] - share) for bound, share in calibration.items())
    query = "model:gatekeeper_confidence_drift:increase15m"
    eventually(lambda: prometheus.ask(query) == [pytest.approx(drift, rel=1e-9)], f"{query} = {drift}")
    firing = {labels["alertname"] for labels, _ in prometheus.series('ALERTS{alertstate="firing"}')}
    assert {"TargetDown", "BreakerOpen", "DegradedShareHigh"} <= firing
    assert not firing & {"EdgesDown", "PolicyStoreDown", "PolicyVersionsDiffer", "RequestsRefused", "QueueSaturated"}


class Traffic:
    """Requests to an edge, and the items by decision that went without an override."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.answers: Counter[str] = Counter()
        self._easy = tuple(EASY)
        self._sentences = [*EASY, *HARDER, *ODD]
        self._doubtful = ""

    def with_a_large_model(self) -> None:
        """Accepted and deferred, whatever the bundle; as many as a drift needs; overrides, which do not count."""
        outputs = self.client.post("/v1/classify", json={"inputs": self._sentences}).json()["outputs"]
        self.answers.update(output["decision"] for output in outputs)
        confidences = sorted({output["confidence"] for output in outputs})
        threshold = confidences[len(confidences) // 2]
        pairs = zip(self._sentences, outputs, strict=True)
        self._doubtful = next(text for text, output in pairs if output["confidence"] < threshold)
        self.change({"threshold": threshold})
        for _ in range(6):
            self.send(self._sentences)
        for parameters in ({"route": "large"}, {"threshold": 0.0}):
            overridden = self.client.post("/v1/classify", json={"inputs": self._sentences, "parameters": parameters})
            assert overridden.status_code == 200

    def without_a_large_model(self) -> None:
        """Failed, degraded, and more failures in a row than open the breaker."""
        self.change({"on_remote_failure": "fail"})
        assert self.client.post("/v1/classify", json={"inputs": self._doubtful}).status_code == 503
        self.answers["failed"] += 1
        self.change({"on_remote_failure": "degrade"})
        for _ in range(6):
            self.send([self._easy[0], self._doubtful])

    def a_little(self) -> None:
        """Some of everything."""
        self.send([*self._easy[:2], *ODD[:2]])
        self.client.post("/v1/classify", json={"inputs": []})

    def send(self, texts: list[str]) -> None:
        response = self.client.post("/v1/classify", json={"inputs": texts})
        assert response.status_code == 200, response.text
        self.answers.update(output["decision"] for output in response.json()["outputs"])

    def change(self, patch: dict[str, Any]) -> None:
        response = admin(self.client, "PATCH", "policy", json=patch)
        assert response.status_code == 200, response.text


def queries(page: str, values: dict[str, str]) -> dict[tuple[str, str], str]:
    """Every query of a page by panel and letter, with these values of its variables."""
    return {
        (panel["title"], target["refId"]): filled(target["expr"], values)
        for panel in panels(page)
        for target in panel["targets"]
    }


def asked_until_answered(
    prometheus: Prometheus,
    traffic: Traffic,
    asked: dict[tuple[str, str], str],
    without: frozenset[tuple[str, str]] | set[tuple[str, str]] = frozenset(),
) -> None:
    """Each query has an answer, except those `without`, which have none.

    A series that a request brought to life is only known to grow once it has been scraped, and has grown since.
    """
    missing = set(asked)

    def all_answered() -> bool:
        traffic.a_little()
        for key in list(missing):
            if prometheus.ask(asked[key]):
                missing.remove(key)
        return missing <= without

    try:
        eventually(all_answered, "every query is answered", within_s=25.0)
    except AssertionError as error:
        raise AssertionError("\n".join(f"{key}: {asked[key]}" for key in sorted(missing - without))) from error
    assert missing == without


def chosen(page: str, prometheus: Prometheus, model: str) -> dict[str, str]:
    """The page's variables as Grafana fills them in: this model, every replica of it."""
    values: dict[str, str] = {}
    for name, variable in variables(page).items():
        if variable["type"] == "query":
            parsed = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert parsed is not None, variable
            found = prometheus.label_values(filled(parsed[1], values), parsed[2])
            assert found, variable
            escaped = [re.escape(value).replace("\\", "\\\\") for value in found]
            values[name] = "|".join(escaped) if variable.get("multi") else model
            assert variable.get("multi") or model in found
    return values


def filled(expression: str, values: dict[str, str]) -> str:
    """With the dashboard's variables put in."""
    complete = re.sub(r"\$(\w+)", lambda match: (WINDOW | values)[match[1]], expression)
    assert "$" not in complete, expression
    return complete


def exposed(url: str) -> set[str]:
    """The names of all samples of a /metrics."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10.0).text)
    return {sample.name for family in families for sample in family.samples}
