"""The images and the compose file, held against the real service. Prometheus and Grafana: test_monitoring.py.

No container is started. The edge runs as a process with the environment that compose gives it, next to a real Redis and
a real large model.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import AliasChoices
from support.compose import (
    Pair,
    environment_of,
    find_tool,
    read_compose,
    run_tool,
    running_pair,
)
from support.processes import ROOT, admin, eventually, free_port

from deploy.compose import image_environment, read_dockerfile
from service import cli
from service.settings import EdgeSettings, LargeSettings

SETTINGS = {"edge-1": EdgeSettings, "edge-2": EdgeSettings, "large": LargeSettings}


# The image


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes hadolint with no rule ignored."""
    beside_python = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    run_tool([beside_python or find_tool("hadolint"), "--no-color", "Dockerfile"])
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text()


def test_the_build_context_is_what_is_copied() -> None:
    """.dockerignore lets through exactly what the Dockerfile copies, and all of it exists."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for instruction, rest in (step for stage in read_dockerfile().values() for step in stage):
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
    steps = dict(read_dockerfile()[target])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", steps["USER"])
    assert steps["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize(("target", "runs"), [("edge", cli.run_serve), ("large", cli.run_serve_large)])
def test_an_entrypoint_is_a_command_that_exists(target: str, runs: object) -> None:
    """The entry point is in exec form and parses as one of our commands."""
    program, *arguments = json.loads(dict(read_dockerfile()[target])["ENTRYPOINT"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert cli._parser().parse_args(arguments).run is runs


# The compose file


def test_the_compose_file_is_valid() -> None:
    """It validates against the published schema; no network is asked."""
    schema = ["--builtin-schema", "vendor.compose-spec"]
    run_tool([sys.executable, "-m", "check_jsonschema", *schema, "docker-compose.yml"])


def test_an_admin_token_is_required() -> None:
    """Without GATEKEEPER_ADMIN_TOKEN compose refuses to start, and says why."""
    with pytest.raises(ValueError, match="GATEKEEPER_ADMIN_TOKEN: set it to a secret"):
        read_compose({})


def test_images_have_versions() -> None:
    """What is pulled is named to the patch version."""
    images = [service["image"] for service in read_compose()["services"].values() if "image" in service]
    base = re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 3
    assert len(set(base)) == 1
    assert [image for image in images + base if not re.search(r":v?\d+\.\d+\.\d+", image)] == []


def test_nothing_is_published_beyond_this_machine() -> None:
    """Every published port is bound to 127.0.0.1, each to another one."""
    published = [port for service in read_compose()["services"].values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    assert len({port.rpartition(":")[0] for port in published}) == len(published) == 4


def test_one_command_brings_it_up(tmp_path: Path) -> None:
    """make compose-up makes a token that only its owner can read, keeps the one that is there, and asks docker."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\necho "docker $@"\n')
    docker.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
    for name in ("MAKEFLAGS", "MAKELEVEL"):  # `make test` is no part of this: a make inside one says where it is
        environment.pop(name, None)
    tokens = set()
    for _ in range(2):
        done = subprocess.run(
            ["make", "compose-up"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("docker compose up --build --detach --wait\n")
        tokens.add((tmp_path / ".env").read_text())
    assert re.fullmatch(r"GATEKEEPER_ADMIN_TOKEN=[0-9a-f]{32}\n", *tokens)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compose and the image set is a setting of that service, with a value it takes, and leads to the others."""
    services = read_compose()["services"]
    environment = environment_of(name)
    known = _variables(SETTINGS[name])
    assert set(services[name].get("environment", {})) <= known
    assert {key for key in environment if key.startswith("GATEKEEPER_")} <= known

    for key in [key for key in os.environ if key.startswith(("GATEKEEPER_", "REDIS_URL"))]:
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = SETTINGS[name]()
    assert settings.host == "0.0.0.0"
    assert str(settings.port) == dict(read_dockerfile()[services[name]["build"]["target"]])["EXPOSE"]
    assert "command" not in services[name]
    assert "entrypoint" not in services[name]
    if isinstance(settings, EdgeSettings):
        assert settings.redis_url is not None
        assert [(url.host, url.port) for url in settings.remote_url] == [("large", 8001)]
        assert (settings.redis_url.host, settings.redis_url.port) == ("redis", 6379)
        assert {"redis", "large"} == set(services[name]["depends_on"])
        assert [port.rpartition(":")[2] for port in services[name]["ports"]] == [str(settings.port)]
        volumes = [volume.partition(":")[2] for volume in services[name]["volumes"]]
        assert volumes == [str(settings.policy_path.parent)] == [dict(read_dockerfile()["edge"])["VOLUME"]]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stop_waits_for_requests_in_flight(name: str) -> None:
    """Compose kills a service only after the drain window and the time that its requests may take."""
    fields = SETTINGS[name].model_fields
    grace_s = int(read_compose()["services"][name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > fields["drain_s"].default + fields["shutdown_timeout_s"].default


# All of it, running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Compose's edge-1, large and redis as processes."""
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["edge", "large"])
def test_the_health_check_of_an_image(name: str, pair: Pair) -> None:
    """It passes while the service is ready and fails when nothing listens."""
    steps = dict(read_dockerfile()[name])
    program, *arguments = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])
    variable = {"edge": "GATEKEEPER_PORT", "large": "GATEKEEPER_LARGE_PORT"}[name]
    assert program == "python"
    assert variable in image_environment(read_dockerfile()[name])

    def exit_code(port: int) -> int:
        environment = {variable: str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        ).returncode

    assert exit_code(getattr(pair, name).port) == 0
    assert exit_code(free_port()) != 0


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
