"""Signals: not ready first, what is in flight ends, exit 0, not one request lost. Two starts on one port.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_drain.py
"""

import asyncio
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import pytest
from support.background import Upstream
from support.faults import Load, Row
from support.faulty_server import Turn
from support.load import EASY, ODD
from support.processes import Service, eventually, spawn, spawn_edge, stopping
from support.redis_server import free_port

from service.server.run import AGAIN_S

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


class Slow:
    """A large model that answers when it is told to, or after its time."""

    def __init__(self, takes_s: float = 60.0) -> None:
        self.asked = 0
        self._takes_s = takes_s
        self._go_on = threading.Event()

    def go_on(self) -> None:
        self._go_on.set()

    async def __call__(self, turn: Turn) -> None:
        if turn.request_line.startswith("POST"):
            self.asked += len(turn.texts)
            answers_at = asyncio.get_running_loop().time() + self._takes_s
            while not self._go_on.is_set() and asyncio.get_running_loop().time() < answers_at:
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


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((signal.SIGTERM, signal.SIGTERM), id="TERM-TERM"),
        pytest.param((signal.SIGTERM, signal.SIGINT), id="TERM-INT"),
        pytest.param((signal.SIGINT, signal.SIGINT), id="INT-INT"),
        pytest.param((signal.SIGINT, signal.SIGTERM), id="INT-TERM"),
        pytest.param((signal.SIGHUP, signal.SIGHUP), id="HUP-HUP"),
        pytest.param((signal.SIGTERM,) * 10, id="TERM-10"),
    ],
)
def test_more_signals(
    numbers: tuple[signal.Signals, ...], tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row
) -> None:
    """Whatever they are, they cut nothing, also not when the drain window would have ended by itself."""
    upstream.accept()
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, DRAIN_S="1")
    with stopping(edge):
        edge.wait_ready(90.0)
        slow = Slow(takes_s=3.0)
        upstream.behave(slow)
        with InFlight(edge, 4) as waiting:
            eventually(lambda: slow.asked == 4, "deferred requests on their way", 15.0)
            edge.process.send_signal(numbers[0])
            eventually(lambda: not ready(edge), "not ready first")
            for number in numbers[1:]:
                edge.process.send_signal(number)
            eventually(lambda: not listening(edge), "no more connections")
        with fault.healing():
            assert edge.process.wait(20) == 0
    assert waiting.decisions == ["deferred"] * 4
    fault.count(4)
    names = " and ".join(number.name for number in numbers) if len(numbers) == 2 else "ten SIGTERMs"
    fault.tell(
        f"{names} while 4 requests wait longer for the large model than the drain window", "all answered; exit 0"
    )


@pytest.mark.parametrize("insisting", [True, False], ids=["third", "SIGQUIT"])
def test_cut(insisting: bool, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """Who insists, after a pause, has an end of it."""
    upstream.accept()
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, DRAIN_S="60")
    with stopping(edge):
        edge.wait_ready(90.0)
        slow = Slow()
        upstream.behave(slow)
        with InFlight(edge, 4) as waiting:
            eventually(lambda: slow.asked == 4, "deferred requests on their way", 15.0)
            edge.process.send_signal(signal.SIGTERM if insisting else signal.SIGQUIT)
            if insisting:
                eventually(lambda: not ready(edge), "not ready first")
            with fault.healing():
                while insisting and not ended(edge):
                    assert len(waiting.decisions) == 0
                    edge.process.send_signal(signal.SIGTERM)
                assert edge.process.wait(20) == 0
        assert "cutting off what is not answered yet" in edge.log.read_text()
    assert waiting.decisions == ["500"] * 4
    fault.count(4)
    fault.tell(
        "SIGTERM three times, the last after a pause" if insisting else "SIGQUIT",
        "what is not answered yet is cut off with 500; exit 0",
    )


def ended(edge: Service) -> bool:
    """Whether it ends within the pause that makes a third signal count."""
    try:
        edge.process.wait(AGAIN_S + 0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_signals_to_the_last(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """They go on until the process has ended, and do not change how."""
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url)
    with stopping(edge):
        edge.wait_ready(90.0)

        def gone() -> bool:
            edge.process.send_signal(signal.SIGTERM)
            edge.process.send_signal(signal.SIGINT)
            return edge.process.poll() is not None

        with fault.healing():
            eventually(gone, "the end", 20.0)
        assert edge.process.returncode == 0
        assert "Traceback" not in edge.log.read_text()
    fault.tell("SIGTERM and SIGINT every 20 ms until the process is gone", "exit 0")


def test_while_loading(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """A start is not finished first: that may take a minute."""
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url)
    with stopping(edge):
        eventually(lambda: hears(edge, signal.SIGTERM), "the last step of the start: to load the model", 60.0)
        with fault.healing():
            edge.process.terminate()
            assert edge.process.wait(20) == 0
        assert "listening" not in edge.log.read_text()
        assert "Traceback" not in edge.log.read_text()
    fault.tell("SIGTERM while the model is loaded", "connections are refused as before; exit 0 at once")


def hears(edge: Service, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{edge.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_two_starts(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """One listens, the other says why not."""
    directory = tmp_path_factory.mktemp("edge")
    port = free_port()
    both = [spawn("serve", directory / f"{name}.log", port, POLICY_PATH=str(directory / name)) for name in "ab"]
    with stopping(*both), fault.healing():
        refused = eventually(lambda: [edge for edge in both if edge.process.poll() is not None], "one gives up", 60.0)
        (serving,) = (edge for edge in both if edge not in refused)
        serving.wait_ready(90.0)
        assert [edge.process.returncode for edge in refused] == [2]
        taken = f"gatekeeper: port {port} on 127.0.0.1 is taken: stop what listens there or choose another"
        assert refused[0].log.read_text().strip() == taken
    fault.tell("two starts on one port at once", "one serves; the other says that the port is taken and exits with 2")


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
