"""Every text file is UTF-8, and what is printed never fails, whatever the locale of the machine says."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT
from support.tiny import tiny_rows, write_csv

PACKAGES = ("models", "service", "loadtests", "deploy", "docs")
# C is ASCII without Python's UTF-8 mode and without its coercion of the locale.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def without_encoding(path: Path) -> list[str]:
    """The places of a file that read, write or decode text in the locale's encoding."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls if _is_locale_dependent(call)]


def _is_locale_dependent(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in {"write_text", "read_text"}:
        return True
    if name in {"run", "Popen", "check_output", "TextIOWrapper", "NamedTemporaryFile"} and "text" in named:
        return True
    if name not in {"open", "fdopen"}:
        return False
    values = [*call.args, *([named["mode"]] if "mode" in named else [])]
    texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    modes = [text for text in texts if text and set(text) <= set("rwaxbt+")]
    return any("b" not in mode for mode in modes) or (isinstance(call.func, ast.Name) and not modes)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_text_is_read_or_written_in_the_locale_s_encoding(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [place for path in files for place in without_encoding(path)] == []


def test_the_check_of_encodings_sees_what_it_is_for(tmp_path: Path) -> None:
    lines = [
        "p.write_text(a)",
        "p.open('w')",
        "open(p)",
        "run(c, text=True)",
        "p.open('rb')",
        "p.read_text(encoding='a')",
    ]
    for line in lines:
        call = ast.parse(line).body[0].value  # type: ignore[attr-defined]
        assert _is_locale_dependent(call) == ("b'" not in line and "encoding" not in line), line


def ran(
    directory: Path, *arguments: str, locale: dict[str, str] = ASCII, output: int = subprocess.PIPE
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command under a locale."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1", **locale}
    command = [sys.executable, "-m", "service.cli", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, stdout=output, stderr=subprocess.PIPE, check=False)
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_bundle_with_labels_of_any_script_is_written_and_read_under_any_locale(tmp_path: Path) -> None:
    """The label, a file's name that ASCII lacks, and a column's."""
    rows = [(text, {"timer": "Überweisung", "weather": "перевод"}.get(label, label)) for text, label in tiny_rows()]
    write_csv(tmp_path / "données.csv", rows)
    tuned = ("tune", "--data", "données.csv", "--epochs", "1", "--tuning-epochs", "1", "--output", "small")
    for command in (tuned, ("evaluate", "small", "--data", "données.csv", "--write-card", "--output", "numbers")):
        code, _, said = ran(tmp_path, *command)
        assert code == 0, said
        assert "Traceback" not in said
    manifest = (tmp_path / "small" / "gatekeeper.json").read_text(encoding="utf-8")
    assert "перевод" in manifest
    assert "données.csv" in manifest
    assert "données.csv" in (tmp_path / "small" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "locale",
    [pytest.param(ASCII, id="ASCII"), pytest.param({"PYTHONIOENCODING": "latin-1"}, id="Latin-1")],
)
@pytest.mark.slow
def test_what_a_terminal_lacks_is_printed_escaped(tmp_path: Path, locale: dict[str, str]) -> None:
    write_csv(tmp_path / "перевод.csv", [(0.5, 1), (0.6, 0)], ("confidence", "small_correct"))
    code, printed, said = ran(tmp_path, "evaluate", "--predictions", "перевод.csv", locale=locale)
    assert (code, said) == (0, "")
    assert ": 2 test items" in printed
    assert printed.isascii()
    code, printed, said = ran(tmp_path, "evaluate", "--predictions", os.fsdecode(b"caf\xe9.csv"), locale=locale)
    assert (code, printed) == (2, "")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_reader_that_went_away_and_a_full_disk_end_without_a_traceback(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [(0.5, 1), (0.6, 0)], ("confidence", "small_correct"))
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (("evaluate", "--predictions", "t.csv"), ("--help",)):
        assert ran(tmp_path, *arguments, output=writer) == (141, "", "")
    os.close(writer)
    with Path("/dev/full").open("wb") as full:
        code, _, said = ran(tmp_path, "evaluate", "--predictions", "t.csv", output=full.fileno())
    assert code == 2
    assert said.startswith("gatekeeper: ")
    assert len(said.splitlines()) == 1
