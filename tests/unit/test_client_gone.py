"""A client that leaves while its answer is made: the work is cancelled, and nothing else is."""

import asyncio

import pytest

from service.cascade.client_gone import unless_gone
from service.errors import ClientGone, RemoteTimeout


async def staying() -> None:
    await asyncio.Event().wait()


async def leaving() -> None:
    await asyncio.sleep(0)


async def test_the_work_of_a_client_that_has_left_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(ClientGone):
        await unless_gone(work(), leaving)
    assert ended == ["cancelled"]
    this = asyncio.current_task()
    assert this is not None
    assert this.cancelling() == 0
    await asyncio.sleep(0)  # where a late cancellation would be raised


async def test_the_answer_and_the_error_of_the_work_come_through() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> int:
        await asyncio.sleep(0)
        raise RemoteTimeout("late")

    assert await unless_gone(answer(), staying) == 7
    with pytest.raises(RemoteTimeout):
        await unless_gone(fail(), staying)


async def test_a_cancellation_from_outside_stays_one() -> None:
    task = asyncio.create_task(unless_gone(staying(), staying))
    await asyncio.sleep(0)  # it has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("turns", range(5))
async def test_leaving_at_the_moment_of_the_answer_cancels_nothing_that_comes_after(turns: int) -> None:
    async def answer() -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return 7

    async def leave() -> None:
        for _ in range(2):
            await asyncio.sleep(0)

    try:
        assert await unless_gone(answer(), leave) == 7
    except ClientGone:
        assert turns >= 2
    for _ in range(5):
        await asyncio.sleep(0)  # where a late cancellation would be raised


async def test_a_deadline_around_the_work_stays_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await unless_gone(staying(), staying)
