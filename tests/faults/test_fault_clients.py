"""Clients that misbehave: others are answered all the time, and what was taken is given back.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_clients.py -k slowloris
"""

import asyncio
import json
import os
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from support.background import Upstream
from support.faults import Load, Row
from support.faulty_server import Turn
from support.load import EASY, ODD
from support.processes import Service, admin, eventually, spawn_edge, stopping

from service.server.connections import INTERIM

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

HALF_A_HEADER = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-slow: "
HALF_A_BODY = b'POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"inputs": "'
CLIENT_TIMEOUT_S = 1.5


def request(text: str, number: int = 0) -> bytes:
    body = json.dumps({"inputs": text}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-request-id: n{number}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Service]:
    # Overload is another test's: four times 256 items in the queue are just about the default's half a second here.
    settings = {"CLIENT_TIMEOUT_S": str(CLIENT_TIMEOUT_S), "BREAKER_OPEN_S": "0.3", "MAX_QUEUE_WAIT_MS": "10000"}
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, **settings)
    with stopping(edge):
        edge.wait_ready(90.0)
        yield edge


@contextmanager
def connections(edge: Service, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """That many connections, each of which has sent `data`."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection(("127.0.0.1", edge.port), timeout=10.0))
            opened[-1].sendall(data)
        yield opened
    finally:
        for connection in opened:
            connection.close()


def everything(connection: socket.socket) -> bytes:
    """What arrives until the other side closes."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def cut_off(connection: socket.socket) -> bool:
    """Whether the other side closes before it has taken 65 MB."""
    with suppress(OSError):
        for _ in range(1_000):
            connection.sendall(b"a" * 65_536)
        return False
    return True


def open_files(edge: Service) -> int:
    return len(list(Path(f"/proc/{edge.process.pid}/fd").iterdir()))


def resident_bytes(edge: Service) -> int:
    pages = int(Path(f"/proc/{edge.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rejected(edge: Service, reason: str) -> float:
    metrics = httpx.get(f"{edge.url}/metrics", timeout=20.0).text
    lines = [line for line in metrics.splitlines() if line.startswith("gatekeeper_rejected_total{")]
    return sum(float(line.split()[1]) for line in lines if f'reason="{reason}"' in line)


@pytest.mark.parametrize(
    ("data", "told", "words"),
    [
        pytest.param(HALF_A_HEADER, b"HTTP/1.1 408", "500 half-sent headers (slowloris)", id="slowloris"),
        pytest.param(HALF_A_BODY, b"HTTP/1.1 408", "500 half-sent bodies", id="half-a-body"),
        pytest.param(b"", b"", "1,000 idle connections", id="idle"),
    ],
)
def test_slow(data: bytes, told: bytes, words: str, edge: Service, fault: Row) -> None:
    """They are closed when their time is over, a request that has begun with 408; meanwhile others are answered."""
    count = 500 if data else 1_000
    files, memory = open_files(edge), resident_bytes(edge)
    with Load(edge.url) as load:
        load.more("deferred")
        with fault.healing(), connections(edge, count, data) as opened:
            load.more("deferred", 5)
            growth = resident_bytes(edge) - memory
            answers = [everything(connection) for connection in opened]
            eventually(lambda: open_files(edge) <= files + 8, "their files given back", 15.0)
        load.more("deferred")
    assert all(answer.startswith(told) for answer in answers)
    assert all(bool(answer) == bool(told) for answer in answers)
    assert set(load.decisions) == {"deferred"}
    assert growth < count * 64 * 1024
    fault.account(load)
    said = "408, closed" if told else "closed"
    sees = f"others nothing; these {said} after client_timeout_s ({CLIENT_TIMEOUT_S} s here)"
    fault.tell(f"clients: {words}", f"{sees}; {growth / count / 1024:.0f} KiB each")


def test_dripping_header(edge: Service, fault: Row) -> None:
    """A byte now and then does not prolong the time that a request may take to arrive."""
    with Load(edge.url) as load, connections(edge, 1, HALF_A_HEADER) as (dripping,), fault.healing():
        dripping.settimeout(0.1)
        received = b""
        while not received:
            try:
                dripping.sendall(b"a")
                received = dripping.recv(4_096)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408")
        load.more("deferred")
    fault.account(load)
    fault.tell("clients: a header byte by byte", "408 when client_timeout_s is over, however many bytes still come")


def test_long_header(edge: Service, fault: Row) -> None:
    """A header line without end is cut off with 431; nothing of it is kept."""
    memory = resident_bytes(edge)
    with Load(edge.url) as load:
        load.more("deferred")
        for first in (HALF_A_HEADER + b"a" * 65_536, HALF_A_HEADER, b"GET /" + b"a" * 40_000):
            with connections(edge, 1, first) as (endless,):
                assert cut_off(endless)
                answer = everything(endless)  # what was said may have been lost with the rest
                assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
        load.more("deferred")
    with connections(edge, 1, b"GET /livez HTTP/1.1\r\nx: " + b"a" * 33_000) as (long,):
        assert everything(long).startswith(b"HTTP/1.1 431")
    fitting = httpx.get(f"{edge.url}/livez", headers={"x-long": "a" * 30_000}, timeout=10.0)
    assert fitting.status_code == 200
    assert resident_bytes(edge) - memory < 32 * 1024 * 1024
    fault.account(load)
    fault.tell("clients: header lines without end", "431 above max_header_bytes (32 KiB), closed")


def test_endless_trailers(edge: Service, fault: Row) -> None:
    """Trailers after a chunked body are headers too."""
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-trailer: "
    with Load(edge.url) as load, connections(edge, 1, head) as (endless,):
        assert cut_off(endless)
        load.more("deferred")
    fault.account(load)
    fault.tell("clients: trailers without end", "431, closed")


@pytest.mark.parametrize("count", [2, 10])
def test_pipelining(count: int, edge: Service, fault: Row) -> None:
    """Several requests in one segment are answered in their order, deferred and accepted ones mixed."""
    texts = [ODD if number % 2 == 0 else EASY for number in range(count)]
    with connections(edge, 1, b"".join(request(text, number) for number, text in enumerate(texts))) as (pipe,):
        stream = pipe.makefile("rb")
        answers = []
        for _ in texts:
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.strip().split(b": ") for line in iter(stream.readline, b"\r\n"))
            answers.append(json.loads(stream.read(int(headers[b"content-length"]))))
    assert [answer["id"] for answer in answers] == [f"n{number}" for number in range(count)]
    assert [answer["outputs"][0]["answered_by"] for answer in answers] == ["large", "small"] * (count // 2)
    fault.count(count)
    fault.tell(f"clients: {count} requests in one segment (pipelining)", "answers in order")


def test_two_lengths(edge: Service, fault: Row) -> None:
    """A body with a length and in chunks is what request smuggling is made of: refused, and the connection closed."""
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\ntransfer-encoding: chunked\r\n\r\n"
    with connections(edge, 1, head + b'11\r\n{"inputs": "abc"}\r\n0\r\n\r\n') as (smuggler,):
        assert everything(smuggler).startswith(b"HTTP/1.1 400")
    fault.count(1)
    fault.tell("clients: content-length and chunked in one request", "400, closed")


def test_leaving(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Clients that leave while the large model works: their calls are given up, and every connection serves again."""
    files = open_files(edge)

    out: list[str] = []

    async def never(turn: Turn) -> None:
        out.extend(turn.texts)
        await asyncio.Event().wait()

    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        admin(client, "PATCH", "policy", json={"remote_timeout_s": 60.0})
        upstream.behave(never)
        try:
            with connections(edge, 64, request(ODD)) as opened:
                eventually(lambda: len(out) == 64, "64 requests at the large model", 15.0)
                for connection in opened[::2]:  # a reset, and below a polite end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            eventually(lambda: upstream.server.running_scripts == 0, "all calls given up", 15.0)
        finally:
            upstream.accept()
            admin(client, "PATCH", "policy", json={"remote_timeout_s": 10.0})
        with fault.healing(), Load(edge.url) as load:
            load.more("deferred", 20)
        eventually(lambda: open_files(edge) <= files + 8, "their files given back", 15.0)
    assert set(load.decisions) == {"deferred"}
    assert rejected(edge, "client-gone") >= 64
    fault.account(load)
    fault.tell("clients: 64 leave while their requests are deferred", "others nothing; the calls out are given up")


def test_refused_while_sending(edge: Service, fault: Row) -> None:
    """Who says `connection: close`, sends it all and reads then, is told what was wrong with it."""
    told: list[int] = []
    with Load(edge.url) as load:
        for _ in range(50):
            try:
                urllib.request.urlopen(f"{edge.url}/v1/classify", b"a" * 5 * 1024 * 1024, timeout=20.0)
            except urllib.error.HTTPError as error:
                told.append(json.load(error)["status"])
        load.more("deferred")
    assert told == [413] * 50
    fault.account(load)
    fault.count(50)
    fault.tell("clients: 5 MiB sent with `connection: close` where 4 are taken (urllib), 50 times", "413 each time")


def test_half_closing(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Who announces its last request and closes its half is answered, also by a large model that takes longer."""

    async def late(turn: Turn) -> None:
        await asyncio.sleep(2.0)
        await turn.classify()

    heads = [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nconnection: close\r\n", b"HTTP/1.1\r\n"]
    asked = 0
    try:
        for text, versions in ((EASY, heads), (ODD, heads), (f"{ODD} late", heads[1:])):
            if text.endswith("late"):
                upstream.behave(late)
            for version in versions:
                with connections(edge, 1, request(text).replace(b"HTTP/1.1\r\n", version)) as (half,):
                    half.shutdown(socket.SHUT_WR)
                    head, _, body = everything(half).replace(INTERIM, b"").partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert json.loads(body)["outputs"][0]["decision"] == ("accepted" if text == EASY else "deferred")
                asked += 1
    finally:
        upstream.accept()
    fault.count(asked)
    fault.tell(
        "clients: close their half after a request (`nc -N`)",
        "answered; HTTP/1.1 as long as it takes, with `100 Continue` after 50 ms, 100 ms and 1 s; HTTP/1.0 for 1 s",
    )


def test_half_a_body_then_gone(edge: Service, fault: Row) -> None:
    """A client that leaves in the middle of its body leaves nothing behind."""
    before = rejected(edge, "client-gone")
    with Load(edge.url) as load:
        with connections(edge, 50, HALF_A_BODY):
            load.more("deferred", 5)
        eventually(lambda: rejected(edge, "client-gone") >= before + 50, "all counted", 15.0)
        load.more("deferred")
    fault.account(load)
    fault.tell("clients: 50 leave in the middle of a body", "others nothing; counted as client-gone")


def test_large_bodies(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """Large bodies that stay unfinished hold no more memory than a setting says; small requests are not touched."""
    settings = {"MAX_BODY_BYTES": "262144", "MAX_RECEIVE_BYTES": "1048576", "CLIENT_TIMEOUT_S": "30"}
    edge = spawn_edge(tmp_path_factory.mktemp("large-bodies"), upstream.url, **settings)
    most = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 250000\r\n\r\n" + b" " * 249_999
    with stopping(edge):
        edge.wait_ready(90.0)
        with Load(edge.url) as load:
            load.more("deferred")
            with connections(edge, 12, most) as opened:
                eventually(lambda: rejected(edge, "overloaded") >= 8, "those that are too much are refused", 15.0)
                load.more("deferred")
                assert sum(b"429 Too Many" in answered(connection) for connection in opened) == 8
            with fault.healing(), connections(edge, 1, most) as (one,):
                one.sendall(b"{")
                assert answered(one, patience_s=10.0).startswith(b"HTTP/1.1 400")
    fault.account(load)
    sees = "those above max_receive_bytes (1 MiB here) 429 with Retry-After; small requests nothing"
    fault.tell("clients: 12 large bodies that stay unfinished", sees)


def test_many_values(edge: Service, fault: Row) -> None:
    """A body of two million zeros, again and again: refused before it is parsed, and nobody else waits for that."""
    body = b'{"inputs":[' + b"0," * 2_000_000 + b"0]}"
    before = rejected(edge, "too-large")
    memory = resident_bytes(edge)
    with Load(edge.url) as load, ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(httpx.post, f"{edge.url}/v1/classify", content=body, timeout=60.0) for _ in range(24)]
        load.more("deferred", 20)
        assert {one.result().status_code for one in asked} == {413}
    assert rejected(edge, "too-large") == before + 24
    assert resident_bytes(edge) - memory < 128 * 1024 * 1024
    fault.account(load)
    fault.tell("clients: 4 send bodies of two million zeros, 24 in all", "others nothing; these 413")


def answered(connection: socket.socket, patience_s: float = 0.2) -> bytes:
    """What has come, or nothing."""
    connection.settimeout(patience_s)
    with suppress(TimeoutError, ConnectionError):
        return connection.recv(4_096)
    return b""


def test_not_reading(edge: Service, fault: Row) -> None:
    """A client that asks for much and reads nothing is closed, and holds no more than what it asked for once."""
    files, memory = open_files(edge), resident_bytes(edge)
    much = {"inputs": [EASY] * 256, "parameters": {"top_k": 150, "route": "small"}}
    body = json.dumps(much).encode()
    asking = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    before = rejected(edge, "client-timeout")
    with ExitStack() as opened, Load(edge.url) as load, fault.healing():
        for _ in range(4):
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", edge.port))
            connection.sendall(asking * 10)
        eventually(lambda: rejected(edge, "client-timeout") >= before + 4, "all four given up", 30.0)
        eventually(lambda: open_files(edge) <= files + 8, "their files given back", 15.0)
        load.more("deferred")
    assert resident_bytes(edge) - memory < 128 * 1024 * 1024
    fault.account(load)
    fault.tell("clients: ask for megabytes and read nothing", "others nothing; closed after client_timeout_s")


def test_open_files(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, fault: Row) -> None:
    """With few open files allowed, connections that do nothing give way to those that ask, and calls out still go."""
    settings = {"CLIENT_TIMEOUT_S": "60", "REMOTE_MAX_CONCURRENCY": "16"}
    edge = spawn_edge(tmp_path_factory.mktemp("few"), upstream.url, fault="files:256", **settings)
    with stopping(edge):
        edge.wait_ready(90.0)
        with Load(edge.url) as load:
            load.more("deferred")
            with connections(edge, 400) as idle, connections(edge, 400, HALF_A_HEADER) as slow:
                assert len(idle) + len(slow) == 800
                load.more("deferred", 20)
                for path in ("livez", "readyz"):
                    assert httpx.get(f"{edge.url}/{path}", timeout=10.0).status_code == 200
                with httpx.Client(base_url=edge.url) as client:
                    assert admin(client, "PATCH", "policy", json={"note": "still"}).status_code == 200
                held = open_files(edge)
            with fault.healing():
                load.more("deferred")
            eventually(lambda: open_files(edge) < 64, "files given back", 15.0)
        assert rejected(edge, "too-many-connections") > 200
    assert held < 200
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell(
        "clients: 800 idle and half-sent connections where 256 files may be open",
        "others nothing, health and admin answer; the idlest are closed (503 where a request had begun)",
    )
