"""Bodies on their way: how much of them is held, and that it is given back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.waiting import until

from service.api.body import body_chunks, read_body
from service.errors import ClientGone, Overloaded, TooLarge
from service.server.intake import Intake

Receive = Callable[[], Awaitable[dict[str, Any]]]


def sending(*pieces: bytes, ends: bool = True) -> Receive:
    """A client's body in these pieces; without an end it leaves."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if ends:
        messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


async def test_a_body_in_pieces_is_whole_and_given_back() -> None:
    intake = Intake(100)
    assert await read_body({}, sending(b"a" * 40, b"b" * 40, b""), 90, intake) == b"a" * 40 + b"b" * 40
    assert intake.bytes == 0


async def test_a_body_in_one_piece_costs_nothing_of_the_intake() -> None:
    assert await read_body({}, sending(b"a" * 80), 90, Intake(10)) == b"a" * 80
    with pytest.raises(TooLarge):
        await read_body({}, sending(b"a" * 91), 90, Intake(10))


@pytest.mark.parametrize(
    ("receive", "error"),
    [(sending(b"a" * 60, b"a" * 60), TooLarge), (sending(b"a" * 60, b"b" * 10, ends=False), ClientGone)],
    ids=["too large", "gone"],
)
async def test_what_was_taken_is_given_back_when_it_fails(receive: Receive, error: type[Exception]) -> None:
    intake = Intake(1_000)
    with pytest.raises(error):
        await read_body({}, receive, 90, intake)
    assert intake.bytes == 0


async def test_more_than_all_may_hold_is_refused_and_smaller_ones_go_on() -> None:
    intake = Intake(100)
    going_on = asyncio.Event()

    async def slow() -> dict[str, Any]:
        if intake.bytes:
            await going_on.wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": b"a" * 40, "more_body": True}

    first = asyncio.create_task(read_body({}, slow, 90, intake))
    await until(lambda: intake.bytes)
    with pytest.raises(Overloaded, match="too many large bodies"):
        await read_body({}, sending(b"b" * 40, b"b" * 40), 90, intake)
    assert intake.bytes == 40
    going_on.set()
    assert await first == b"a" * 40
    assert intake.bytes == 0


async def test_the_largest_gives_way_to_a_smaller_one() -> None:
    """Two that never end must not keep out everybody else."""
    intake = Intake(100)

    async def stalled() -> dict[str, Any]:
        if intake.bytes < 80:
            return {"type": "http.request", "body": b"a" * 40, "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    large = asyncio.create_task(read_body({}, stalled, 90, intake))
    await until(lambda: intake.bytes == 80)
    assert await read_body({}, sending(b"b" * 20, b"b" * 20), 90, intake) == b"b" * 40
    with pytest.raises(Overloaded):
        await large
    assert intake.bytes == 0
    assert large.cancelling() == 0


async def test_a_reader_that_is_cancelled_gives_back_too() -> None:
    intake = Intake(1_000)

    async def endless() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def read() -> None:
        async for _ in body_chunks({}, endless, 900, intake):
            if intake.bytes > 10:
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await read()
    await until(lambda: not intake.bytes)
