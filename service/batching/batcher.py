"""A bounded queue in front of the model: requests in, batches through the model, answers out.

Work-conserving: a batch starts as soon as the runner is free; no item waits for others unless max_wait_s says so. Two
runners share this queue: `inline` runs the model on the event loop, for a model that is quicker than a switch of
threads; `thread` runs it in a thread of its own. The batcher takes a callable and knows no model.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from service.batching.queue import Batch, Batched, Job, JobQueue
from service.batching.runner import InlineRunner, ThreadRunner
from service.batching.wait import Pace
from service.errors import GatekeeperError, ModelDown, Overloaded

# A batch is chosen from the oldest four batches' worth of items, so that the choice takes a bounded time.
REACH_BATCHES = 4
CLOSE_S = 1.0  # clients have already had shutdown_timeout_s: nobody waits for what still runs then

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchLimits:
    """max_batch_tokens: the tokens of a batch's longest item times its items. max_wait_s: how long the oldest item may
    wait for others to share its batch.

    max_queue_wait_s: a request that would wait longer to be started is refused, unless the next batch takes it.
    """

    max_batch_items: int
    max_queue_items: int
    max_batch_tokens: int = 16_384
    max_wait_s: float = 0.0
    max_queue_wait_s: float = math.inf
    model_timeout_s: float = 60.0


class Batcher(Generic[Item, Result]):
    """Call submit() on the event loop that built it. `run` maps items to as many results, and may raise.

    length: an item's tokens, or a cheap estimate. on_batch: items and seconds of each batch; on_queue: seconds that a
    request waited until its first item was taken.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        limits: BatchLimits,
        *,
        runner: Literal["inline", "thread"],
        on_batch: Callable[[int, float], None] = lambda *_: None,
        on_queue: Callable[[float], None] = lambda _: None,
        length: Callable[[Item], int] = lambda _: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._limits = limits
        self._on_batch = on_batch
        self._on_queue = on_queue
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._runner: InlineRunner[Item, Result]
        if runner == "inline":
            self._runner = InlineRunner(run, self._finish_batch, self._fail_all)
        else:
            self._runner = ThreadRunner(run, self._finish_batch, self._fail_all, timeout_s=limits.model_timeout_s)
        self._queue: JobQueue[Item, Result] = JobQueue(
            length,
            max_items=limits.max_batch_items,
            max_tokens=limits.max_batch_tokens,
            # With an inline model, choosing from more than one batch costs more than the padding that it saves.
            reach=limits.max_batch_items * (1 if runner == "inline" else REACH_BATCHES),
        )
        self._pace = Pace(limits.max_batch_items)
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._batch: Batch[Item, Result] | None = None
        self._began = 0.0
        self._more_waited = False
        self._closed = False
        self._idle = asyncio.Event()

    @property
    def depth(self) -> int:
        """Items waiting."""
        return self._queue.depth

    @property
    def running(self) -> bool:
        """Whether the model works on a batch."""
        return self._batch is not None

    def busy_s(self) -> float:
        """For how long the current batch has been running; 0 when idle."""
        return 0.0 if self._batch is None else self._clock() - self._began

    def wait_s(self, items: int = 1) -> float:
        """Expected seconds until the last of so many items, submitted now, is started; 0 where that is at once."""
        running = 0 if self._batch is None else len(self._batch.items)
        return self._pace.wait_s(self._queue.depth + items - 1, running, self.busy_s())

    def trouble(self) -> str | None:
        """What is wrong with the model: it has hung for too long, which may pass, or it has ended, which will not."""
        return self._runner.trouble

    async def submit(self, items: Sequence[Item], deadline: float | None = None) -> Batched[Result]:
        """All items of one request, or none: raises Overloaded when they do not fit into the queue.

        deadline is on the batcher's clock: Overloaded where the wait would be longer, Expired where it has been.
        Raises ModelDown when the model is in trouble, at once or as soon as that is known.
        """
        self.admit(len(items), deadline)
        now = self._clock()
        job: Job[Item, Result] = Job(items, self._loop.create_future(), now, deadline)
        self._queue.append(job)
        self._wake()
        return await job.future

    async def aclose(self) -> None:
        """Fail what still waits; let the running batch end, for CLOSE_S at most, and not if it is known to hang."""
        self._closed = True
        self._queue.fail_all(_stopping)
        self._runner.stop()
        if self.running and self._runner.trouble is None:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), CLOSE_S)
        self._fail_running(_stopping)

    def admit(self, items: int = 1, deadline: float | None = None) -> None:
        """Raises what submit() would for so many items: Overloaded or ModelDown. Cheap, for before a body is read."""
        if self._closed:
            raise _stopping()
        if self._runner.trouble is not None:
            raise self._model_down()
        if self._queue.depth + items > self._limits.max_queue_items or self.overloaded():
            raise Overloaded("the queue is too long: try again", retry_after_s=self.retry_after_s())
        if deadline is not None and self._clock() + self.wait_s(items) > deadline:
            raise Overloaded(
                "the queue would take longer than the request's own deadline: try again, or allow more time",
                retry_after_s=self.retry_after_s(),
            )

    def overloaded(self) -> bool:
        """Whether any request would be refused now: no room, or a wait that is too long."""
        depth, limits = self._queue.depth, self._limits
        if depth < limits.max_batch_items:
            return depth >= limits.max_queue_items
        return depth >= limits.max_queue_items or self.wait_s() > limits.max_queue_wait_s

    def retry_after_s(self) -> int:
        """What to tell whoever is refused, in whole seconds."""
        return min(60, max(1, math.ceil(self.wait_s())))

    def _wake(self) -> None:
        if self._batch is None and not self._scheduled:
            # One turn of the loop later: every request that has arrived by then shares the batch.
            self._scheduled = True
            self._loop.call_soon(self._start_batch)

    def _start_batch(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
        if self._batch is not None:
            return
        now = self._clock()
        batch = self._queue.take(now)
        if batch is None:
            return
        if self._limits.max_wait_s and not batch.full and self._waits_for_company(batch, now):
            self._queue.put_back(batch)
            return
        self._batch, self._began = batch, now
        for job, _ in batch.parts:
            if job.started_at is None:
                job.started_at = now
                self._on_queue(now - job.enqueued_at)
        self._more_waited = self._queue.depth > 0
        self._runner.start(batch.items)

    def _waits_for_company(self, batch: Batch[Item, Result], now: float) -> bool:
        """Whether the oldest job may wait on, and no deadline falls into that time; then a timer is set."""
        due = batch.parts[0][0].enqueued_at + self._limits.max_wait_s
        if now >= due or any(job.deadline is not None and job.deadline <= due for job, _ in batch.parts):
            return False
        self._timer = self._loop.call_later(due - now, self._start_batch)
        return True

    def _finish_batch(self, results: list[Result | GatekeeperError]) -> None:
        now = self._clock()
        batch, self._batch = self._batch, None
        assert batch is not None
        self._on_batch(len(results), now - self._began)
        batch.answer(results, now)
        if now - self._began < self._limits.model_timeout_s:
            more_wait = self._queue.depth > 0
            self._pace.note(len(results), self._began, now, more_waited=self._more_waited, more_wait=more_wait)
        else:  # what a hang took says nothing of the batches after it
            self._pace = Pace(self._limits.max_batch_items)
        if self._queue.depth:
            self._wake()
        elif self._closed:
            self._idle.set()

    def _fail_all(self) -> None:
        """Nobody waits for a model in trouble, neither in the queue nor for the batch that it has."""
        self._queue.fail_all(self._model_down)
        self._fail_running(self._model_down)
        if not self._runner.running:
            self._batch = None
            self._idle.set()

    def _fail_running(self, error: Callable[[], GatekeeperError]) -> None:
        if self._batch is not None:
            for job, _ in self._batch.parts:
                job.fail(error())

    def _model_down(self) -> ModelDown:
        return ModelDown(f"{self._runner.trouble}: try again, best at another replica", retry_after_s=5)


def _stopping() -> Overloaded:
    return Overloaded("the service is stopping: try again", retry_after_s=1)
