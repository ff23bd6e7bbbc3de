"""A bounded queue in front of the model: requests in, batches through the model, answers out.

Work-conserving: a batch starts whenever the runner is free, nothing waits for company. Two runners with the same
queue: `inline` runs the model on the event loop (for one that takes less than a thread switch is worth), `thread`
in a thread of its own. The batcher takes a callable and knows no model.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from service.errors import Expired, GatekeeperError, ModelFailed, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class Batched(Generic[Result]):
    """Results in the order of the items; an item on which the model failed holds its error."""

    results: list[Result | GatekeeperError]
    queue_s: float
    model_s: float


@dataclass(slots=True)
class _Job(Generic[Item, Result]):
    items: Sequence[Item]
    future: "asyncio.Future[Batched[Result]]"
    enqueued_at: float
    deadline: float | None
    started_at: float | None = None
    taken: int = 0
    results: list[Result | GatekeeperError] = field(default_factory=list)


class Batcher(Generic[Item, Result]):
    """submit() from the event loop it was built for; `run` maps items to as many results, and may raise."""

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        runner: Literal["inline", "thread"],
        max_batch_items: int,
        max_queue_items: int,
        on_batch: Callable[[int, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self.runner = runner
        self._max_batch_items = max_batch_items
        self._max_queue_items = max_queue_items
        self._on_batch = on_batch
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job[Item, Result]] = deque()
        self._waiting = 0
        self._scheduled = False
        self._busy_since: float | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model") if runner == "thread" else None

    @property
    def depth(self) -> int:
        """Items waiting."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Not even a request of one item would be taken."""
        return self._waiting >= self._max_queue_items

    def busy_s(self) -> float:
        """For how long the current batch has been running; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    async def submit(self, items: Sequence[Item], deadline: float | None = None) -> Batched[Result]:
        """All items of one request, or none: raises Overloaded when they do not fit into the queue.

        deadline is on the batcher's clock; a request that is still waiting then leaves the queue with Expired.
        """
        if self._waiting + len(items) > self._max_queue_items:
            raise Overloaded("the queue is full: try again", retry_after_s=1)
        job: _Job[Item, Result] = _Job(items, self._loop.create_future(), self._clock(), deadline)
        self._jobs.append(job)
        self._waiting += len(items)
        self._wake()
        return await job.future

    async def aclose(self) -> None:
        """Fail what still waits and let the running batch end."""
        for job in self._jobs:
            _fail(job, Overloaded("the service is stopping: try again", retry_after_s=1))
        self._jobs.clear()
        self._waiting = 0
        if self._executor is not None:
            await self._loop.run_in_executor(None, self._executor.shutdown)

    def _wake(self) -> None:
        if self._busy_since is None and not self._scheduled:
            # One turn of the loop later: every request that has arrived by then shares the batch.
            self._scheduled = True
            self._loop.call_soon(self._start_batch)

    def _start_batch(self) -> None:
        self._scheduled = False
        parts, items = self._take()
        if not items:
            return
        self._busy_since = self._clock()
        if self._executor is None:
            self._finish_batch(parts, _run_isolated(self._run, items))
        else:
            running = self._loop.run_in_executor(self._executor, _run_isolated, self._run, items)
            running.add_done_callback(lambda done: self._finish_batch(parts, done.result()))

    def _take(self) -> tuple[list[tuple[_Job[Item, Result], int]], list[Item]]:
        """The next batch: its items, and how many of them belong to which job."""
        now = self._clock()
        parts: list[tuple[_Job[Item, Result], int]] = []
        items: list[Item] = []
        while self._jobs and len(items) < self._max_batch_items:
            job = self._jobs[0]
            expired = job.deadline is not None and now >= job.deadline
            if job.future.done() or expired:  # its client is gone, or no longer waits
                _fail(job, Expired("the request's own deadline passed while it was waiting"))
                self._waiting -= len(job.items) - job.taken
                self._jobs.popleft()
                continue
            if job.started_at is None:
                job.started_at = now
            count = min(len(job.items) - job.taken, self._max_batch_items - len(items))
            items.extend(job.items[job.taken : job.taken + count])
            parts.append((job, count))
            job.taken += count
            self._waiting -= count
            if job.taken == len(job.items):
                self._jobs.popleft()
        return parts, items

    def _finish_batch(
        self, parts: list[tuple[_Job[Item, Result], int]], results: list[Result | GatekeeperError]
    ) -> None:
        now = self._clock()
        self._on_batch(len(results), now - (self._busy_since or now))
        self._busy_since = None
        position = 0
        for job, count in parts:
            job.results.extend(results[position : position + count])
            position += count
            if len(job.results) == len(job.items) and not job.future.done():
                started_at = job.started_at or now
                job.future.set_result(Batched(job.results, started_at - job.enqueued_at, now - started_at))
        if self._jobs:
            self._wake()


def _fail(job: _Job[Item, Result], error: GatekeeperError) -> None:
    if not job.future.done():
        job.future.set_exception(error)


def _run_isolated(run: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> list[Result | GatekeeperError]:
    """Run a batch; where it raises, halve it until the poisoned item stands alone with its error."""
    try:
        return [*_checked(run(items), len(items))]
    except Exception as error:  # noqa: BLE001  whatever a model raises on one input must not reach its neighbours
        if len(items) == 1:
            failure = ModelFailed("the model raised an error on this input")
            failure.__cause__ = error
            return [failure]
    middle = len(items) // 2
    return _run_isolated(run, items[:middle]) + _run_isolated(run, items[middle:])


def _checked(results: Sequence[Result], items: int) -> Sequence[Result]:
    if len(results) != items:
        raise RuntimeError(f"the model gave {len(results)} results for {items} items")
    return results
