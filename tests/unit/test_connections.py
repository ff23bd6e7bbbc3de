"""What uvicorn's connections are bounded by: number, time, size of headers. Real sockets, a ten-line app."""

import asyncio
import http.client
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from support.redis_server import free_port
from support.waiting import until

from service.server import connections
from service.server.connections import INTERIM, LEAST_CONNECTIONS, Connection, ConnectionLimits, Connections, room_for

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF_A_BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"
LONG = 5 * 1024 * 1024
REFUSED = b"POST /refuse HTTP/1.%d\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n"
CLOSE = b"connection: close\r\n"
TAKES_S = {"/soon": 0.1, "/slow": 1.0, "/slower": 2.0}


class Bounded:
    """A running server: `connect(data)` opens a connection and sends, `counted` holds what was turned away.

    Its app reads a body, then answers; at /soon and /slow it takes its time for that, at /last it closes then, at
    /refuse it answers unread, and at /never not at all: `left` counts the clients of /never that have gone.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.left = 0
        self.counted: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._read_bytes: Counter[int] = Counter()  # by the client's port

    async def connect(self, data: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        return reader

    async def send_apart(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send, and wait until the server has read it: what follows comes in a piece of its own."""
        port = writer.get_extra_info("sockname")[1]
        wanted = self._read_bytes[port] + len(data)
        writer.write(data)
        await until(lambda: self._read_bytes[port] == wanted)

    def watch(self, connection: Connection) -> Connection:
        """Count what it reads."""
        read = connection.data_received

        def data_received(data: bytes) -> None:
            read(data)
            assert connection.client is not None
            self._read_bytes[connection.client[1]] += len(data)

        connection.data_received = data_received  # type: ignore[method-assign]
        return connection

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["path"] != "/refuse":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += scope["path"] == "/never"
                return
            if scope["path"] != "/never" and not message["more_body"]:
                break
        if scope["path"] in TAKES_S:
            await asyncio.sleep(TAKES_S[scope["path"]])
        status = 413 if scope["path"] == "/refuse" else 200
        headers = [(b"content-length", b"2"), (b"connection", b"close" if scope["path"] == "/last" else b"keep-alive")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(max_connections: int = 100, client_timeout_s: float = 60.0) -> AsyncIterator[Bounded]:
    bounded = Bounded(free_port())
    limits = ConnectionLimits(max_connections, client_timeout_s, 1_024)
    every = Connections(limits, bounded.counted.append)
    protocol = cast("Any", lambda *given, **named: bounded.watch(every.protocol(*given, **named)))
    server = uvicorn.Server(
        uvicorn.Config(
            bounded.app, interface="asgi3", port=bounded.port, http=protocol, ws="none", log_config=None, lifespan="off"
        )
    )
    running = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started)
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


@pytest.mark.slow
async def test_an_answer_may_take_longer_however_its_request_arrived() -> None:
    request = b"POST /slower HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabcdefghi"

    async def answered(cut: int) -> bytes:
        reader = await bounded.connect(b"")
        writer = bounded.writers[-1]
        await bounded.send_apart(writer, request[:cut])
        writer.write(request[cut:])
        return await reader.readline()

    async with serving(client_timeout_s=1.5) as bounded:
        # whole, in the head, before the body, in the body
        lines = await asyncio.gather(*map(answered, (0, 10, 51, 54)))
        assert [line[:12] for line in lines] == [b"HTTP/1.1 200"] * 4
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
        await bounded.send_apart(bounded.writers[-1], b"GET / HTTP/1.1\r\nx: ")
        for _ in range(pieces):  # no more than it takes: what is sent to a closed connection can lose the answer
            await bounded.send_apart(bounded.writers[-1], b"a" * (1_050 // pieces))
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
        first = await bounded.connect(b"")
        await bounded.send_apart(bounded.writers[-1], b"GET / HTT")
        second = await bounded.connect(b"")
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


async def whole(bounded: Bounded, head: bytes, rest: bytes = b"") -> bytes:
    """All that is answered to a client that reads when it has sent everything."""
    reader = await bounded.connect(head)
    writer = bounded.writers[-1]
    writer.write(rest)
    await writer.drain()
    return await reader.read()


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        pytest.param(REFUSED % (1, LONG, CLOSE), b"HTTP/1.1 413", id="connection: close"),
        pytest.param(REFUSED % (0, LONG, b""), b"HTTP/1.1 413", id="HTTP 1.0"),
        pytest.param(
            GET.replace(b"/ ", b"/last ") + REFUSED % (1, LONG, b""), b"HTTP/1.1 200", id="one after the last"
        ),
        pytest.param(b"GARBAGE\r\n\r\n", b"HTTP/1.1 400", id="no HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 2_000, b"HTTP/1.1 431", id="header"),
    ],
)
async def test_who_is_refused_while_still_sending_reads_why(head: bytes, answer: bytes) -> None:
    async with serving() as bounded:
        for _ in range(5):
            assert (await whole(bounded, head, b"a" * LONG)).startswith(answer)


async def test_who_is_too_slow_and_then_sends_the_rest_reads_why() -> None:
    async with serving(client_timeout_s=0.5) as bounded:
        reader = await bounded.connect(REFUSED.replace(b"/refuse", b"/") % (1, LONG, b""))
        writer = bounded.writers[-1]
        await until(lambda: bounded.counted)
        writer.write(b"a" * LONG)
        await writer.drain()
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        assert bounded.counted == ["client-timeout"]


@pytest.mark.parametrize("header", [b"", CLOSE])
async def test_a_length_of_thousands_of_digits_stops_no_sweep(header: bytes) -> None:
    """Python makes no number of so many; once that ended all time-outs for the life of the process."""
    async with serving(client_timeout_s=0.3) as bounded:
        long = b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"0" * 900 + b"5\r\n" + header + b"\r\n"
        await bounded.connect(long.replace(b"0" * 900, b"0" * 5_000)[:900])
        odd = await bounded.connect(long)
        slow = await bounded.connect(b"GET / HTT")
        async with asyncio.timeout(10.0):
            assert (await slow.read()).startswith(b"HTTP/1.1 408")
            assert (await odd.read()).startswith(b"HTTP/1.1 413")


async def test_who_finds_no_room_reads_so_whatever_it_has_sent() -> None:
    async with serving(max_connections=2) as bounded:
        for _ in range(2):
            await (await bounded.connect(GET)).readuntil(b"ok")
        assert (await whole(bounded, GET, b"a" * LONG)).startswith(b"HTTP/1.1 503")


@pytest.mark.slow
async def test_those_that_linger_are_few_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_LINGERING", 2)
    async with serving(max_connections=4, client_timeout_s=2.0) as bounded:
        for _ in range(4):
            assert (await (await bounded.connect(REFUSED % (1, LONG, CLOSE))).read()).startswith(b"HTTP/1.1 413")
        first, *_, last = bounded.writers
        await closed(first)
        assert await ask(bounded) == b"HTTP/1.1 200 OK"  # they take nobody's room
        last.write(b"a")
        await last.drain()  # it still lingers
        await closed(last)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Wait until the other side has closed both halves: what is sent is then answered by a reset."""
    with suppress(ConnectionError):
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)


async def test_an_answer_instead_of_100_continue_closes() -> None:
    """Its client need not send the body then, and may not take up the connection where nobody knows what comes."""
    expecting = REFUSED % (1, 9, b"expect: 100-continue\r\n")
    async with serving() as bounded:
        answer = await (await bounded.connect(expecting)).read()
        assert answer.startswith(b"HTTP/1.1 413")
        assert CLOSE in answer
        reader = await bounded.connect(expecting.replace(b"/refuse", b"/"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for _ in range(2):
            bounded.writers[-1].write(b"abcdefghi")
            assert CLOSE not in await reader.readuntil(b"ok")
            bounded.writers[-1].write(REFUSED.replace(b"/refuse", b"/") % (1, 9, b""))


@pytest.mark.parametrize(("http", "header"), [(b"1.0", b""), (b"1.0", CLOSE), (b"1.1", CLOSE), (b"1.1", b"")])
async def test_a_client_that_closes_its_half_is_answered(http: bytes, header: bytes) -> None:
    async with serving() as bounded:
        reader = await bounded.connect(b"GET /soon HTTP/%b\r\nhost: x\r\n%b\r\n" % (http, header))
        bounded.writers[-1].write_eof()
        assert (await reader.read()).replace(INTERIM, b"").startswith(b"HTTP/1.1 200")


async def test_several_requests_before_the_half_is_closed_are_all_answered() -> None:
    async with serving() as bounded:
        reader = await bounded.connect(GET * 2 + GET[:-2] + CLOSE + b"\r\n")
        bounded.writers[-1].write_eof()
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 3


async def test_a_client_that_closes_its_half_may_wait_for_its_answer() -> None:
    """It is told `100 Continue` meanwhile, which HTTP/1.1 clients pass over."""
    async with serving() as bounded:
        client = http.client.HTTPConnection("127.0.0.1", bounded.port, timeout=10.0)

        def ask_slowly() -> tuple[int, bytes]:
            client.request("GET", "/slow", headers={"connection": "close"})
            client.sock.shutdown(socket.SHUT_WR)
            answer = client.getresponse()
            return answer.status, answer.read()

        assert await asyncio.to_thread(ask_slowly) == (200, b"ok")
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("http", [b"1.0", b"1.1"])
@pytest.mark.parametrize("header", [b"", CLOSE])
async def test_a_client_that_leaves_is_noticed_while_it_would_wait(http: bytes, header: bytes) -> None:
    async with serving() as bounded:
        await bounded.connect(b"GET /never HTTP/%b\r\nhost: x\r\n%b\r\n" % (http, header))
        bounded.writers[-1].close()
        await until(lambda: bounded.left)


async def test_half_a_request_and_the_end_are_no_request() -> None:
    async with serving() as bounded:
        for half in (b"GET / HTT", HALF_A_BODY):
            reader = await bounded.connect(half)
            bounded.writers[-1].write_eof()
            assert await reader.read() == b""
