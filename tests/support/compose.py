"""docker-compose.yml and the Dockerfile as they would take effect, and an edge with its large model started by them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.processes import ROOT, TOKEN, Service, spawn, stopping
from support.redis_server import RedisServer

from deploy.compose import image_environment, read_dockerfile, read_document


@dataclass
class Pair:
    """An edge and its large model."""

    edge: Service
    large: Service


@contextmanager
def running_pair(directory: Path) -> Iterator[Pair]:
    """Compose's edge-1, large and redis as processes: their environments and commands, with other hosts and paths."""
    command = read_compose()["services"]["redis"]["command"]
    large = spawn("serve-large", directory / "large.log", **unprefixed(environment_of("large")))
    with stopping(large), RedisServer(None, *command[1:]) as redis:
        elsewhere = {
            "http://large:8001": large.url,
            "redis://redis:6379": f"redis://127.0.0.1:{redis.port}",
            "/var/lib/gatekeeper": str(directory),
        }
        environment = json.dumps(environment_of("edge-1"))
        for theirs, ours in elsewhere.items():
            assert theirs in environment
            environment = environment.replace(theirs, ours)
        edge = spawn("serve", directory / "edge.log", **unprefixed(json.loads(environment)))
        with stopping(edge):
            edge.wait_ready(within_s=60.0)
            large.wait_ready(within_s=60.0)
            yield Pair(edge, large)


def read_compose(variables: dict[str, str] | None = None) -> dict[str, Any]:
    """The compose file with the variables that it requires. Raises ValueError with the file's own words for one."""
    return read_document({"GATEKEEPER_ADMIN_TOKEN": TOKEN} if variables is None else variables)


def environment_of(name: str) -> dict[str, str]:
    """Our variables in a service of compose: the image's, then compose's own."""
    service = read_compose()["services"][name]
    image = image_environment(read_dockerfile()[service["build"]["target"]])
    ours = {key: value for key, value in image.items() if key.startswith("GATEKEEPER_")}
    return ours | service.get("environment", {})


def unprefixed(environment: dict[str, str]) -> dict[str, str]:
    """For spawn(), which adds the prefix and chooses the port; it listens on this machine alone."""
    own = ("_HOST", "_PORT")
    return {key.removeprefix("GATEKEEPER_"): value for key, value in environment.items() if not key.endswith(own)}


def read_yaml(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def find_tool(name: str) -> str:
    """Its path; without one the test is skipped, and says so."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run_tool(command: list[str]) -> None:
    """In the root of the repository; what it prints is the failure's message."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
