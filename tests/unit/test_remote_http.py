"""HTTP with a large model, against real sockets that misbehave: statuses, broken answers, none, connections."""

import asyncio
import socket

import pytest
from support.faulty_server import Turn, head, outputs, serving
from support.remotes import (
    IMPATIENT_S,
    MAX_BYTES,
    Outcomes,
    accepting,
    answering,
    ask,
    good,
    never,
    refusing_url,
    remote_to,
    sending,
)

from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable

# --- what stays out


async def test_a_cookie_of_the_remote_does_not_travel_on() -> None:
    async def script(turn: Turn) -> None:
        await turn.classify({"set-cookie": "session=of-another-client; Path=/"})

    # Over a name: aiohttp's ordinary jar keeps no cookies of bare addresses.
    async with serving(script) as server, remote_to(server.url.replace("127.0.0.1", "localhost")) as remote:
        for _ in range(3):
            await ask(remote)
    assert len(server.requests) == 3
    assert not any("cookie" in turn.headers for turn in server.requests)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_url() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with serving(good) as server, remote_to(server.url) as remote:
            assert await ask(remote)


# --- answers that are failures


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (201, RemoteBadAnswer, 1),
        (204, RemoteBadAnswer, 1),
        (301, RemoteBadAnswer, 1),
        (304, RemoteBadAnswer, 1),
        (400, RemoteBadAnswer, 1),
        (401, RemoteUnavailable, 1),
        (403, RemoteUnavailable, 1),
        (404, RemoteBadAnswer, 1),
        (413, RemoteBadAnswer, 1),
        (422, RemoteBadAnswer, 1),
        (429, RemoteLimit, 1),
        (500, RemoteUnavailable, 1),
        (501, RemoteUnavailable, 1),
        (502, RemoteUnavailable, 2),
        (503, RemoteUnavailable, 2),
        (504, RemoteTimeout, 1),
        (508, RemoteBadAnswer, 1),
        (599, RemoteUnavailable, 1),
    ],
)
async def test_each_status_is_one_error(status: int, error: type[RemoteError], attempts: int) -> None:
    """And each attempt is observed, under that error's reason."""
    outcomes = Outcomes()
    async with serving(answering(status)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(error):
            await ask(remote)
    assert len(server.requests) == attempts
    assert outcomes == [error.reason] * attempts


GOOD_BODY = outputs(["a"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(200, {"content-length": "9999"}) + GOOD_BODY, id="body shorter than content-length"),
        pytest.param(head(200, {"content-length": "many"}) + GOOD_BODY, id="content-length is no number"),
        pytest.param(head(200, {"transfer-encoding": "chunked"}) + b"5\r\n{", id="a chunk breaks off"),
        pytest.param(head(200, {"transfer-encoding": "chunked"}) + b"zz\r\n{}\r\n", id="chunk size is no number"),
        pytest.param(head(200, {"x-long": "x" * 100_000}), id="a header without end"),
        pytest.param(b"220 mail.example.com ESMTP\r\n\r\n", id="another protocol"),
        pytest.param(head(200, {"content-encoding": "gzip"}) + GOOD_BODY, id="encoded"),
        pytest.param(head(101, {"connection": "upgrade", "upgrade": "websocket"}), id="switching protocols"),
    ],
)
async def test_a_broken_response_is_a_bad_answer(data: bytes) -> None:
    outcomes = Outcomes()
    async with serving(sending(data)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteBadAnswer):
            await ask(remote)
    assert outcomes == ["remote_bad_answer"]


async def test_an_answer_to_another_request_is_a_bad_answer() -> None:
    """A late answer on a kept-alive connection is not taken for this one."""
    script = answering(200, outputs(["hello"]), {"x-request-id": "id-0"})
    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="another request"):
            await ask(remote)


async def test_an_endless_body_is_cut_off() -> None:
    """The connection is closed as soon as the limit is passed: the server sees its client leave."""

    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-type": "application/json"}))
        while True:
            await turn.send(b" " * 16_384)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="longer than"):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)


async def test_a_redirect_is_not_followed() -> None:
    async with serving(good) as elsewhere:
        to = {"location": f"{elsewhere.url}/v1/classify"}
        async with serving(answering(307, headers=to)) as server, remote_to(server.url) as remote:
            with pytest.raises(RemoteBadAnswer):
                await ask(remote)
    assert elsewhere.requests == []


# --- no answer


async def test_a_refused_connection_is_tried_twice() -> None:
    outcomes = Outcomes()
    with refusing_url() as url:
        async with remote_to(url, outcomes) as remote:
            with pytest.raises(RemoteUnavailable):
                await ask(remote)
    assert outcomes == ["remote_unavailable"] * 2


async def test_a_name_that_nobody_knows_is_unavailable() -> None:
    outcomes = Outcomes()
    async with remote_to("http://large.invalid", outcomes) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert set(outcomes) == {"remote_unavailable"}


async def test_a_connection_that_is_never_accepted_is_given_up() -> None:
    """A full backlog drops the handshake: connect_timeout_s ends the wait, long before the deadline."""
    outcomes = Outcomes()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = [socket.socket() for _ in range(3)]
        for waiting in queued:
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with remote_to(url, outcomes, connect_timeout_s=0.1) as remote:
            with pytest.raises(RemoteUnavailable):
                await ask(remote)
        for waiting in queued:
            waiting.close()
    assert outcomes == ["remote_unavailable"]


async def test_a_server_without_tls_is_unavailable_over_https() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(400, {}))
        writer.close()

    outcomes = Outcomes()
    async with accepting(accept) as url, remote_to(url.replace("http", "https"), outcomes) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert outcomes == ["remote_unavailable"]


async def test_a_remote_that_never_answers_is_late() -> None:
    """At the deadline the connection is closed: an answer that still came must not meet the next request."""
    outcomes = Outcomes()
    async with serving(never) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
        await server.until(lambda seen: seen.open_connections == 0)
    assert outcomes == ["remote_timeout"]
    assert len(server.requests) == 1


async def test_a_trickled_answer_is_late_although_bytes_keep_coming() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-length": "100000"}))
        while True:
            await turn.send(b" ")
            await asyncio.sleep(0.005)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
        await server.until(lambda seen: seen.open_connections == 0)


@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # aiohttp's advice; copying 8 MB takes 1 ms
async def test_a_remote_that_never_reads_is_late() -> None:
    """More text than the sockets' buffers hold: the write blocks, and the deadline ends that too."""
    over = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()  # the reader stops at its own limit of 64 KiB
        writer.close()

    async with accepting(accept) as url, remote_to(url, slots=1) as remote:
        for _ in range(2):  # the second needs the first one's slot
            with pytest.raises(RemoteTimeout):
                await ask(remote, "x" * 8_000_000, timeout_s=IMPATIENT_S)
        over.set()


# --- interim answers and chunks


async def test_interim_answers_without_end_are_cut_off() -> None:
    async def script(turn: Turn) -> None:
        while True:
            await turn.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="not HTTP"):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)


async def test_a_few_interim_answers_are_fine() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        await turn.classify()

    async with serving(script) as server, remote_to(server.url) as remote:
        for _ in range(2):
            assert len(await ask(remote)) == 1
    assert server.connections == 1


async def test_chunks_of_one_byte_count_as_they_travel() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"transfer-encoding": "chunked"}))
        for _ in range(MAX_BYTES // 1_000):
            await turn.send(b"1\r\n \r\n" * 900)
        await turn.send(b"0\r\n\r\n")

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="broke off"):
            await ask(remote)


# --- closing


async def test_after_closing_calls_fail_as_unavailable() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        await ask(remote)
        await remote.aclose()
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)
    assert len(server.requests) == 1


async def test_closing_ends_a_call_that_is_on_its_way() -> None:
    async with serving(never) as server, remote_to(server.url) as remote:
        call = asyncio.create_task(ask(remote))
        await server.until(lambda seen: seen.running_scripts == 1)
        await remote.aclose()
        with pytest.raises(RemoteUnavailable):
            await call
