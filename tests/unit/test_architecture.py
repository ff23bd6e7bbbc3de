"""The import directions of the design, held by reading the code: one table for each package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Each part, a module or a folder, and the parts of its own package that it may import. What is not named is forbidden;
# a part comes after all that it may import, so that there is no cycle.
SERVICE = {
    "outcomes": "",
    "errors": "outcomes",
    "variables": "",
    "settings": "variables",
    "bounded_json": "",
    "redis_connection": "errors",
    "telemetry": "outcomes settings",
    "batching": "errors",
    "remote": "errors bounded_json",
    "access": "errors redis_connection",
    "policy": "errors settings redis_connection telemetry",
    "cascade": "outcomes errors batching policy",
    "images": "errors cascade",
    "server": "errors settings telemetry batching access",
    "runtime": "errors settings telemetry batching remote access policy cascade images server",
    "api": "outcomes errors bounded_json access remote policy cascade server runtime",
    "app": "errors settings server runtime api",
    "commands": "errors settings variables access server",
    "cli": "errors variables settings redis_connection telemetry access server app commands",
}
MODELS = {
    "errors": "",
    "gatekeeper": "",
    "printing": "",
    "threads": "",
    "files": "",
    "generation": "",
    "llm_labels": "",
    "llm_chat": "llm_labels",
    "labels": "errors",
    "operating_points": "",
    "replacing": "errors",
    "progress": "printing",
    "plotting": "",
    "parquet": "errors files",
    "bundle": "errors generation operating_points replacing files parquet",
    "scale": "generation bundle",
    "inference": "errors generation printing threads files progress bundle",
    "scoring": "errors printing files inference",
    "data": "errors generation printing files parquet",
    "levels": "errors operating_points bundle inference data",
    "numbers": "errors operating_points replacing files parquet bundle data",
    "training": "errors gatekeeper generation labels threads replacing files progress bundle inference data",
    "calibration": "errors generation printing files labels operating_points replacing progress bundle inference data "
    "numbers scoring",
    "evaluation": "errors operating_points replacing files progress plotting bundle inference data numbers scoring "
    "calibration",
    "study": "errors gatekeeper generation labels replacing progress plotting bundle inference data numbers scoring "
    "training calibration evaluation",
    "labelling": "errors files llm_chat llm_labels progress replacing bundle data evaluation",
    "commands": "errors files llm_labels printing replacing threads progress bundle inference data levels numbers "
    "scoring training calibration evaluation study labelling",
}
# The console's modules, which a browser loads from service/console.
CONSOLE = {
    "words": "",
    "elements": "",
    "edge": "words elements",
    "token": "elements edge",
    "traffic": "words elements edge",
    "parts": "elements edge",
    "trial": "words elements edge",
    "draft": "words elements edge token",
    "plot": "words elements edge draft",
    "versions": "words elements edge token draft",
    "page": "elements edge token traffic parts trial draft plot versions",
}
CONSOLE_IMPORT = re.compile(r'^import \{ (.+) \} from "\./(\w+)\.js";$', re.MULTILINE)
CONSOLE_EXPORT = re.compile(r"^export (?:async )?(?:function|const|let|class) ([\w$]+)", re.MULTILINE)
# What the service may know of the models, by the part that knows it.
MODELS_IN_SERVICE = {
    "runtime": "bundle errors inference scale",
    "images": "data errors",
    "commands": "bundle data errors evaluation files inference llm_labels printing",
    "cli": "bundle commands errors printing",
    "access": "files",
    "remote": "files llm_chat llm_labels",
    "telemetry": "printing",
}
# Each foreign library is translated, and its errors too, in the files that are named here and nowhere else.
LIBRARIES = {
    "torch": {"runtime.py"},
    "httpx": {"commands/up.py", "commands/demo.py"},
    "aiohttp": {"remote/http.py"},
    "redis": {"redis_connection.py", "policy/redis.py", "access/windows.py"},
    "limits": {"access/windows.py", "access/redis_counts.py", "access/budgets.py"},
    "sqlite3": {"policy/sqlite.py"},
    "prometheus_client": {"telemetry/metrics.py"},
    "httptools": {"server/protocol.py"},
    "PIL": {"images/reader.py"},
    "uvicorn": {"server/run.py", "server/connections.py", "server/protocol.py", "commands/stand_in.py"},
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, and every name by its module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def part(path: Path, package: str) -> str:
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


def parts_known(path: Path, package: str) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith(f"{package}.")}


def sources(package: str) -> Iterator[Path]:
    found = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    assert found
    return iter(found)


@pytest.mark.parametrize(("package", "table"), [("service", SERVICE), ("models", MODELS)])
def test_a_part_imports_only_what_the_table_allows(package: str, table: dict[str, str]) -> None:
    for path in sources(package):
        of = part(path, package)
        assert of in table, f"{path}: give {of} a line in the table"
        beyond = parts_known(path, package) - {of} - set(table[of].split())
        assert not beyond, f"{path} imports {sorted(beyond)}"


@pytest.mark.parametrize("table", [SERVICE, MODELS, CONSOLE])
def test_the_tables_have_no_cycle_and_no_line_too_many(table: dict[str, str]) -> None:
    above: set[str] = set()
    for name, allowed in table.items():
        assert set(allowed.split()) <= above, name
        above.add(name)


@pytest.mark.parametrize(("package", "table"), [("service", SERVICE), ("models", MODELS)])
def test_what_the_table_allows_is_used(package: str, table: dict[str, str]) -> None:
    used: dict[str, set[str]] = {name: set() for name in table}
    for path in sources(package):
        used[part(path, package)] |= parts_known(path, package) - {part(path, package)}
    assert used == {name: set(allowed.split()) for name, allowed in table.items()}


def console_modules() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "service" / "console").glob("*.js")}


def test_the_console_imports_what_its_table_allows_and_only_what_is_there() -> None:
    """A browser refuses the whole page for one name that a module does not export."""
    modules = console_modules()
    used: dict[str, set[str]] = {name: set() for name in modules}
    for name, text in modules.items():
        imports = CONSOLE_IMPORT.findall(text)
        assert len(imports) == len(re.findall(r"\bimport\b.*\bfrom\b|\bimport\(", text)), f"{name}: one form of import"
        for names, other in imports:
            exported = CONSOLE_EXPORT.findall(modules[other])
            assert set(names.split(", ")) <= set(exported), f"{name} imports from {other}"
            used[name].add(other)
    assert used == {name: set(allowed.split()) for name, allowed in CONSOLE.items()}


def test_models_never_import_the_service() -> None:
    assert [path.name for path in sources("models") if "service" in packages(path)] == []


def test_what_the_service_knows_of_the_models() -> None:
    known: dict[str, set[str]] = {}
    for path in sources("service"):
        if names := parts_known(path, "models"):
            known.setdefault(part(path, "service"), set()).update(names)
    assert known == {name: set(allowed.split()) for name, allowed in MODELS_IN_SERVICE.items()}


def test_loadtests_import_neither() -> None:
    # Other servers are to serve the same bundle: what runs in their processes loads it. Nothing of ours runs there.
    served_elsewhere = {"bundle_answers.py"}
    assert {path.name for path in sources("loadtests") if packages(path) & {"service", "models"}} == served_elsewhere


def test_what_runs_in_other_servers_is_not_imported_by_the_load_tests() -> None:
    ours = [path for path in sources("loadtests") if "peers" not in path.parts]
    assert [
        path.name for path in ours if any(name.startswith("loadtests.compare.peers") for name in imported(path))
    ] == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_foreign_library_is_known_in_one_place(library: str) -> None:
    knowing = {str(path.relative_to(ROOT / "service")) for path in sources("service") if library in packages(path)}
    assert knowing == LIBRARIES[library]


def test_the_gate_does_no_io_and_knows_no_torch() -> None:
    assert packages(ROOT / "service" / "cascade" / "gate.py") <= {"dataclasses", "typing", "service"}


def test_the_data_know_no_model_and_the_numbers_know_no_torch() -> None:
    """What reads a table or a file must start in a moment; levels.py is the one reader that asks a model."""
    slow = {"torch", "transformers", "datasets", "matplotlib"}
    models = ROOT / "models"
    quick = [path for path in (models / "data").glob("*.py") if path.stem not in {"levels", "hub_datasets"}]
    quick += [*(models / "numbers").glob("*.py"), *(models / "commands").glob("*.py")]
    quick += [path for path in (models / "scoring").glob("*.py") if path.stem != "causal_judge"]
    quick += [models / f"{name}.py" for name in ("errors", "bundle", "files", "parquet", "printing")]
    asks_models = {"calibrate", "large_answers"}
    quick += [path for path in (models / "calibration").glob("*.py") if path.stem not in asks_models]
    quick += [models / "evaluation" / "results.py"]
    at_the_top = {path.name: top_level_packages(path) & slow for path in quick}
    assert {name: found for name, found in at_the_top.items() if found} == {}


def top_level_packages(path: Path) -> set[str]:
    """What a file imports as soon as it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {alias.name for node in ast.walk(top) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(top) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


def test_matplotlib_is_known_where_pictures_are_drawn() -> None:
    knowing = {path.name for path in sources("models") if "matplotlib" in packages(path)}
    drawing = {"plots.py", "entropy_picture.py", "confidence_axis.py", "curves.py", "picture.py"}
    assert knowing == {"plotting.py", "canvas.py"} | drawing


def test_no_file_is_longer_than_a_reader_keeps_in_mind() -> None:
    """Above 400 lines a file says in its docstring why (`One file because ...`)."""
    long = {
        str(path.relative_to(ROOT))
        for package in ("service", "models", "loadtests", "deploy", "tests")
        for path in sources(package)
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
        and "One file because" not in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    }
    long |= {f"{name}.js" for name, text in console_modules().items() if len(text.splitlines()) > 400}
    assert long == set()
