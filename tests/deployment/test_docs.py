"""What the documents promise: links lead somewhere, the API reference is true, commands and settings exist."""

import re
import tomllib
from pathlib import Path

import pytest
from support.processes import ROOT

from docs.write_api import page
from service.settings import EdgeSettings, LargeSettings

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "models" / "README.md"])
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


def test_every_document_is_one_click_from_the_readme() -> None:
    linked = {one or other for one, other in LINK.findall((ROOT / "README.md").read_text())}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert pages - {target.partition("#")[0] for target in linked} == set()


def test_the_api_reference_is_the_services_own() -> None:
    """`make docs` writes it anew."""
    assert (ROOT / "docs" / "api.md").read_text() == page()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_exists(path: Path) -> None:
    """Targets of make, our variables and modules to run."""
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) - {"make"} <= targets
    modules = set(re.findall(r"python -m ((?:loadtests|models|deploy|docs)[\w.]*)", text))
    assert [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).is_file()] == []
    fields = [*EdgeSettings.model_fields.items(), *LargeSettings.model_fields.items()]
    known = {str(field.validation_alias or f"GATEKEEPER_{name.upper()}") for name, field in fields}
    known |= {"GATEKEEPER_DATA_DIR", "GATEKEEPER_LOAD_KEY", "GATEKEEPER_LOAD_DATA", "GATEKEEPER_API_KEY"}
    named = set(re.findall(r"\bGATEKEEPER_[A-Z0-9_]*[A-Z0-9]\b", text))
    assert {name for name in named if name not in known} == set()


def test_the_readme_names_the_extras_that_there_are() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set(re.findall(r"'\.\[(\w+)\]'", "".join(path.read_text() for path in PAGES)))
    assert named <= extras
