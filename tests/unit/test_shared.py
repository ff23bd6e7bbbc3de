"""A document that is slow to make is made for all who wait for it, and never made before one asked."""

import asyncio

import pytest

from service.api.shared import SharedDocument


class Maker:
    """Makes numbered documents."""

    def __init__(self) -> None:
        self.made = 0
        self.fail = False

    def __call__(self) -> int:
        if self.fail:
            raise ValueError("nothing to show")
        self.made += 1
        return self.made


async def test_those_who_wait_share_one_and_the_next_gets_a_later_one() -> None:
    make = Maker()
    shared = SharedDocument(make)
    assert set(await asyncio.gather(*(shared.get() for _ in range(50)))) == {1}
    assert await shared.get() == 2


async def test_what_one_gets_was_made_after_one_asked() -> None:
    state = ["before"]
    shared = SharedDocument(lambda: state[0])
    await shared.get()
    asked = asyncio.create_task(shared.get())
    await asyncio.sleep(0)  # it has asked, and nothing is made yet
    state[0] = "after"
    assert await asked == "after"


async def test_one_who_leaves_does_not_take_it_from_the_others() -> None:
    shared = SharedDocument(Maker())
    leaving, staying = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)  # both have asked, and nothing is made yet
    leaving.cancel()
    assert await staying == 1


async def test_a_failure_is_told_to_all_and_the_next_one_is_tried() -> None:
    make = Maker()
    make.fail = True
    shared = SharedDocument(make)
    answers = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]
    make.fail = False
    assert await shared.get() == 1


async def test_a_crowd_gets_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in 10 ms, ten times a second at the most: by the loop's own clock, moved by hand."""
    loop = asyncio.get_running_loop()
    now = [0.0]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    def make() -> None:
        now[0] += 0.01

    monkeypatch.setattr(loop, "time", lambda: now[0])
    monkeypatch.setattr("service.api.shared.asyncio.sleep", sleep)
    shared = SharedDocument(make)
    for _ in range(10):
        await shared.get()
    assert len(waits) == 10
    assert now[0] == pytest.approx(0.01 + 9 * 0.1)
