"""The queue in front of the model: nothing lost, nothing mixed up, nobody pays for a neighbour."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.batcher import Batcher
from service.errors import Expired, ModelFailed, Overloaded

Runner = Any
BOTH = pytest.mark.parametrize("runner", ["inline", "thread"])


@asynccontextmanager
async def batcher_of(
    run: Callable[[list[str]], Sequence[str]], runner: Runner, **options: Any
) -> AsyncIterator[Batcher[str, str]]:
    settings = {"max_batch_items": 4, "max_queue_items": 100, "on_batch": lambda *_: None}
    batcher: Batcher[str, str] = Batcher(run, runner=runner, **(settings | options))
    try:
        yield batcher
    finally:
        await batcher.aclose()


def upper(items: list[str]) -> list[str]:
    return [item.upper() for item in items]


@BOTH
async def test_each_request_gets_its_own_answers_in_order(runner: Runner) -> None:
    async with batcher_of(upper, runner) as batcher:
        requests = [[f"r{r}i{i}" for i in range(1 + r % 11)] for r in range(50)]
        answers = await asyncio.gather(*(batcher.submit(items) for items in requests), return_exceptions=True)
        accepted = [(items, answer) for items, answer in zip(requests, answers, strict=True)]
    for items, answer in accepted:
        if not isinstance(answer, Overloaded):
            assert not isinstance(answer, BaseException)
            assert answer.results == upper(items)


@BOTH
async def test_requests_that_arrive_together_share_a_batch_and_none_exceeds_the_limit(runner: Runner) -> None:
    sizes: list[int] = []
    async with batcher_of(upper, runner, on_batch=lambda items, _: sizes.append(items)) as batcher:
        await asyncio.gather(*(batcher.submit([str(i)]) for i in range(6)), batcher.submit(["x"] * 9))
    assert sum(sizes) == 15
    assert max(sizes) == 4
    assert len(sizes) <= 6


@BOTH
async def test_a_poisoned_item_fails_alone(runner: Runner) -> None:
    def run(items: list[str]) -> list[str]:
        if "poison" in items:
            raise ValueError("poison")
        return upper(items)

    async with batcher_of(run, runner, max_batch_items=8) as batcher:
        whole, mixed = await asyncio.gather(batcher.submit(["a", "b"]), batcher.submit(["c", "poison", "d"]))
    assert whole.results == ["A", "B"]
    assert mixed.results[0] == "C"
    assert isinstance(mixed.results[1], ModelFailed)
    assert isinstance(mixed.results[1].__cause__, ValueError)
    assert mixed.results[2] == "D"


@BOTH
async def test_a_model_that_loses_items_is_a_failure_not_a_mix_up(runner: Runner) -> None:
    async with batcher_of(lambda items: upper(items)[:-1], runner) as batcher:
        answer = await batcher.submit(["a", "b", "c"])
    assert all(isinstance(result, ModelFailed) for result in answer.results)


async def test_a_full_queue_refuses_the_whole_request_and_serves_the_rest() -> None:
    release = threading.Event()

    def run(items: list[str]) -> list[str]:
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=1, max_queue_items=2) as batcher:
        first = asyncio.create_task(batcher.submit(["a"]))
        while batcher.depth or not batcher.busy_s():
            await asyncio.sleep(0)
        second = asyncio.create_task(batcher.submit(["b"]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(["c", "d"])
        assert refused.value.retry_after_s == 1
        assert not batcher.full
        third = asyncio.create_task(batcher.submit(["e"]))
        await asyncio.sleep(0)
        assert batcher.full
        release.set()
        answers = [(await task).results for task in (first, second, third)]
    assert answers == [["A"], ["B"], ["E"]]


async def test_cancelled_and_expired_requests_never_reach_the_model() -> None:
    release, seen, now = threading.Event(), list[str](), [0.0]

    def run(items: list[str]) -> list[str]:
        seen.extend(items)
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=1, clock=lambda: now[0]) as batcher:
        first = asyncio.create_task(batcher.submit(["a"]))
        while batcher.depth or not seen:
            await asyncio.sleep(0)
        gone, late, kept = (
            asyncio.create_task(batcher.submit(["gone", "gone"])),
            asyncio.create_task(batcher.submit(["late"], deadline=5.0)),
            asyncio.create_task(batcher.submit(["kept"], deadline=50.0)),
        )
        await asyncio.sleep(0)
        gone.cancel()
        now[0] = 10.0
        release.set()
        assert (await first).results == ["A"]
        assert (await kept).results == ["KEPT"]
        with pytest.raises(Expired):
            await late
        assert batcher.depth == 0
    assert seen == ["a", "kept"]


async def test_a_batch_that_hangs_is_seen() -> None:
    release, now = threading.Event(), [100.0]

    def run(items: list[str]) -> list[str]:
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", clock=lambda: now[0]) as batcher:
        assert batcher.busy_s() == 0.0
        task = asyncio.create_task(batcher.submit(["a"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        now[0] = 190.0
        assert batcher.busy_s() == 90.0
        release.set()
        await task
        assert batcher.busy_s() == 0.0


async def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    release = threading.Event()

    def run(items: list[str]) -> list[str]:
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=1) as batcher:
        running = asyncio.create_task(batcher.submit(["a"]))
        while batcher.depth or not batcher.busy_s():
            await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.submit(["b"]))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, release.set)
    with pytest.raises(Overloaded):
        await waiting
    assert (await running).results == ["A"]
