"""An edge whose model hangs, dies or raises: what clients see, what /livez says, how it ends. Real processes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support.processes import Service, eventually, spawn_edge, stopping
from support.redis_server import free_port

FAULT = "hang:trap;die:deadly;raise:poison;lose:lossy"


@pytest.fixture
def hang_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model hangs while it exists."""
    path = tmp_path / "hang"
    path.touch()
    monkeypatch.setenv("FAULT_FILE", str(path))
    return path


@pytest.fixture
def edge(tmp_path: Path, hang_file: Path) -> Iterator[Service]:
    edge = spawn_edge(
        tmp_path,
        f"http://127.0.0.1:{free_port()}",
        fault=FAULT,
        RUNNER="thread",
        MODEL_TIMEOUT_S="2",
        SHUTDOWN_TIMEOUT_S="1",
    )
    with stopping(edge):
        edge.wait_ready()
        yield edge


def ask(edge: Service, *texts: str) -> httpx.Response:
    return httpx.post(f"{edge.url}/v1/classify", json={"inputs": list(texts)}, timeout=20.0)


def alive(edge: Service) -> bool:
    return httpx.get(f"{edge.url}/livez", timeout=5.0).status_code == 200


@pytest.mark.slow
def test_a_hang_turns_livez_red_heals_by_itself_and_does_not_keep_the_process(edge: Service, hang_file: Path) -> None:
    reached = hang_file.with_name("hang.reached")
    with ThreadPoolExecutor(2) as pool:
        caught = pool.submit(ask, edge, "a trap")
        eventually(reached.exists, "the model hangs")
        waiting = pool.submit(ask, edge, "what is my balance")
        eventually(lambda: not alive(edge), "/livez is red")
        for answer in (caught.result(), waiting.result(), ask(edge, "what is my balance")):
            assert answer.status_code == 503
            assert answer.json()["type"].endswith("model-down")
            assert answer.headers["retry-after"] == "5"
    hang_file.unlink()
    eventually(lambda: alive(edge), "/livez is green again")
    assert ask(edge, "what is my balance").status_code == 200
    log = edge.log.read_text()
    assert "the model hangs" in log
    assert "the model answers again" in log
    assert "a trap" not in log

    hang_file.touch()
    reached.unlink()
    with ThreadPoolExecutor(1) as pool:
        caught = pool.submit(ask, edge, "a trap")
        eventually(reached.exists, "the model hangs again")
        assert edge.terminate() == 0
        assert "stopped" in edge.log.read_text()
        with suppress(httpx.TransportError):
            assert caught.result().status_code >= 500


def test_a_model_thread_that_dies_stays_red_and_answers_503(edge: Service) -> None:
    for text in ("poison", "lossy"):
        answer = ask(edge, "what is my balance", text)
        assert answer.status_code == 500
        assert answer.json()["type"].endswith("model-failed")
    assert alive(edge)
    assert ask(edge, "a deadly text").status_code == 503
    assert not alive(edge)
    assert httpx.get(f"{edge.url}/livez").text == "the model has ended with SystemExit\n"
    assert ask(edge, "what is my balance").status_code == 503
    assert "deadly" not in edge.log.read_text()
    assert edge.terminate() == 0
