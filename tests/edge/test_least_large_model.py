"""The large model that docs/operations.md shows, run as it stands there, behind an edge that refuses foreign labels."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.load import ODD
from support.processes import ROOT, Service, admin, eventually, free_port, spawn_edge, stopping


@pytest.fixture
def least(tmp_path: Path) -> Iterator[Service]:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    port = free_port()
    path = tmp_path / "large.py"
    path.write_text(program.replace("8001", str(port)))
    log = tmp_path / "large.log"
    with log.open("wb") as stream:
        large = Service(subprocess.Popen([sys.executable, str(path)], stdout=stream, stderr=stream), port, log)
    with stopping(large):
        yield large


def test_the_least_large_model_answers_an_edge(least: Service, tmp_path: Path) -> None:
    edge = spawn_edge(tmp_path, least.url, REMOTE_FOREIGN_LABELS="refuse")
    with stopping(edge), httpx.Client(base_url=edge.url, timeout=20.0) as client:
        edge.wait_ready()

        def answered() -> bool:
            outputs = client.post("/v1/classify", json={"inputs": [ODD, ODD]}).json()["outputs"]
            return {(entry["decision"], entry["label"]) for entry in outputs} == {("deferred", "balance")}

        eventually(answered, "answers of the large model", 15.0)
        (endpoint,) = admin(client, "GET", "status").json()["remote"]["endpoints"]
        assert endpoint["labels_match"] is None, "it tells no labels, which is allowed"
    assert "a bad answer" not in edge.log.read_text()
