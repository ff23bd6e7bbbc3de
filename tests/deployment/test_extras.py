"""What an edge does without: a container of its own installs none of the offline job's libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

JOB = ("transformers", "scipy", "sklearn", "matplotlib", "jinja2")
# The import system takes None for "is not there".
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({JOB!r}))\n"
CLASSIFY = """
import asyncio
from pathlib import Path
from service.runtime import open_edge
from service.settings import EdgeSettings

async def main():
    async with open_edge(EdgeSettings(bundle=Path(sys.argv[1]))) as runtime:
        print(runtime.name)

asyncio.run(main())
"""


def without_the_job(program: str, *arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}
    environment |= {"GATEKEEPER_POLICY_PATH": str(directory / "policy.db"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT + program, *arguments]
    return subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clinc150-small", "fashion-mnist-small"])
def test_the_packaged_edges_run_without_the_job(name: str, bundles: Path, tmp_path: Path) -> None:
    done = without_the_job(CLASSIFY, str(bundles / name), directory=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_a_command_that_needs_more_names_the_extra(bundles: Path, tmp_path: Path) -> None:
    program = "from service.cli import main; sys.exit(main(sys.argv[1:]))"
    small = str(bundles / "clinc150-small")
    done = without_the_job(
        program, "calibrate", small, "--target-accuracy", "0.9", "--certainty", "0.9", directory=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gatekeeper: this needs ")
    assert done.stderr.endswith(": from the checkout, pip install -e '.[job]'\n")
    assert done.stderr.count("\n") == 1
