"""The import directions of the design, held by reading the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# What each part of the service may import of the service, besides nothing.
PURE = {
    "gate": set(),
    "breaker": set(),
    "batch_choice": set(),
    "pace": set(),
    "runner": {"errors"},
    "jobs": {"errors", "batch_choice"},
    "batcher": {"errors", "jobs", "pace", "runner"},
    "protocol": set(),
    "shedding": {"errors"},
    "connections": {"protocol", "shedding"},
    "outage": set(),
    "metrics": {"outage"},
    "forecast": {"metrics", "policy"},
    "api_keys": {"errors"},
    "key_commands": {"errors", "api_keys"},
    "redis_url": {"errors"},
    "rate_limits": {"errors", "api_keys", "redis_url"},
    "policy": set(),
    "live_policy": {"errors", "policy"},
    "policy_store": {"errors", "settings", "policy", "redis_url"},
    "bounded_json": set(),
    "intake": {"errors"},
    "sites": {"errors"},
    "exchange": {"errors"},
    "remote_wire": {"errors", "bounded_json"},
    "endpoint": {"errors", "breaker", "exchange", "remote_wire"},
    "remote": {"errors", "breaker", "exchange", "remote_wire", "endpoint"},
    "packing": {"errors", "exchange", "remote_wire", "remote"},
    "cascade": {"errors", "gate", "metrics", "policy", "live_policy", "remote", "batcher", "jobs"},
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_models_never_import_the_service() -> None:
    files = list((ROOT / "models").rglob("*.py"))
    assert files
    assert [path.name for path in files if "service" in packages(path)] == []


def test_loadtests_import_neither() -> None:
    files = list((ROOT / "loadtests").rglob("*.py"))
    assert files
    # Other servers are to serve the same bundle: what runs in their processes loads it. Nothing of ours runs there.
    served_elsewhere = {"bundle_answers.py"}
    assert {path.name for path in files if packages(path) & {"service", "models"}} == served_elsewhere


def test_what_runs_in_other_servers_is_not_imported_by_the_load_tests() -> None:
    files = list((ROOT / "loadtests").glob("*.py"))
    assert files
    assert [path.name for path in files if any(name.startswith("loadtests.peers") for name in imported(path))] == []


def test_only_the_composition_root_the_command_the_demo_and_the_image_reader_know_the_models() -> None:
    no_model = {"models.files", "models.printing"}  # how a file is read, and others' words are shown
    files = (ROOT / "service").rglob("*.py")
    knowing = {path.name for path in files if any(f"{m}."[:7] == "models." for m in imported(path) - no_model)}
    assert knowing == {"runtime.py", "cli.py", "demo.py", "images.py"}


@pytest.mark.parametrize("name", PURE)
def test_a_layer_imports_only_what_is_below_it(name: str) -> None:
    own = {module.split(".")[1] for module in imported(ROOT / "service" / f"{name}.py") if module[:8] == "service."}
    assert own <= PURE[name]


@pytest.mark.parametrize(
    "library", ["torch", "httpx", "aiohttp", "redis", "limits", "sqlite3", "prometheus_client", "httptools"]
)
def test_a_foreign_library_is_known_in_one_place(library: str) -> None:
    places = {
        "torch": {"runtime.py"},
        "httpx": {"pair.py", "demo.py"},
        "aiohttp": {"exchange.py"},
        "redis": {"policy_store.py", "rate_limits.py", "redis_url.py"},
        "limits": {"rate_limits.py"},
        "sqlite3": {"policy_store.py"},
        "prometheus_client": {"metrics.py"},
        "httptools": {"protocol.py"},
        "PIL": {"images.py"},
    }
    knowing = {path.name for path in (ROOT / "service").rglob("*.py") if library in packages(path)}
    assert knowing == places[library]


def test_nothing_below_the_app_knows_the_api() -> None:
    files = (ROOT / "service").glob("*.py")
    knowing = {path.name for path in files if any(f"{module}."[:12] == "service.api." for module in imported(path))}
    assert knowing == {"app.py"}


def test_the_gate_does_no_io_and_knows_no_torch() -> None:
    assert packages(ROOT / "service" / "gate.py") <= {"dataclasses", "typing"}


def test_the_data_know_no_model_and_the_numbers_know_no_torch() -> None:
    """What reads a table or a file must start in a moment; levels.py is the one reader that asks a model."""
    slow = {"torch", "transformers", "datasets", "matplotlib"}
    quick = [path for path in (ROOT / "models" / "data").glob("*.py") if path.stem not in {"levels", "hub_datasets"}]
    names = (
        "errors",
        "bundle",
        "predictions",
        "metrics",
        "bootstrap",
        "density",
        "reliability",
        "thresholds",
        "certify",
    )
    quick += [ROOT / "models" / f"{name}.py" for name in (*names, "results", "commands", "cli")]
    at_the_top = {path.name: top_level_packages(path) & slow for path in quick}
    assert {name: found for name, found in at_the_top.items() if found} == {}


def top_level_packages(path: Path) -> set[str]:
    """What a file imports as soon as it is imported."""
    tree = ast.parse(path.read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {alias.name for node in ast.walk(top) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(top) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


def test_matplotlib_is_known_where_pictures_are_drawn() -> None:
    knowing = {path.name for path in (ROOT / "models").rglob("*.py") if "matplotlib" in packages(path)}
    assert knowing == {
        "canvas.py",
        "lettering.py",
        "confidence_axis.py",
        "plots.py",
        "study_curves.py",
        "study_picture.py",
    }
