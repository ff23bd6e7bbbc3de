"""What the documents promise: links lead somewhere, the API reference is true, commands and settings exist."""

import re
import tomllib
from pathlib import Path

import pytest
from support.processes import ROOT

from docs import write_api, write_settings
from service.cli import main
from service.settings import EdgeSettings, LargeSettings, setting_names
from service.variables import OF_COMMANDS, PREFIX

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "models" / "README.md"])
# [text](target), ![text](target), and the outer target of a picture that is a link
LINK = re.compile(r"\[(?:!\[[^\]]*\]\([^)\s]+\)|[^\]]*)\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = {one or other for one, other in LINK.findall(text)}
    for target in sorted(target for target in targets if not target.startswith(("http://", "https://"))):
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(to), f"{path.name}: {target}"


def test_every_page_is_one_click_from_the_readme() -> None:
    linked = {one or other for one, other in LINK.findall(README.read_text())}
    reached = {(ROOT / target.partition("#")[0]).resolve() for target in linked if "://" not in target}
    assert set(PAGES) - reached - {README} == set()


def test_the_readme_is_read_in_one_sitting() -> None:
    """What is longer than that stands in docs/."""
    assert len(README.read_text().splitlines()) <= 170


def test_the_api_reference_is_the_services_own() -> None:
    """`make docs` writes it anew."""
    assert (ROOT / "docs" / "api.md").read_text() == write_api.page()


def test_the_settings_are_the_services_own() -> None:
    """`make docs` writes them anew."""
    text = (ROOT / "docs" / "settings.md").read_text()
    assert text == write_settings.page()
    assert [name for name in setting_names() if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("settings", [EdgeSettings, LargeSettings])
def test_every_setting_says_what_it_is(settings: type[EdgeSettings | LargeSettings]) -> None:
    assert [name for name, field in settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_and_their_options_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each line in a block that calls `gatekeeper`, and of what a backslash joins to it."""
    blocks = "".join(re.findall(r"```(.*?)```", path.read_text(), re.DOTALL)).replace("\\\n", " ")
    called: dict[str, set[str]] = {}
    for command, rest in re.findall(r"(?:^|[\s/])(?<!SETUSER )gatekeeper ((?:keys )?[a-z][a-z-]*)([^\n#&|;]*)", blocks):
        called.setdefault(command, set()).update(re.findall(r"(?<=\s)--[a-z-]+", rest))
    for command, options in called.items():
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        known = capsys.readouterr().out
        assert ended.value.code == 0, f"gatekeeper {command}"
        assert options <= set(re.findall(r"--[a-z-]+", known)), f"gatekeeper {command}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_exists(path: Path) -> None:
    """Targets of make, our variables and modules to run."""
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) - {"make"} <= targets
    modules = set(re.findall(r"python -m ((?:loadtests|models|deploy|docs)[\w.]*)", text))
    assert [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).is_file()] == []
    known = setting_names() | {f"{PREFIX}{name}" for name in OF_COMMANDS}
    named = set(re.findall(r"\bGATEKEEPER_[A-Z0-9_]*[A-Z0-9]\b", text))
    assert {name for name in named if name not in known} == set()


def test_the_readme_names_the_extras_that_there_are() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set(re.findall(r"'\.\[(\w+)\]'", "".join(path.read_text() for path in PAGES)))
    assert named <= extras


@pytest.mark.parametrize("package", ["service", "models", "loadtests", "deploy", "tests"])
def test_the_map_has_every_folder(package: str) -> None:
    """CONTRIBUTING.md is where a new developer looks."""
    written = (ROOT / "CONTRIBUTING.md").read_text()
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert [name for name in sorted(folders) if f"{name}/" not in written] == []


def test_the_map_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = ("service", "models", "loadtests", "deploy", "docs", "tests")
    there = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    named = {name for name in re.findall(r"[A-Za-z_]+\.py\b", text) if "NAME" not in name and "WHERE" not in name}
    assert len(named) > 50
    assert named - there == set()
