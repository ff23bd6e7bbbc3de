"""`gatekeeper up` and `gatekeeper demo`: what `make serve` and `make demo` run."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.load import output
from support.processes import ROOT, Service, eventually, free_port

pytestmark = pytest.mark.timeout(120)


class Pair:
    """A running `gatekeeper up` in a directory of its own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.port, self.large_port = free_port(), free_port()
        self.output = directory / "up.log"
        self.directory = directory
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("GATEKEEPER_", "REDIS_URL"))}
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "service.cli",
                    "up",
                    "--port",
                    str(self.port),
                    "--large-port",
                    str(self.large_port),
                ],
                cwd=directory,
                env={**clean, "PYTHONPATH": str(ROOT), **environment},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def wait_for(self, text: str, within_s: float = 60.0) -> None:
        eventually(lambda: text in self.output.read_text() or self.process.poll() is not None, text, within_s)
        assert text in self.output.read_text(), self.output.read_text()

    def children(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    running = Pair(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False


def test_up_starts_both_says_how_to_use_them_and_stops_both(pair: Pair) -> None:
    pair.wait_for("Ctrl-C stops both.")
    text = pair.output.read_text()
    token = pair.directory / ".gatekeeper" / "admin-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert str(token.relative_to(pair.directory)) in text
    assert token.read_text().strip() not in text

    # Every command that it prints works as printed.
    commands = text[text.index("classify  ") : text.index("Ctrl-C")].replace("\\\n", " ").splitlines()
    commands = [line.split(maxsplit=1)[1] for line in commands if line.strip()]
    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(["bash", "-c", command], cwd=pair.directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert "gatekeeper_items_total" in done.stdout or '"threshold":' in done.stdout, (command, done.stdout)

    demo = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo", "--url", f"http://127.0.0.1:{pair.port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.count("small") > 5
    assert demo.stdout.count("large") > 5
    assert len(demo.stdout.split("deferral ratio\n")[1].splitlines()) == 3

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # an impatient person, and a supervisor
        pair.process.send_signal(number)
    assert pair.process.wait(30) == 0
    assert not answers(pair.port)
    assert not answers(pair.large_port)
    assert "Traceback" not in pair.output.read_text()


@pytest.mark.slow
def test_signals_while_a_request_waits_for_the_large_model_cut_nothing(pair: Pair) -> None:
    pair.wait_for("Ctrl-C stops both.")
    large, _ = sorted(pair.children())
    os.kill(large, signal.SIGSTOP)
    decisions: list[str] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{pair.port}", timeout=30.0) as client:

        def ask() -> None:
            decisions.append(output(client)["decision"])

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: calls_out(pair) == 1, "the call to the large model")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            pair.process.send_signal(number)
        eventually(lambda: not answers(pair.port), "no more requests")
        os.kill(large, signal.SIGCONT)
        asking.join()
    assert decisions == ["deferred"]
    assert pair.process.wait(30) == 0


def calls_out(pair: Pair) -> int:
    token = (pair.directory / ".gatekeeper" / "admin-token").read_text().strip()
    url = f"http://127.0.0.1:{pair.port}/admin/v1/status"
    (endpoint,) = httpx.get(url, headers={"authorization": f"Bearer {token}"}).json()["remote"]["endpoints"]
    calls: int = endpoint["in_flight"]
    return calls


@pytest.mark.slow
@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_addresses_are_told_as_urls_have_them(tmp_path: Path) -> None:
    pair = Pair(tmp_path, GATEKEEPER_HOST="::1", GATEKEEPER_LARGE_HOST="::1")
    pair.wait_for("Ctrl-C stops both.")
    assert f"ready: edge http://[::1]:{pair.port} " in pair.output.read_text()
    assert f"large model http://[::1]:{pair.large_port}\n" in pair.output.read_text()
    pair.process.send_signal(signal.SIGQUIT)
    assert pair.process.wait(30) == 0


def test_a_dead_child_is_told_and_the_other_one_stopped(pair: Pair) -> None:
    eventually(lambda: len(pair.children()) == 2, "both children", 30.0)
    large, _ = sorted(pair.children())
    os.kill(large, signal.SIGKILL)
    assert pair.process.wait(30) == 2
    assert "the large model was killed by signal 9" in pair.output.read_text()
    assert not answers(pair.port)


def test_no_orphan_is_left_when_it_is_killed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    eventually(lambda: len(pair.children()) == 2, "both children", 30.0)
    children = pair.children()
    pair.process.kill()
    pair.process.wait()
    eventually(lambda: not any(Path(f"/proc/{child}/status").exists() for child in children), "no orphan", 30.0)


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path, edge: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "up", "--port", str(edge.port), "--large-port", str(free_port())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    taken = f"gatekeeper: port {edge.port} on 127.0.0.1 is taken"
    assert done.stderr.strip() == f"{taken}: stop what listens there or choose another"
    assert "starting" not in done.stdout


def test_the_demo_without_a_service_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo", "--url", f"http://127.0.0.1:{free_port()}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "make serve" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
