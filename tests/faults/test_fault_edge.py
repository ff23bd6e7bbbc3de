"""Faults inside an edge: its model, its disk, its clock, its process.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_edge.py -k disk
"""

import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from support.background import Upstream
from support.faults import Load, Row
from support.load import EASY, ODD
from support.processes import Service, admin, eventually, spawn_edge, stopping

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

DAY_S = 86_400


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By how many seconds the edge's wall clock is off."""
    file = tmp_path_factory.mktemp("clock") / "offset"
    file.write_text("0")
    return file


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, clock: Path) -> Iterator[Service]:
    faults = f"raise:poison;clock:{clock}"
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, fault=faults, BREAKER_OPEN_S="0.3")
    with stopping(edge):
        edge.wait_ready(90.0)
        yield edge


@pytest.fixture
def client(edge: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        yield client


def test_model_raises(edge: Service, client: httpx.Client, fault: Row) -> None:
    """A text on which the model raises fails alone: its neighbours in the batch are answered, the edge stays alive."""
    with Load(edge.url, threads=4) as load:
        load.more("deferred")
        for _ in range(30):
            poisoned = client.post("/v1/classify", json={"inputs": [EASY, "poison"]})
            assert poisoned.status_code == 500
            assert poisoned.headers["content-type"] == "application/problem+json"
        load.more("deferred")
        assert client.get("/livez").status_code == 200
        with fault.healing():
            assert client.post("/v1/classify", json={"inputs": EASY}).status_code == 200
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell("edge: the model raises on one text", "500 for the request with that text, nothing for the others")


def test_clock(edge: Service, client: httpx.Client, clock: Path, fault: Row) -> None:
    """A wall clock that jumps a day ahead and two back changes the date of a policy and nothing else."""
    with Load(edge.url) as load:
        load.more("deferred")
        for days in (1, -1, 0):
            clock.write_text(str(days * DAY_S))
            load.more("deferred", 20)
            hurried = client.post("/v1/classify", json={"inputs": ODD}, headers={"x-request-timeout-ms": "5000"})
            assert hurried.json()["outputs"][0]["decision"] == "deferred"
            written = admin(client, "PATCH", "policy", json={"note": f"{days} days"}).json()
            off = datetime.fromisoformat(written["updated_at"]) - datetime.now(UTC) - timedelta(days=days)
            assert abs(off) < timedelta(hours=1)
            assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
            assert 0 < admin(client, "GET", "status").json()["uptime_s"] < 3_600
        versions = [entry["version"] for entry in admin(client, "GET", "policy/history").json()["versions"]]
        assert versions == sorted(versions, reverse=True)
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell("edge: the clock jumps a day ahead, two back, one ahead", "nothing; updated_at of a policy is off")


@contextmanager
def file_size_limit(edge: Service) -> Iterator[None]:
    """No file of the edge may grow: for SQLite what a full disk is."""
    wal = edge.log.with_name("policy.db-wal")
    size = max(wal.stat().st_size, edge.log.stat().st_size + 4_096)
    _, hard = resource.prlimit(edge.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(edge.process.pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(edge.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def write_until_refused(client: httpx.Client) -> httpx.Response:
    refused: httpx.Response = eventually(
        lambda: (answer := admin(client, "PATCH", "policy", json={"note": "x" * 400})).status_code != 200 and answer,
        "a refused write",
        20.0,
    )
    return refused


def check_full_disk(edge: Service, client: httpx.Client, fault: Row, full: Iterator[None], words: str) -> None:
    assert admin(client, "PATCH", "policy", json={"note": "before"}).status_code == 200
    with Load(edge.url) as load:
        load.more("deferred")
        with full:  # type: ignore[attr-defined]
            refused = write_until_refused(client)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            kept = admin(client, "GET", "policy").json()
            load.more("deferred", 20)
            assert client.get("/readyz").status_code == 200
        with fault.healing():
            eventually(
                lambda: admin(client, "PATCH", "policy", json={"note": "after"}).status_code == 200, "a write", 20.0
            )
    history = [entry["version"] for entry in admin(client, "GET", "policy/history").json()["versions"]]
    assert kept["version"] in history
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell(f"edge: disk full under the SQLite file ({words})", "policy writes 503 with Retry-After, nothing else")


def test_disk_limit(edge: Service, client: httpx.Client, fault: Row) -> None:
    """Where no file may grow, writes of the policy are refused; requests go on, and so do writes afterwards."""
    check_full_disk(edge, client, fault, file_size_limit(edge), "RLIMIT_FSIZE")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mount: a tmpfs needs root's rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4_096)
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


def test_disk_full(small_disk: Path, tmp_path: Path, upstream: Upstream, fault: Row) -> None:
    """The same with a file system that is full."""
    edge = spawn_edge(tmp_path, upstream.url, POLICY_PATH=str(small_disk / "policy.db"))
    with stopping(edge):
        edge.wait_ready(90.0)
        with httpx.Client(base_url=edge.url, timeout=20.0) as client:
            check_full_disk(edge, client, fault, filled(small_disk), "a full tmpfs")


def red(edge: Service) -> bool:
    """What a supervisor sees: no answer is as bad as a bad one."""
    try:
        return httpx.get(f"{edge.url}/livez", timeout=2.0).status_code == 503
    except httpx.TimeoutException:
        return True
    except httpx.TransportError:  # the process ends, which is the other way to be noticed
        return False


@pytest.mark.parametrize("kind", ["hang", "die"])
@pytest.mark.parametrize("runner", ["thread", "inline"])
def test_model(kind: str, runner: str, tmp_path: Path, upstream: Upstream, fault: Row) -> None:
    """A model that hangs or whose thread dies turns /livez red or ends the process, and nobody waits for ever."""
    settings = {"RUNNER": runner, "MODEL_TIMEOUT_S": "0.5"}
    edge = spawn_edge(tmp_path, upstream.url, fault=f"{kind}:quicksand", **settings)
    told: list[str] = []

    def ask(text: str, headers: dict[str, str]) -> None:
        try:
            answer = httpx.post(f"{edge.url}/v1/classify", json={"inputs": text}, headers=headers, timeout=30.0)
            told.append(str(answer.status_code))
        except httpx.TransportError:
            told.append("no answer")

    with stopping(edge):
        edge.wait_ready(90.0)
        with Load(edge.url) as load:
            load.more("deferred")
        asking = [threading.Thread(target=ask, args=("quicksand", {}))]
        asking[0].start()
        eventually(lambda: edge.process.poll() is not None or red(edge), "a red /livez or the end", 15.0)
        if runner == "thread" and edge.process.poll() is None:
            asking += [threading.Thread(target=ask, args=(EASY, {"x-request-timeout-ms": "1000"})) for _ in range(4)]
            asking += [threading.Thread(target=ask, args=(EASY, {})) for _ in range(4)]
            for thread in asking[1:]:
                thread.start()
            eventually(lambda: len(told) == 9, "an answer for each of those behind it", 10.0)
            assert set(told) <= {"429", "500", "503", "504"}
        ended = edge.process.poll()
        edge.kill()  # what a supervisor does then; test_killed has the restart
        for thread in asking:
            thread.join()
    fault.account(load)
    fault.count(len(told))
    red_or_silent = "/livez silent" if (kind, runner) == ("hang", "inline") else "/livez red"
    sign = f"the process ends with {ended}" if ended is not None else red_or_silent
    words = "hangs" if kind == "hang" else "ends its thread"
    sees = " or ".join(sorted(set(told)))
    fault.tell(f"edge: the model {words}, runner {runner}", f"{sign}; {sees}; a restart heals")


def test_killed(tmp_path: Path, upstream: Upstream, fault: Row) -> None:
    """kill -9: requests on their way are lost with the process, what was acknowledged of the policy is not."""
    edge = spawn_edge(tmp_path, upstream.url)
    with stopping(edge):
        edge.wait_ready(90.0)
        with httpx.Client(base_url=edge.url, timeout=10.0) as client:
            written = admin(client, "PATCH", "policy", json={"threshold": 0.91}).json()
        with Load(edge.url) as load:
            load.more("deferred")
            load.stop()
            edge.kill()
        again = spawn_edge(tmp_path, upstream.url, edge.port)
        with stopping(again):
            with fault.healing():
                again.wait_ready(90.0)
            with httpx.Client(base_url=again.url, timeout=10.0) as client:
                found = admin(client, "GET", "policy").json()
            assert (found["version"], found["threshold"]) == (written["version"], 0.91)
            with Load(again.url) as after:
                after.more("deferred")
    fault.account(load)
    fault.account(after)
    fault.tell("edge: killed (SIGKILL), then started", "no answer until it is back; the policy as it was acknowledged")
