"""A virtual environment for each peer, made on first use from its pinned requirements (peers/NAME.txt)."""

import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from loadtests.common.servers import BenchFailed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".venv-peers"
CONSTRAINTS = ROOT / "constraints.txt"
INSTALL_S = 1_800.0


def environment_python(name: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there or its requirements have changed.

    Raises BenchFailed with the last thing that pip said.
    """
    requirements = HERE / "peers" / f"{name}.txt"
    directory = ENVIRONMENTS / name
    marker, digest = directory / ".ready", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = directory / "bin" / "python"
    if marker.exists() and marker.read_text(encoding="utf-8") == digest:
        return python
    print(f"installing {name} into {directory}, once: minutes", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(directory)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = [line for line in requirements.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    if torch:
        # alone and first: asked for by another package it could come as a build of several GB
        _run([*pip, "-c", str(CONSTRAINTS), *torch])
    _run([*pip, "-r", str(requirements)])
    marker.write_text(digest, encoding="utf-8")
    return python


def environment_versions(name: str) -> dict[str, str]:
    """Every package in a peer's environment with its version."""
    folders = [str(path) for path in (ENVIRONMENTS / name / "lib").glob("python*/site-packages")]
    return {found.metadata["Name"].lower(): found.version for found in distributions(path=folders)}


def _run(command: list[str]) -> None:
    try:
        finished = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=INSTALL_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{' '.join(command[1:5])} did not end after {INSTALL_S:g} s") from None
    if finished.returncode != 0:
        said = [line for line in finished.stderr.splitlines() if "ERROR" in line] or finished.stderr.splitlines()
        raise BenchFailed(f"could not be installed: {(said or ['pip said nothing'])[-1].strip()[:300]}")
