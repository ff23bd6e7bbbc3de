"""SIGTERM: not ready first, what is in flight ends, exit 0, not one request lost.

.venv/bin/python -m pytest -n0 -m fault tests/test_fault_drain.py
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import httpx
import pytest
from background import Upstream
from faults import Load, Row
from faulty_server import Turn
from load import EASY, ODD
from processes import Service, eventually, spawn_edge, stopping

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


class Slow:
    """A large model that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self._go_on = threading.Event()

    def go_on(self) -> None:
        self._go_on.set()

    async def __call__(self, turn: Turn) -> None:
        if turn.request_line.startswith("POST"):
            self.asked += len(turn.texts)
            while not self._go_on.is_set():
                await asyncio.sleep(0.02)
            await turn.classify()
        else:
            await turn.answer(404)


class InFlight:
    """Deferred requests from threads, for as long as the context lasts."""

    def __init__(self, edge: Service, count: int) -> None:
        self.decisions: list[str] = []
        self._edge = edge
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        answer = httpx.post(f"{self._edge.url}/v1/classify", json={"inputs": [EASY, ODD]}, timeout=30.0)
        outputs = answer.json()["outputs"] if answer.status_code == 200 else []
        self.decisions.append(outputs[1]["decision"] if outputs else str(answer.status_code))


def ready(edge: Service) -> bool:
    return httpx.get(f"{edge.url}/readyz", timeout=10.0).status_code == 200


def test_sigterm(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """Under load that goes elsewhere once /readyz is red, and with deferred requests on their way: all are answered."""
    upstream.accept()
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, DRAIN_S="3")
    with stopping(edge):
        edge.wait_ready(90.0)
        slow = Slow()
        with Load(edge.url) as load:
            load.more("deferred")
            upstream.behave(slow)
            with InFlight(edge, 8) as waiting:
                eventually(
                    lambda: slow.asked >= 10,  # the load's two among them
                    "deferred requests on their way",
                    15.0,
                )
                edge.process.terminate()
                eventually(lambda: not ready(edge), "not ready first")
                # Still accepting, and what is on its way when the window closes is answered too.
                assert httpx.post(f"{edge.url}/v1/classify", json={"inputs": EASY}, timeout=10.0).status_code == 200
                eventually(lambda: not listening(edge), "no more connections", 15.0)
                asking = threading.Thread(target=load.stop)
                asking.start()
                slow.go_on()
            asking.join()
        with fault.healing():
            assert edge.process.wait(20) == 0
    assert waiting.decisions == ["deferred"] * 8
    fault.account(load)
    fault.count(9)
    fault.tell("SIGTERM with a drain window of 3 s, load, deferred requests", "all answered; /readyz 503 first; exit 0")


def test_sigterm_twice(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """The second ends the drain window and no request."""
    upstream.accept()
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, DRAIN_S="60")
    with stopping(edge):
        edge.wait_ready(90.0)
        slow = Slow()
        upstream.behave(slow)
        with InFlight(edge, 8) as waiting:
            eventually(lambda: slow.asked == 8, "deferred requests on their way", 15.0)
            edge.process.terminate()
            eventually(lambda: not ready(edge), "not ready first")
            edge.process.terminate()
            eventually(lambda: not listening(edge), "no more connections")
            slow.go_on()
        with fault.healing():
            assert edge.process.wait(20) == 0
    assert waiting.decisions == ["deferred"] * 8
    fault.count(8)
    fault.tell("SIGTERM twice, 8 deferred requests on their way", "all answered; the second ends the window; exit 0")


def listening(edge: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", edge.port), timeout=5.0).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sigterm_with_slow_clients(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """Idle connections and half-sent requests do not keep an edge from ending."""
    upstream.accept()
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, CLIENT_TIMEOUT_S="3")
    half = (b"", b"POST /v1/cla", b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    with stopping(edge):
        edge.wait_ready(90.0)
        with Load(edge.url) as load:
            load.more("deferred")
        with ExitStack() as opened:
            for number in range(60):
                address = ("127.0.0.1", edge.port)
                connection = opened.enter_context(socket.create_connection(address, timeout=10.0))
                connection.sendall(half[number % 3])
            assert ready(edge)
            with fault.healing():
                edge.process.terminate()
                assert edge.process.wait(25) == 0
    fault.account(load)
    fault.tell("SIGTERM with 60 idle and half-sent connections", "closed, a half body with 408; exit 0")
