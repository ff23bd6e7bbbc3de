"""The queue in front of the model: nothing lost, nothing mixed up, nobody pays for a neighbour.

One file because its cases share one small model and its clock.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.waiting import until

from service.batching.batcher import Batcher, BatchLimits
from service.batching.choice import choose
from service.batching.queue import MAX_PASSED_OVER, Job, JobQueue
from service.batching.wait import Pace
from service.errors import Expired, ModelDown, ModelFailed, Overloaded

Runner = Any
BOTH = pytest.mark.parametrize("runner", ["inline", "thread"])


@asynccontextmanager
async def batcher_of(
    run: Callable[[list[str]], Sequence[str]], runner: Runner, **options: Any
) -> AsyncIterator[Batcher[str, str]]:
    names = BatchLimits.__dataclass_fields__
    limits = {"max_batch_items": 4, "max_queue_items": 100} | {key: options.pop(key) for key in names & options.keys()}
    batcher: Batcher[str, str] = Batcher(run, BatchLimits(**limits), runner=runner, **options)
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
    refused = [isinstance(answer, Overloaded) for answer in answers]
    assert not any(refused[:18]), "the queue has room for 100 items, and these are 94"
    for items, answer in zip(requests, answers, strict=True):
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
        await until(lambda: batcher.busy_s() and not batcher.depth)
        second = asyncio.create_task(batcher.submit(["b"]))
        await until(lambda: batcher.depth == 1)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(["c", "d"])
        assert refused.value.retry_after_s == 1
        batcher.admit()
        third = asyncio.create_task(batcher.submit(["e"]))
        await until(lambda: batcher.depth == 2)
        with pytest.raises(Overloaded):
            batcher.admit()
        release.set()
        answers = [(await task).results for task in (first, second, third)]
    assert answers == [["A"], ["B"], ["E"]]


async def test_a_request_that_would_wait_too_long_is_refused_unless_the_next_batch_takes_it() -> None:
    """A model of 0.3 s an item, batches of two, half a second of patience."""
    proceed, now = threading.Semaphore(0), [0.0]

    def run(items: list[str]) -> list[str]:
        proceed.acquire(timeout=5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=2, max_queue_wait_s=0.5, clock=lambda: now[0]) as batcher:
        warm = asyncio.create_task(batcher.submit(["a", "b"]))
        await until(lambda: batcher.running)
        now[0] = 0.6
        proceed.release()
        await warm
        running = asyncio.create_task(batcher.submit(["c", "d"]))
        await until(lambda: batcher.running)
        assert batcher.wait_s() == pytest.approx(0.6)
        batcher.admit()  # it would wait for more than half a second, and joins the next batch
        waiting = asyncio.create_task(batcher.submit(["e", "f"]))
        await until(lambda: batcher.depth == 2)
        with pytest.raises(Overloaded) as refused:
            batcher.admit()
        assert refused.value.retry_after_s == 2
        proceed.release(2)
        assert [(await task).results for task in (running, waiting)] == [["C", "D"], ["E", "F"]]


async def test_cancelled_and_expired_requests_never_reach_the_model() -> None:
    release, seen, now = threading.Event(), list[str](), [0.0]

    def run(items: list[str]) -> list[str]:
        seen.extend(items)
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=1, clock=lambda: now[0]) as batcher:
        first = asyncio.create_task(batcher.submit(["a"]))
        await until(lambda: seen and not batcher.depth)
        gone, late, kept = (
            asyncio.create_task(batcher.submit(["gone", "gone"])),
            asyncio.create_task(batcher.submit(["late"], deadline=5.0)),
            asyncio.create_task(batcher.submit(["kept"], deadline=50.0)),
        )
        await until(lambda: batcher.depth == 4)
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
        await until(lambda: batcher.running)
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
        await until(lambda: batcher.busy_s() and not batcher.depth)
        waiting = asyncio.create_task(batcher.submit(["b"]))
        await until(lambda: batcher.depth == 1)
        asyncio.get_running_loop().call_later(0.01, release.set)
    with pytest.raises(Overloaded):
        await waiting
    assert (await running).results == ["A"]


async def test_a_batch_holds_no_more_padded_tokens_than_its_limit_and_a_longer_item_goes_alone() -> None:
    batches: list[list[str]] = []

    def run(items: list[str]) -> list[str]:
        batches.append(items)
        return upper(items)

    async with batcher_of(run, "inline", max_batch_tokens=12, length=len) as batcher:
        answer = await batcher.submit(["aaaa", "b" * 40, "cccc", "dddd", "ee", "ff"])
    assert answer.results == upper(["aaaa", "b" * 40, "cccc", "dddd", "ee", "ff"])
    assert batches == [["aaaa", "cccc", "dddd"], ["b" * 40], ["ee", "ff"]]


async def test_items_of_like_length_share_a_batch_when_more_waits_than_one_holds() -> None:
    batches: list[set[int]] = []
    release = threading.Event()

    def run(items: list[str]) -> list[str]:
        release.wait(5)
        batches.append({len(item) for item in items})
        return upper(items)

    async with batcher_of(run, "thread", length=len) as batcher:
        texts = ["x" * (5, 50, 500)[i % 3] for i in range(12)]
        first = asyncio.create_task(batcher.submit(["first"]))
        await until(lambda: batcher.running)
        rest = [asyncio.create_task(batcher.submit([text])) for text in texts]
        await until(lambda: batcher.depth == 12)
        release.set()
        assert [(await task).results for task in rest] == [[text.upper()] for text in texts]
        await first
    assert batches[1:] == [{5}, {50}, {500}]


def jobs_of(loop: asyncio.AbstractEventLoop, *lengths: int) -> list[Job[int, int]]:
    return [Job([length], loop.create_future(), 0.0, None) for length in lengths]


async def test_an_item_passed_over_too_often_goes_first() -> None:
    loop = asyncio.get_running_loop()
    queue: JobQueue[int, int] = JobQueue(lambda length: length, max_items=4, max_tokens=10**9, reach=64)
    # Each of these is further from the next than from the short ones, which never run out.
    for job in jobs_of(loop, *(1_000 * 3**i for i in range(MAX_PASSED_OVER + 4))):
        queue.append(job)
    for round_ in range(MAX_PASSED_OVER):
        for job in jobs_of(loop, 1, 1, 1):
            queue.append(job)
        batch = queue.take(0.0)
        assert batch is not None
        assert batch.items == [1_000 * 3**round_, 1, 1, 1]
    batch = queue.take(0.0)
    assert batch is not None
    assert batch.items == [1_000 * 3**i for i in range(MAX_PASSED_OVER, MAX_PASSED_OVER + 4)]
    assert queue.take(0.0) is None


def test_choosing_takes_the_oldest_then_the_overdue_then_the_nearest() -> None:
    lengths = [10, 90, 11, 12, 80, 9, 10]
    assert choose(lengths, 0, 4, 10_000) == [0, 6, 2, 5]
    assert choose(lengths, 2, 4, 10_000) == [0, 1, 6, 2]
    assert choose(lengths, 0, 7, 36) == [0, 6, 2]
    assert choose(lengths, 0, 7, 5) == [0]


@BOTH
async def test_an_idle_model_waits_for_company_until_the_batch_is_full(runner: Runner) -> None:
    sizes: list[int] = []
    async with batcher_of(upper, runner, max_wait_s=30.0, on_batch=lambda items, _: sizes.append(items)) as batcher:
        tasks = [asyncio.create_task(batcher.submit([text])) for text in "abc"]
        await until(lambda: batcher.depth == 3)
        for _ in range(20):  # a batch of what is there would begin in the next turn
            await asyncio.sleep(0)
        assert not batcher.running
        assert batcher.depth == 3
        tasks.append(asyncio.create_task(batcher.submit(["d"])))
        assert [(await task).results for task in tasks] == [["A"], ["B"], ["C"], ["D"]]
    assert sizes == [4]


@BOTH
async def test_an_idle_model_waits_no_longer_than_it_may(runner: Runner) -> None:
    async with batcher_of(upper, runner, max_wait_s=0.01) as batcher:
        assert (await batcher.submit(["a"])).results == ["A"]
    async with batcher_of(upper, runner, max_wait_s=30.0) as batcher:
        deadline = asyncio.get_running_loop().time() + 20.0
        assert (await batcher.submit(["a"], deadline)).results == ["A"]


@BOTH
async def test_a_model_that_has_ended_fails_its_callers_at_once_and_for_good(runner: Runner) -> None:
    def run(items: list[str]) -> list[str]:
        raise SystemExit(3)

    async with batcher_of(run, runner, max_batch_items=1) as batcher:
        tasks = [asyncio.create_task(batcher.submit([text])) for text in "ab"]
        for task in tasks:
            with pytest.raises(ModelDown) as down:
                await task
            assert down.value.status == 503
        assert batcher.trouble() == "the model has ended with SystemExit"
        assert batcher.depth == 0
        assert not batcher.running
        with pytest.raises(ModelDown, match="SystemExit"):
            await batcher.submit(["c"])


async def test_a_hang_fails_all_who_wait_and_is_over_when_the_batch_ends() -> None:
    release = threading.Event()

    def run(items: list[str]) -> list[str]:
        release.wait(5)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=1, model_timeout_s=0.05) as batcher:
        tasks = [asyncio.create_task(batcher.submit([text])) for text in "ab"]
        for task in tasks:
            with pytest.raises(ModelDown, match="at one batch for more than"):
                await task
        assert batcher.trouble() is not None
        with pytest.raises(ModelDown):
            await batcher.submit(["c"])
        release.set()
        await until(lambda: batcher.trouble() is None)
        assert (await batcher.submit(["d"])).results == ["D"]
        assert batcher.wait_s(100) < 1.0, "the hang is no measure of the batches after it"


async def test_closing_does_not_wait_for_a_model_that_hangs() -> None:
    release = threading.Event()

    def run(items: list[str]) -> list[str]:
        release.wait(30)
        return upper(items)

    async with batcher_of(run, "thread") as batcher:
        task = asyncio.create_task(batcher.submit(["a"]))
        await until(lambda: batcher.running)
    with pytest.raises(Overloaded, match="stopping"):
        await task
    assert batcher.running
    with pytest.raises(Overloaded, match="stopping"):
        await batcher.submit(["b"])
    release.set()
    await until(lambda: not batcher.running)


async def test_a_job_that_is_partly_taken_leaves_the_queue_when_its_client_goes_or_its_time_is_up() -> None:
    seen, now, gate = list[str](), [0.0], threading.Semaphore(0)

    def run(items: list[str]) -> list[str]:
        gate.acquire(timeout=5)
        seen.extend(items)
        return upper(items)

    async with batcher_of(run, "thread", max_batch_items=2, clock=lambda: now[0]) as batcher:
        gone = asyncio.create_task(batcher.submit(["g1", "g2", "g3"]))
        late = asyncio.create_task(batcher.submit(["l1", "l2", "l3"], deadline=5.0))
        await until(lambda: batcher.running)
        gone.cancel()
        gate.release()
        await until(lambda: batcher.depth == 1)
        now[0] = 6.0
        gate.release()
        with pytest.raises(Expired):
            await late
        assert batcher.depth == 0
        gate.release()
        assert (await batcher.submit(["k"])).results == ["K"]
    assert seen == ["g1", "g2", "l1", "l2", "k"]


async def test_the_wait_is_estimated_from_the_batches_of_a_busy_time() -> None:
    now, gate, waits = [0.0], threading.Semaphore(0), list[float]()

    def run(items: list[str]) -> list[str]:
        gate.acquire(timeout=5)
        now[0] += 0.25 * len(items)
        return upper(items)

    async with batcher_of(
        run, "thread", max_batch_items=2, max_queue_items=9, clock=lambda: now[0], on_queue=waits.append
    ) as batcher:
        assert batcher.wait_s() == 0.0
        tasks = [asyncio.create_task(batcher.submit([str(i)])) for i in range(9)]
        for left in (7, 5, 3):
            await until(lambda left=left: batcher.depth == left and batcher.running)
            gate.release()
        await until(lambda: batcher.depth == 1 and batcher.running)
        assert batcher.wait_s() == pytest.approx(0.5), "the running batch"
        assert batcher.wait_s(2) == pytest.approx(1.0), "and the one after it"
        now[0] += 0.25
        assert batcher.wait_s() == pytest.approx(0.25)
        with pytest.raises(Overloaded, match="deadline") as refused:
            await batcher.submit(["x"], deadline=now[0] + 0.1)
        assert refused.value.retry_after_s == 1
        tasks.append(asyncio.create_task(batcher.submit(["kept"] * 7, deadline=now[0] + 60.0)))
        await until(lambda: batcher.depth == 8)
        with pytest.raises(Overloaded, match="too long") as refused:
            await batcher.submit(["x", "y"])
        assert refused.value.retry_after_s == 3
        gate.release(9)
        await asyncio.gather(*tasks)
        assert batcher.wait_s() == 0.0
    assert len(waits) == len(tasks), "one observation a job"


def test_a_small_batch_never_makes_the_model_look_slow() -> None:
    pace = Pace(32)
    pace.note(1, 0.0, 0.1, more_waited=False, more_wait=False)
    assert pace.wait_s(64, 0, 0.0) == pytest.approx(0.2)
    for start in range(1, 40):  # a tenth of a second for 32, and as much between the batches
        pace.note(32, start * 0.2 - 0.1, start * 0.2, more_waited=True, more_wait=True)
    assert pace.wait_s(64, 0, 0.0) == pytest.approx(0.4)
    pace.note(1, 20.0, 20.1, more_waited=False, more_wait=False)
    assert pace.wait_s(64, 0, 0.0) == pytest.approx(0.4)


def test_one_batch_that_a_stopped_process_held_up_refuses_nobody_for_long() -> None:
    """Stopped for 8 s in the middle of a batch: nobody is told to come back in 8 s. A model slower for good is seen."""
    pace, now = Pace(4), 0.0
    for _ in range(20):
        pace.note(4, now, now + 0.004, more_waited=True, more_wait=True)
        now += 0.004
    pace.note(4, now, now + 8.0, more_waited=True, more_wait=True)
    now += 8.0
    assert pace.wait_s(8, 4, 0.0) < 0.1
    for _ in range(20):
        pace.note(4, now, now + 8.0, more_waited=True, more_wait=True)
        now += 8.0
    assert pace.wait_s(8, 4, 0.0) > 10.0
