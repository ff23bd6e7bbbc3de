"""The client of the load tests and its accounts, against small real servers: what it says of a server is true."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from support.faulty_server import Turn, serving

from loadtests.common.client import Pool, Reply, request_bytes
from loadtests.stress.arrivals import BROKEN, LATE, NOT_SENT, closed_loop, open_loop, poisson
from loadtests.stress.overload import counted

REQUEST = request_bytes("POST", "/v1/classify", b'{"inputs": "a"}')
Script = Callable[[Turn], Awaitable[None]]


@asynccontextmanager
async def pool_to(script: Script, limit: int = 32) -> AsyncIterator[Pool]:
    async with serving(script) as server:
        pool = Pool("127.0.0.1", int(server.url.rpartition(":")[2]), limit)
        try:
            yield pool
        finally:
            await pool.aclose()


async def ok(turn: Turn) -> None:
    await turn.answer(200, b"x" * 10)


async def test_an_answer_in_many_pieces_is_one_reply_and_the_connection_is_used_again() -> None:
    async def dribble(turn: Turn) -> None:
        for byte in b"HTTP/1.1 422 No\r\nContent-Length: 3\r\nx: y\r\n\r\nabc":
            await turn.send(bytes([byte]))

    async with pool_to(dribble) as pool:
        for _ in range(3):
            reply = await pool.ask(REQUEST)
            assert reply == Reply(422, b"HTTP/1.1 422 No\r\nContent-Length: 3\r\nx: y\r\n\r\n", b"abc")
        assert pool.connected == 1


async def test_what_is_sent_arrives_as_it_was_given() -> None:
    async with serving(ok) as server:
        pool = Pool("127.0.0.1", int(server.url.rpartition(":")[2]), 1)
        await pool.ask(request_bytes("PUT", "/there", b"[1]", {"x-mine": "yes", "content-type": "text/plain"}))
        turn = server.requests[0]
        assert (turn.request_line, turn.body) == ("PUT /there HTTP/1.1", b"[1]")
        assert (turn.headers["x-mine"], turn.headers["content-type"]) == ("yes", "text/plain")
        await pool.aclose()


async def test_a_connection_that_breaks_is_told_and_the_next_request_has_a_new_one() -> None:
    async def every_other(turn: Turn) -> None:
        if turn.number % 2:
            turn.reset()
        else:
            await ok(turn)

    async with pool_to(every_other) as pool:
        with pytest.raises(ConnectionError):
            await pool.ask(REQUEST)
        assert (await pool.ask(REQUEST)).status == 200
        assert pool.connected == 2


async def test_a_server_that_says_close_is_not_asked_again_on_that_connection() -> None:
    async def closing(turn: Turn) -> None:
        await turn.answer(200, b"bye", {"connection": "close"})
        turn.drop()

    async with pool_to(closing) as pool:
        for _ in range(3):
            assert (await pool.ask(REQUEST)).body == b"bye"
        assert pool.connected == 3


async def test_an_answer_that_nobody_asked_for_is_noticed() -> None:
    async def twice(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na" * 2)

    async with pool_to(twice) as pool:
        assert (await pool.ask(REQUEST)).body == b"a"
        assert pool.unasked == 1


async def test_every_request_of_an_open_loop_has_an_end() -> None:
    async def mixed(turn: Turn) -> None:
        kind = turn.number % 4
        if kind == 0:
            await turn.answer(429)
        elif kind == 1:
            turn.reset()
        elif kind == 2:
            await asyncio.Event().wait()
        else:
            await ok(turn)

    async with pool_to(mixed) as pool:
        outcomes = await open_loop(pool, REQUEST, np.arange(80) / 400, 0.4)
        statuses = outcomes.statuses.tolist()
        assert [statuses.count(status) for status in (200, 429, BROKEN, LATE)] == [20, 20, 20, 20]
        figures = counted(outcomes, 0.1, 0.2)
        assert (figures["errors"], figures["refused"] + figures["late"]) == pytest.approx((10, 20), abs=4)
        assert figures["goodput_per_s"] == pytest.approx(100, abs=40)


async def test_the_latency_counts_from_the_intended_moment_so_that_a_stall_shows() -> None:
    """A client that waits for its turn would ask once during the stall, and call the server quick."""
    stall_s = 0.5

    async def stalls_once(turn: Turn) -> None:
        if turn.number == 20:
            time.sleep(stall_s)  # the whole server
        await ok(turn)

    async with pool_to(stalls_once, limit=1) as pool:
        outcomes = await open_loop(pool, REQUEST, np.arange(200) / 200, 5.0)
        assert (outcomes.statuses == 200).all()
        # A hundred requests were due while it stood still; the last of them waited for next to nothing.
        waited = (outcomes.latencies > stall_s / 10).sum()
        assert waited > 50
        assert outcomes.latencies.max() > stall_s * 0.9
        assert np.percentile(outcomes.latencies, 90) > stall_s / 2


async def test_what_waits_for_a_connection_until_its_deadline_was_not_sent() -> None:
    async def never(turn: Turn) -> None:
        await asyncio.Event().wait()

    async with pool_to(never, limit=2) as pool:
        outcomes = await open_loop(pool, REQUEST, np.zeros(10), 0.2)
        statuses = outcomes.statuses.tolist()
        assert (statuses.count(LATE), statuses.count(NOT_SENT)) == (2, 8)
        assert np.isnan(outcomes.latencies).all()


async def test_a_server_that_is_not_there_answers_nothing_and_ends_the_run() -> None:
    async with serving(ok) as server:
        port = int(server.url.rpartition(":")[2])
    outcomes = await open_loop(Pool("127.0.0.1", port, 4), REQUEST, np.zeros(3), 0.1)
    assert outcomes.statuses.tolist() == [NOT_SENT] * 3


async def test_a_closed_loop_has_one_request_a_connection_and_counts_them_all() -> None:
    at_once = most = 0

    async def watched(turn: Turn) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        await ok(turn)

    async with serving(watched) as server:
        pool = Pool("127.0.0.1", int(server.url.rpartition(":")[2]), 4)
        outcomes = await closed_loop(pool, REQUEST, 4, 0.2)
        assert (outcomes.statuses == 200).all()
        assert len(outcomes.statuses) == len(server.requests) == len(outcomes.latencies)
        assert most <= 4
        assert server.connections == 4
        await pool.aclose()


def test_arrivals_have_the_rate_that_was_asked_for_and_no_rhythm() -> None:
    moments = poisson(1_000, 20, seed=3)
    assert len(moments) == pytest.approx(20_000, rel=0.05)
    gaps = np.diff(moments)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential"
    assert moments[-1] < 20
    assert (poisson(1_000, 20, seed=3) == moments).all()


def test_request_bytes_count_their_body() -> None:
    body = json.dumps({"inputs": "\u00e9"}, ensure_ascii=False).encode()
    assert f"content-length: {len(body)}\r\n".encode() in request_bytes("POST", "/", body)


async def test_an_answer_past_the_deadline_is_late_though_nobody_had_given_it_up_yet() -> None:
    """Both on one loop: while the server blocks it the client cannot give up either."""

    async def blocks(turn: Turn) -> None:
        time.sleep(0.2)
        await ok(turn)

    async with pool_to(blocks) as pool:
        outcomes = await open_loop(pool, REQUEST, np.zeros(1), 0.1)
        assert outcomes.statuses.tolist() == [LATE]
