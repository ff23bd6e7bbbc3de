"""The images, the compose file, Prometheus' configuration and the dashboard, held against the real service.

No container is started. The edge runs as a process with the environment that compose gives it, next to a real Redis, a
real large model and a real Prometheus, and every query of the dashboard is asked.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import ROOT, TOKEN, Service, admin, eventually, free_port, spawn, stopping
from prometheus_client.parser import text_string_to_metric_families
from pydantic import AliasChoices
from redis_server import RedisServer

from service import cli
from service.demo import EASY, HARDER, ODD
from service.settings import EdgeSettings, LargeSettings

SETTINGS = {"edge-1": EdgeSettings, "edge-2": EdgeSettings, "large": LargeSettings}
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/overview.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
# Longer than this test runs: what Prometheus computes over it is exactly what was sent.
WINDOW = {"__rate_interval": "10m", "__range": "10m"}


# The image


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes hadolint with no rule ignored."""
    beside_python = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    _run([beside_python or _tool("hadolint"), "--no-color", "Dockerfile"])
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text()


def test_the_build_context_is_what_is_copied() -> None:
    """.dockerignore lets through exactly what the Dockerfile copies, and all of it exists."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for instruction, rest in (step for stage in _stages().values() for step in stage):
        if instruction == "COPY" and not rest.startswith("--from="):
            copied.update(rest.split()[:-1])
    assert "*" in lines
    assert copied == let_through
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_torch_is_the_pinned_one() -> None:
    """The image's torch, installed by itself, is the one of constraints.txt."""
    pinned = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"torch==[\w.]+", (ROOT / "Dockerfile").read_text())) == set(pinned)


@pytest.mark.parametrize("target", ["edge", "large"])
def test_an_image_runs_as_nobody_special(target: str) -> None:
    """An image has a numeric user that is not root and stops at SIGTERM."""
    steps = dict(_stages()[target])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", steps["USER"])
    assert steps["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize(("target", "runs"), [("edge", cli.run_serve), ("large", cli.run_serve_large)])
def test_an_entrypoint_is_a_command_that_exists(target: str, runs: object) -> None:
    """The entry point is in exec form and parses as one of our commands."""
    program, *arguments = json.loads(dict(_stages()[target])["ENTRYPOINT"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert cli._parser().parse_args(arguments).run is runs


# The compose file


def test_the_compose_file_is_valid() -> None:
    """It validates against the published schema; no network is asked."""
    schema = ["--builtin-schema", "vendor.compose-spec"]
    _run([sys.executable, "-m", "check_jsonschema", *schema, "docker-compose.yml"])


def test_an_admin_token_is_required() -> None:
    """Without GATEKEEPER_ADMIN_TOKEN compose refuses to start, and says why."""
    with pytest.raises(KeyError, match="GATEKEEPER_ADMIN_TOKEN: set it to a secret"):
        _compose({})


def test_images_have_versions() -> None:
    """What is pulled is named to the patch version."""
    images = [service["image"] for service in _compose()["services"].values() if "image" in service]
    base = re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 3
    assert len(set(base)) == 1
    assert [image for image in images + base if not re.search(r":v?\d+\.\d+\.\d+", image)] == []


def test_nothing_is_published_beyond_this_machine() -> None:
    """Every published port is bound to 127.0.0.1, each to another one."""
    published = [port for service in _compose()["services"].values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    assert len({port.rpartition(":")[0] for port in published}) == len(published) == 4


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compose and the image set is a setting of that service, with a value it takes, and leads to the others."""
    services = _compose()["services"]
    environment = _environment(name)
    known = _variables(SETTINGS[name])
    assert set(services[name].get("environment", {})) <= known
    assert {key for key in environment if key.startswith("GATEKEEPER_")} <= known

    for key in [key for key in os.environ if key.startswith(("GATEKEEPER_", "REDIS_URL"))]:
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = SETTINGS[name]()
    assert settings.host == "0.0.0.0"
    assert str(settings.port) == dict(_stages()[services[name]["build"]["target"]])["EXPOSE"]
    assert "command" not in services[name]
    assert "entrypoint" not in services[name]
    if isinstance(settings, EdgeSettings):
        assert settings.redis_url is not None
        assert [(url.host, url.port) for url in settings.remote_url] == [("large", 8001)]
        assert (settings.redis_url.host, settings.redis_url.port) == ("redis", 6379)
        assert {"redis", "large"} == set(services[name]["depends_on"])
        assert [port.rpartition(":")[2] for port in services[name]["ports"]] == [str(settings.port)]
        volumes = [volume.partition(":")[2] for volume in services[name]["volumes"]]
        assert volumes == [str(settings.policy_path.parent)] == [dict(_stages()["edge"])["VOLUME"]]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stop_waits_for_requests_in_flight(name: str) -> None:
    """Compose kills a service only after the drain window and the time that its requests may take."""
    fields = SETTINGS[name].model_fields
    grace_s = int(_compose()["services"][name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > fields["drain_s"].default + fields["shutdown_timeout_s"].default


# Prometheus and Grafana, at rest


def test_promtool_accepts_the_configuration() -> None:
    """The file is valid, and each target is a service of compose at the port it listens on."""
    path = ROOT / "deploy/prometheus/prometheus.yml"
    _run([_tool("promtool"), "check", "config", "--syntax-only", str(path)])
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in _yaml(path)["scrape_configs"]}
    assert jobs == {"edge": ["edge-1:8000", "edge-2:8000"], "large": ["large:8001"]}
    assert all(target.partition(":")[0] in SETTINGS for targets in jobs.values() for target in targets)


def test_provisioning_leads_to_the_dashboard_and_the_data() -> None:
    """What Grafana is told to read is mounted there, and the data source is compose's Prometheus."""
    services = _compose()["services"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("./"))
    provider = _yaml(ROOT / "deploy/grafana/provisioning/dashboards/gatekeeper.yml")["providers"][0]
    source = _yaml(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    scraped = _yaml(ROOT / "deploy/prometheus/prometheus.yml")["global"]["scrape_interval"]
    sources = {target: (ROOT / path).resolve() for path, target in mounted.items()}
    assert (sources[provider["options"]["path"]] / "overview.json").is_file()
    assert sources["/etc/grafana/provisioning/dashboards"] == ROOT / "deploy/grafana/provisioning/dashboards"
    assert sources["/etc/grafana/provisioning/datasources"] == ROOT / "deploy/grafana/provisioning/datasources"
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scraped
    assert VARIABLES["datasource"]["query"] == source["type"] == "prometheus"
    assert VARIABLES["datasource"]["current"]["value"] == source["uid"]


def test_panels_are_whole() -> None:
    """Every panel says what it shows, in which unit, from the chosen data source, and none covers another."""
    assert DASHBOARD["schemaVersion"] == 42, "the last of the classic model"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        source = {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(part["datasource"] == source for part in (panel, *panel["targets"]))
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in PANELS) == 24


# All of it, running


@dataclass
class Pair:
    """An edge and its large model."""

    edge: Service
    large: Service


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Compose's edge-1, large and redis as processes: their environments and commands, with other hosts and paths."""
    directory = tmp_path_factory.mktemp("pair")
    command = _compose()["services"]["redis"]["command"]
    large = spawn("serve-large", directory / "large.log", **_unprefixed(_environment("large")))
    with stopping(large), RedisServer(None, *command[1:]) as redis:
        elsewhere = {
            "http://large:8001": large.url,
            "redis://redis:6379": f"redis://127.0.0.1:{redis.port}",
            "/var/lib/gatekeeper": str(directory),
        }
        environment = json.dumps(_environment("edge-1"))
        for theirs, ours in elsewhere.items():
            assert theirs in environment
            environment = environment.replace(theirs, ours)
        edge = spawn("serve", directory / "edge.log", **_unprefixed(json.loads(environment)))
        with stopping(edge):
            edge.wait_ready(within_s=60.0)
            large.wait_ready(within_s=60.0)
            yield Pair(edge, large)


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, query: str) -> list[float]:
        """The finite values that it has for an instant query now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=10.0).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        assert answer["data"]["resultType"] == "vector", query
        values = [float(sample["value"][1]) for sample in answer["data"]["result"]]
        return [value for value in values if math.isfinite(value)]

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
def prometheus(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Compose's Prometheus as a process: its command and the committed file, with other targets, every second."""
    program = _tool("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    configuration = _yaml(ROOT / "deploy/prometheus/prometheus.yml")
    configuration["global"]["scrape_interval"] = "1s"
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{getattr(pair, job['job_name']).port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    paths = {"/etc/prometheus/prometheus.yml": directory / "prometheus.yml", "/prometheus": directory / "data"}
    command = [program]
    for argument in _compose()["services"]["prometheus"]["command"]:
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


@pytest.mark.timeout(120)
def test_the_edge_of_the_compose_file_works(pair: Pair) -> None:
    """With compose's environment the edge is an edge with its policy in Redis, and an admin API."""
    with httpx.Client(base_url=pair.edge.url, timeout=10.0) as client:
        status = admin(client, "GET", "status").json()
        assert status["policy_store"] == {"kind": "redis", "up": True}
        assert status["remote"]["url"] == pair.large.url
        eventually(
            lambda: admin(client, "GET", "status").json()["remote"]["labels_match"], "first contact", within_s=10.0
        )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["edge", "large"])
def test_the_health_check_of_an_image(name: str, pair: Pair) -> None:
    """It passes while the service is ready and fails when nothing listens."""
    steps = dict(_stages()[name])
    program, *arguments = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])
    variable = {"edge": "GATEKEEPER_PORT", "large": "GATEKEEPER_LARGE_PORT"}[name]
    assert program == "python"
    assert variable in _image_environment(name)

    def exit_code(port: int) -> int:
        environment = {variable: str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        ).returncode

    assert exit_code(getattr(pair, name).port) == 0
    assert exit_code(free_port()) != 0


@pytest.mark.timeout(120)
def test_every_query_of_the_dashboard_has_an_answer(pair: Pair, prometheus: Prometheus) -> None:
    """Every panel and variable finds data, its deferral ratio is that of the answers sent, and no metric is foreign.

    The last of this file: it ends the large model.
    """
    answers = _traffic(pair)
    assert min(answers[decision] for decision in ("accepted", "deferred", "degraded", "failed")) > 0
    values = _variable_values(prometheus)
    queries = {
        f"{panel['title']}, {target['legendFormat']}": _filled(target["expr"], values)
        for panel in PANELS
        for target in panel["targets"]
    }
    assert len(queries) == sum(len(panel["targets"]) for panel in PANELS), "two have the same name"

    # A series that a request brought to life is only known to grow once it has been scraped, and has grown since.
    missing = set(queries)
    with httpx.Client(base_url=pair.edge.url, timeout=10.0) as client:
        deadline = time.monotonic() + 20.0
        while missing and time.monotonic() < deadline:
            answers += _classify(client, [*EASY[:2], *ODD[:2]])
            client.post("/v1/classify", json={"inputs": []})
            missing = {name for name in missing if not prometheus.ask(queries[name])}
            time.sleep(0.2)
        exposed = client.get("/metrics").text
    assert missing == set()

    expected = (answers["deferred"] + answers["degraded"] + answers["failed"]) / answers.total()
    ratios = [
        query for name, query in queries.items() if name in ("Deferral ratio, {{model}}", "Deferral ratio, observed")
    ]
    assert len(ratios) == 2
    for query in ratios:
        eventually(
            lambda query=query: prometheus.ask(query) == [pytest.approx(expected, rel=1e-9)], f"{query} = {expected}"
        )

    samples = {sample.name for family in text_string_to_metric_families(exposed) for sample in family.samples}
    variables = [variable["query"]["query"] for variable in VARIABLES.values() if variable["type"] == "query"]
    asked = {name for expression in [*queries.values(), *variables] for name in _metrics(expression)}
    assert asked <= samples
    assert len(asked) > 10


def _traffic(pair: Pair) -> Counter[str]:
    """Items by decision after a life in short: accepted, deferred, overridden, then without a large model."""
    sentences = [*EASY, *HARDER, *ODD]
    with httpx.Client(base_url=pair.edge.url, timeout=20.0) as client:
        outputs = client.post("/v1/classify", json={"inputs": sentences}).json()["outputs"]
        answers = Counter(output["decision"] for output in outputs)
        # In the middle of what the model says of these, so that both happen whatever the bundle.
        confidences = sorted({output["confidence"] for output in outputs})
        threshold = confidences[len(confidences) // 2]
        doubtful = next(
            text for text, output in zip(sentences, outputs, strict=True) if output["confidence"] < threshold
        )
        _change_policy(client, {"threshold": threshold})
        answers += _classify(client, sentences)

        # Overrides are counted, but not into the deferral ratio.
        for parameters in ({"route": "large"}, {"threshold": 0.0}):
            overridden = client.post("/v1/classify", json={"inputs": sentences, "parameters": parameters})
            assert overridden.status_code == 200

        pair.large.kill()
        _change_policy(client, {"on_remote_failure": "fail"})
        assert client.post("/v1/classify", json={"inputs": doubtful}).status_code == 503
        answers["failed"] += 1
        _change_policy(client, {"on_remote_failure": "degrade"})
        for _ in range(6):  # more than opens the breaker
            answers += _classify(client, [EASY[0], doubtful])
    return answers


def _change_policy(client: httpx.Client, patch: dict[str, Any]) -> None:
    response = admin(client, "PATCH", "policy", json=patch)
    assert response.status_code == 200, response.text


def _classify(client: httpx.Client, texts: list[str]) -> Counter[str]:
    response = client.post("/v1/classify", json={"inputs": texts})
    assert response.status_code == 200, response.text
    return Counter(output["decision"] for output in response.json()["outputs"])


def _variable_values(prometheus: Prometheus) -> dict[str, str]:
    """The dashboard's variables as Grafana fills them in: the first model, every instance of it."""
    values: dict[str, str] = {}
    for name, variable in VARIABLES.items():
        if variable["type"] == "query":
            query = variable["query"]["query"]
            assert query == variable["definition"]
            parsed = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert parsed is not None, query
            found = prometheus.label_values(_filled(parsed[1], values), parsed[2])
            assert found, query
            escaped = [re.escape(value).replace("\\", "\\\\") for value in found]
            values[name] = "|".join(escaped) if variable["multi"] else found[0]
    return values


def _filled(expression: str, values: dict[str, str]) -> str:
    filled = re.sub(r"\$(\w+)", lambda match: (WINDOW | values)[match[1]], expression)
    assert "$" not in filled, expression
    return filled


def _metrics(expression: str) -> set[str]:
    """The metrics that an expression names: its words without functions, labels, strings and durations."""
    rest = re.sub(r'"(?:\\.|[^"\\])*"', "", expression)
    if rest.startswith("label_values("):
        rest = rest.removeprefix("label_values(").rpartition(",")[0]
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring) *\([^)]*\)", " ", rest)
    return set(re.findall(r"\b[A-Za-z_:][\w:]*\b(?! *\()", rest)) - {"and", "or", "unless", "bool", "offset"}


def _compose(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The compose file, its variables filled in. Raises KeyError with the file's own words for a required one."""
    given = {"GATEKEEPER_ADMIN_TOKEN": TOKEN} if environment is None else environment

    def fill(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if kind == "?" and not given.get(name):
            raise KeyError(f"{name}: {text}")
        return given.get(name) or (text if kind == "-" else "")

    text = (ROOT / "docker-compose.yml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):([-?])([^}]*)\}", fill, text))
    return loaded


def _environment(name: str) -> dict[str, str]:
    """Our variables in a service of compose: the image's, then compose's own."""
    service = _compose()["services"][name]
    image = _image_environment(service["build"]["target"])
    ours = {key: value for key, value in image.items() if key.startswith("GATEKEEPER_")}
    return ours | service.get("environment", {})


def _image_environment(target: str) -> dict[str, str]:
    pairs = [pair for step, rest in _stages()[target] if step == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def _variables(kind: type[EdgeSettings] | type[LargeSettings]) -> set[str]:
    """The environment variables that these settings are read from."""
    names: set[str] = set()
    for key, field in kind.model_fields.items():
        match field.validation_alias:
            case AliasChoices(choices=choices):
                names.update(str(choice) for choice in choices)
            case str(alias):
                names.add(alias)
            case _:
                names.add(f"{kind.model_config['env_prefix']}{key.upper()}")
    return names


def _unprefixed(environment: dict[str, str]) -> dict[str, str]:
    """For spawn(), which adds the prefix and chooses the port; it listens on this machine alone."""
    own = ("_HOST", "_PORT")
    return {key.removeprefix("GATEKEEPER_"): value for key, value in environment.items() if not key.endswith(own)}


def _stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name: (instruction, the rest), those of the stage below first."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(None, text.splitlines()):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            below, _, name = rest.split()
            current = stages[name] = list(stages.get(below, []))
        else:
            current.append((instruction, rest))
    return stages


def _yaml(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert ran.returncode == 0, ran.stdout + ran.stderr
