"""What uvicorn's connections are bounded by: number, time, size of headers. Real sockets, a ten-line app."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
import uvicorn
from redis_server import free_port
from starlette.types import Receive, Scope, Send

from service.connections import LEAST_CONNECTIONS, ConnectionLimits, Connections, room_for

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF_A_BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"


class Bounded:
    """A running server: `connect(data)` opens a connection and sends, `counted` holds what was turned away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counted: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, data: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        return reader


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads its body, then says so; at /slow it takes its time for that."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message["more_body"]:
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(max_connections: int = 100, client_timeout_s: float = 60.0) -> AsyncIterator[Bounded]:
    bounded = Bounded(free_port())
    connections = Connections(ConnectionLimits(max_connections, client_timeout_s, 1_024), bounded.counted.append)
    http = cast("Any", connections.protocol)
    server = uvicorn.Server(
        uvicorn.Config(app, port=bounded.port, http=http, ws="none", log_config=None, lifespan="off")
    )
    running = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(5.0):
            while not server.started:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(20.0):
            yield bounded
    finally:
        for writer in bounded.writers:
            writer.close()
        server.should_exit = True
        await running


async def ask(bounded: Bounded) -> bytes:
    return (await (await bounded.connect(GET)).readline()).strip()


@pytest.mark.parametrize("half", [b"GET / HTT", HALF_A_BODY, GET + b"GET / HTT"], ids=["head", "body", "second"])
async def test_a_request_that_does_not_arrive_in_time_is_told_408_and_closed(half: bytes) -> None:
    async with serving(client_timeout_s=0.3) as bounded:
        slow = await bounded.connect(half)
        answer = await slow.read()
        assert b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\n" in answer
        assert bounded.counted == ["client-timeout"]


@pytest.mark.parametrize("cut", [0, 10, 51, 54], ids=["whole", "head", "before the body", "body"])
async def test_an_answer_may_take_longer_however_its_request_arrived(cut: int) -> None:
    request = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabcdefghi"
    async with serving(client_timeout_s=0.4) as bounded:
        reader = await bounded.connect(request[:cut])
        await asyncio.sleep(0.1)
        bounded.writers[-1].write(request[cut:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert bounded.counted == []


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(client_timeout_s=0.3) as bounded:
        assert await (await bounded.connect(b"")).read() == b""
        assert bounded.counted == []


@pytest.mark.parametrize("pieces", [1, 21])
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
async def test_headers_that_are_too_long_are_told_431(before: bytes, pieces: int) -> None:
    async with serving() as bounded:
        reader = await bounded.connect(before)
        if before:
            await reader.readuntil(b"ok")
        bounded.writers[-1].write(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(pieces):  # no more than it takes: what is sent to a closed connection can lose the answer
            bounded.writers[-1].write(b"a" * (1_050 // pieces))
            await bounded.writers[-1].drain()
            await asyncio.sleep(0)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")
        assert bounded.counted == ["header-too-large"]


@pytest.mark.parametrize("drop", [b"a", b"\r\n"], ids=["header", "empty lines"])
async def test_bytes_that_keep_coming_prolong_nothing(drop: bytes) -> None:
    async with serving(client_timeout_s=0.3) as bounded:
        reader = await bounded.connect(GET)
        await reader.readuntil(b"ok")
        if drop == b"a":
            bounded.writers[-1].write(b"GET / HTTP/1.1\r\nx: ")
        with suppress(ConnectionError):
            while not reader.at_eof():
                bounded.writers[-1].write(drop)
                await bounded.writers[-1].drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await reader.read()


async def test_a_long_body_and_many_requests_are_no_long_header() -> None:
    async with serving() as bounded:
        body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"a" * 100_000
        assert (await (await bounded.connect(body)).readline()).startswith(b"HTTP/1.1 200")
        many = await bounded.connect(GET * 200)
        for _ in range(200):
            await many.readuntil(b"ok")
        assert bounded.counted == []


async def test_above_the_limit_the_oldest_that_was_never_answered_gives_way() -> None:
    async with serving(max_connections=3) as bounded:
        answered = await bounded.connect(GET)
        await answered.readuntil(b"ok")
        first, second = await bounded.connect(b"GET / HTT"), await bounded.connect(b"")
        await asyncio.sleep(0.05)  # else the first may still be on its way
        assert await ask(bounded) == b"HTTP/1.1 200 OK"
        assert (await first.readline()).startswith(b"HTTP/1.1 503")
        assert bounded.counted == ["too-many-connections"]
        assert not second.at_eof()
        bounded.writers[0].write(GET)
        await answered.readuntil(b"ok")  # kept alive: it was answered just now


async def test_where_none_may_give_way_the_new_one_is_refused() -> None:
    async with serving(max_connections=2) as bounded:
        kept = [await bounded.connect(GET) for _ in range(2)]
        for reader in kept:
            await reader.readuntil(b"ok")
        refused = await bounded.connect(b"")
        assert (await refused.readline()).startswith(b"HTTP/1.1 503")
        assert bounded.counted == ["too-many-connections"]


def test_connections_leave_room_for_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 1_024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert room_for(500, 100) == 500
    assert limits[-1] == (600, 1_024)
    assert room_for(4_096, 100) == 924
    assert limits[-1] == (1_024, 1_024)
    assert room_for(4_096, 2_000) == LEAST_CONNECTIONS
