"""docker-compose.yml and the Dockerfile, read: what each service runs, with which environment, and when it is healthy.

Raises ValueError with compose's own words where a required variable is not set.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
_VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")


@dataclass(frozen=True)
class ComposeService:
    """One service as its container would run it: the image's settings under compose's own."""

    name: str
    image: str | None  # None: built by the Dockerfile's stage `target`
    target: str | None
    command: tuple[str, ...]  # with the entry point; of an image that is pulled, what compose says, which may be flags
    environment: Mapping[str, str]
    health: tuple[str, ...] | None  # what to run; exit code 0: healthy
    waits_for: tuple[str, ...]  # services that must be healthy first
    mounts: Mapping[str, str]  # path in the container: a path of the repository, or a volume's name
    grace_s: float
    published: tuple[str, ...]
    raw: Mapping[str, Any]


def read_compose(variables: Mapping[str, str]) -> dict[str, ComposeService]:
    """Every service by name."""
    stages = read_dockerfile()
    return {name: _service(name, raw, stages) for name, raw in read_document(variables)["services"].items()}


def read_document(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file as it is written, its variables filled in."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda match: _filled(match, variables), text))
    return document


def read_dockerfile() -> dict[str, list[tuple[str, str]]]:
    """The stages by name: (instruction, the rest), those of the stage below first."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
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


def image_environment(steps: list[tuple[str, str]]) -> dict[str, str]:
    """What a stage's ENV instructions set."""
    pairs = [pair for step, rest in steps if step == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def _service(name: str, raw: Mapping[str, Any], stages: Mapping[str, list[tuple[str, str]]]) -> ComposeService:
    target = raw["build"]["target"] if "build" in raw else None
    steps = stages[target] if target else []
    built = dict(steps)
    entry = json.loads(built["ENTRYPOINT"]) if "ENTRYPOINT" in built else []
    health = raw.get("healthcheck", {}).get("test")
    if health is None and "HEALTHCHECK" in built:
        health = ["CMD", *json.loads(built["HEALTHCHECK"].partition(" CMD ")[2])]
    depends = raw.get("depends_on", {})
    return ComposeService(
        name=name,
        image=raw.get("image"),
        target=target,
        command=(*entry, *raw.get("command", ())),
        environment=image_environment(steps) | raw.get("environment", {}),
        health=None if health is None else _health(health),
        waits_for=tuple(other for other, how in depends.items() if how["condition"] == "service_healthy"),
        mounts={parts[1]: parts[0] for parts in (volume.split(":") for volume in raw.get("volumes", ()))},
        grace_s=float(raw.get("stop_grace_period", "10s").removesuffix("s")),
        published=tuple(raw.get("ports", ())),
        raw=raw,
    )


def _health(test: list[str]) -> tuple[str, ...]:
    kind, *words = test
    return ("sh", "-c", words[0]) if kind == "CMD-SHELL" else tuple(words)


def _filled(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, text = match.groups()
    if kind == "?" and not variables.get(name):
        raise ValueError(f"{name}: {text}")
    return variables.get(name) or (text if kind == "-" else "")
