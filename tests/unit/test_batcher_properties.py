"""The batcher under any order of arrivals, sizes, lengths, cancellations, deadlines and failures.

Time is the loop's own and jumps from timer to timer; a model in a thread waits at a gate until its time has come. So
every run is the same for the same example, and hypothesis can shrink it.
"""

import asyncio
import selectors
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.batcher import REACH_BATCHES, Batcher, BatchLimits
from service.batching.queue import MAX_PASSED_OVER, Batched, Job, JobQueue
from service.errors import Expired, ModelFailed, Overloaded

ITEM_S = 0.01


class Loop(asyncio.SelectorEventLoop):
    """Never sleeps: where it would wait for a timer, the time is then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called = threading.Event()
        super().__init__(Selector(self))

    def time(self) -> float:
        return self.now

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(*args, **kwargs)
        self.called.set()
        return handle


class Selector(selectors.DefaultSelector):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "the loop would wait for ever: somebody was forgotten"
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


@dataclass(frozen=True)
class Item:
    name: str
    length: int
    fault: str | None


@dataclass(frozen=True)
class Request:
    at_s: float
    items: tuple[Item, ...]
    timeout_s: float | None
    cancelled_after_s: float | None


class Model:
    """Answers an item with its name. In a thread it waits until it is let go."""

    def __init__(self, loop: Loop, threaded: bool) -> None:
        self.batches: list[list[Item]] = []
        self.answered: Counter[str] = Counter()
        self.gate = threading.Event()
        self._loop = loop
        self._threaded = threaded

    def __call__(self, items: list[Item]) -> list[str]:
        if not self.batches or items[0] not in self.batches[-1]:  # else it is a part of the batch before
            self.batches.append(items)
            if self._threaded:
                assert self.gate.wait(10)
            else:
                self._loop.now += ITEM_S * len(items)
        faults = {item.fault for item in items}
        if "raise" in faults:
            raise ValueError("poison")
        self.answered.update(item.name for item in items)
        return [item.name for item in items if item.fault != "lose"]


async def let_go(batcher: Batcher[Item, str], model: Model, loop: Loop) -> None:
    """The model's thread: a batch takes its time on the loop's clock, and no more than a moment of ours."""
    while True:
        await asyncio.sleep(ITEM_S / 7)
        if batcher.running:
            await asyncio.sleep(ITEM_S)
            loop.called.clear()
            model.gate.set()
            assert loop.called.wait(10)
            await asyncio.sleep(0)  # its end is heard
            model.gate.clear()


async def ask(batcher: Batcher[Item, str], request: Request, loop: Loop) -> Batched[str] | BaseException:
    await asyncio.sleep(request.at_s)
    deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
    task = asyncio.create_task(batcher.submit(request.items, deadline))
    if request.cancelled_after_s is not None:
        loop.call_later(request.cancelled_after_s, task.cancel)
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def serve(
    loop: Loop, limits: BatchLimits, runner: Any, requests: list[Request]
) -> tuple[Model, list[Batched[str] | BaseException], list[int], list[float]]:
    model, sizes, waits = Model(loop, runner == "thread"), list[int](), list[float]()
    batcher: Batcher[Item, str] = Batcher(
        model,
        limits,
        runner=runner,
        length=lambda item: item.length,
        on_batch=lambda items, _: sizes.append(items),
        on_queue=waits.append,
        clock=loop.time,
    )
    letting_go = asyncio.create_task(let_go(batcher, model, loop))
    answers = await asyncio.wait_for(asyncio.gather(*(ask(batcher, request, loop) for request in requests)), 5)
    while batcher.running or batcher.depth:  # of those who did not wait for it
        await asyncio.sleep(ITEM_S)
    assert not letting_go.done()
    letting_go.cancel()
    assert batcher.trouble() is None
    assert batcher.wait_s() == 0.0
    await batcher.aclose()
    return model, answers, sizes, waits


SECONDS = st.integers(0, 12).map(lambda steps: steps * ITEM_S / 2)


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    fault = st.sampled_from([None, None, None, None, None, "raise", "lose"])
    parts = draw(
        st.lists(
            st.tuples(
                SECONDS,
                st.lists(st.tuples(st.integers(1, 12), fault), min_size=1, max_size=9),
                st.none() | SECONDS.map(lambda seconds: seconds + ITEM_S / 4),
                st.none() | SECONDS,
            ),
            min_size=1,
            max_size=12,
        )
    )
    return [
        Request(
            at_s,
            tuple(Item(f"{number}.{position}", *item) for position, item in enumerate(items)),
            timeout_s,
            cancelled_after_s,
        )
        for number, (at_s, items, timeout_s, cancelled_after_s) in enumerate(parts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["inline", "thread"])
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    requests=requests(),
    max_items=st.integers(1, 6),
    max_tokens=st.integers(4, 40),
    max_queue=st.integers(9, 40),
    max_wait_s=st.sampled_from([0.0, ITEM_S / 3, ITEM_S * 4]),
)
def test_every_accepted_item_is_answered_once_with_its_own_result(
    runner: str, requests: list[Request], max_items: int, max_tokens: int, max_queue: int, max_wait_s: float
) -> None:
    limits = BatchLimits(max_items, max_queue, max_tokens, max_wait_s, model_timeout_s=10 * ITEM_S)
    with asyncio.Runner(loop_factory=Loop) as run:
        loop = run.get_loop()
        model, answers, sizes, waits = run.run(serve(loop, limits, runner, requests))
    for batch in model.batches:
        assert len(batch) <= max_items
        assert len(batch) == 1 or max(item.length for item in batch) * len(batch) <= max_tokens
    assert [len(batch) for batch in model.batches] == sizes
    taken = Counter(item.name for batch in model.batches for item in batch)
    assert not taken or max(taken.values()) == 1, "no item goes through the model in two batches"
    for request, answer in zip(requests, answers, strict=True):
        check_answer(request, answer, taken)
    started = {name.split(".")[0] for name in taken}
    assert len(waits) == len(started)


def check_answer(request: Request, answer: Batched[str] | BaseException, taken: Counter[str]) -> None:
    names = [item.name for item in request.items]
    if isinstance(answer, Batched):
        assert all(taken[name] for name in names)
        for item, result in zip(request.items, answer.results, strict=True):
            if item.fault is None:
                assert result == item.name
            else:
                assert isinstance(result, ModelFailed)
    elif isinstance(answer, Expired):
        assert request.timeout_s is not None
        assert not all(taken[name] for name in names)
    elif isinstance(answer, Overloaded):
        assert not any(taken[name] for name in names), "a refused request costs the model nothing"
    else:
        assert isinstance(answer, asyncio.CancelledError), repr(answer)
        assert request.cancelled_after_s is not None


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    steps=st.lists(st.none() | st.lists(st.integers(1, 30), min_size=1, max_size=8), max_size=60),
    max_items=st.integers(1, 4),
    max_tokens=st.integers(8, 90),
)
def test_the_oldest_item_is_in_every_batch_and_the_overdue_are_in_the_next(
    steps: list[list[int] | None], max_items: int, max_tokens: int
) -> None:
    """A step is a job that arrives, or None: a batch is taken. Then batches until nothing waits."""
    loop = asyncio.new_event_loop()
    reach = REACH_BATCHES * max_items
    queue: JobQueue[tuple[int, int], int] = JobQueue(
        lambda item: item[1], max_items=max_items, max_tokens=max_tokens, reach=reach
    )
    waiting: list[tuple[int, int]] = []
    number = 0
    rounds_in_reach: Counter[int] = Counter()
    for step in [*steps, *[None] * sum(map(len, filter(None, steps)))]:
        if step is not None:
            items = [(number + position, length) for position, length in enumerate(step)]
            number += len(items)
            queue.append(Job(items, loop.create_future(), 0.0, None))
            waiting += items
        elif waiting:
            rounds_in_reach.update(place for place, _ in waiting[:reach])
            batch = queue.take(0.0)
            assert batch is not None
            assert waiting[0] in batch.items
            for item in batch.items:
                waiting.remove(item)
                # Once it is overdue, only those before it that are overdue too can go first.
                assert rounds_in_reach[item[0]] <= MAX_PASSED_OVER + reach
            padded = max(length for _, length in batch.items)
            if not batch.full:
                assert not waiting
            elif len(batch.items) < max_items:
                within = waiting[: reach - len(batch.items)]
                assert all(max(padded, length) * (len(batch.items) + 1) > max_tokens for _, length in within)
        assert queue.depth == len(waiting)
    assert not waiting
    loop.close()
