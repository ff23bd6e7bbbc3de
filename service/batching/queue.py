"""What waits for the model: jobs in the order of their arrival, taken out in batches, answered item by item."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from service.batching.choice import choose, fits
from service.errors import Expired, GatekeeperError

MAX_PASSED_OVER = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class Batched(Generic[Result]):
    """Results in the order of the items; an item on which the model failed holds its error."""

    results: list[Result | GatekeeperError]
    queue_s: float
    model_s: float


class Job(Generic[Item, Result]):
    """The items of one request, which may go through the model in several batches."""

    __slots__ = (
        *("deadline", "enqueued_at", "future", "items", "left"),
        *("passed_over", "results", "started_at", "unanswered"),
    )

    def __init__(
        self, items: Sequence[Item], future: "asyncio.Future[Batched[Result]]", now: float, deadline: float | None
    ) -> None:
        self.items = items
        self.future = future
        self.enqueued_at = now
        self.deadline = deadline
        self.left: Sequence[int] = range(len(items))  # positions of the items that no batch has taken
        self.unanswered = len(items)
        self.passed_over = 0
        self.started_at: float | None = None
        self.results: list[Any] | None = None

    def gone(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done() or (self.deadline is not None and now >= self.deadline)

    def answer(self, positions: Sequence[int], results: list[Result | GatekeeperError], now: float) -> None:
        """Results of the items at these positions; the last ones make the answer."""
        if len(positions) == len(self.items):
            self.results = results
        else:
            if self.results is None:
                self.results = [None] * len(self.items)
            for position, result in zip(positions, results, strict=True):
                self.results[position] = result
        self.unanswered -= len(positions)
        if not self.unanswered and not self.future.done():
            assert self.started_at is not None
            self.future.set_result(Batched(self.results, self.started_at - self.enqueued_at, now - self.started_at))

    def fail(self, error: GatekeeperError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


Part = tuple[Job[Item, Result], Sequence[int]]  # items of one job, by their positions in it


class Batch(NamedTuple, Generic[Item, Result]):
    """The items of the parts, in their order. full: nothing more would fit, or nothing more that waited did."""

    parts: list[Part[Item, Result]]
    items: list[Item]
    full: bool

    def answer(self, results: list[Result | GatekeeperError], now: float) -> None:
        end = 0
        for job, positions in self.parts:
            begin, end = end, end + len(positions)
            job.answer(positions, results[begin:end], now)


class JobQueue(Generic[Item, Result]):
    """Batches of max_items at most and of max_tokens, padding included, chosen from the oldest `reach` items.

    A batch holds whatever is within reach if that fits, else the oldest item and those nearest to it in length. A job
    that was passed over MAX_PASSED_OVER times goes first. The cap counts batches, not seconds: a batch takes 0.3 ms
    with one model and half a second with another, and a queue that is always long would be older than any cap.
    """

    def __init__(self, length: Callable[[Item], int], *, max_items: int, max_tokens: int, reach: int) -> None:
        self._length = length
        self._max_items = max_items
        self._max_tokens = max_tokens
        self._reach = reach
        self._jobs: deque[Job[Item, Result]] = deque()
        self.depth = 0

    def append(self, job: Job[Item, Result]) -> None:
        self._jobs.append(job)
        self.depth += len(job.items)

    def take(self, now: float) -> Batch[Item, Result] | None:
        """The next batch, or None. Jobs that nobody waits for are dropped on the way, those past a deadline fail."""
        parts = self._within_reach(now)
        if not parts:
            return None
        items = _items(parts)
        lengths = [*map(self._length, items)]
        full = len(items) >= self._max_items
        if not fits(lengths, self._max_items, self._max_tokens):
            full = True
            overdue = sum(len(positions) for job, positions in parts if job.passed_over >= MAX_PASSED_OVER)
            parts = self._keep(parts, set(choose(lengths, overdue, self._max_items, self._max_tokens)))
            items = _items(parts)
        self.depth -= len(items)
        return Batch(parts, items, full)

    def put_back(self, batch: Batch[Item, Result]) -> None:
        """Undo a take."""
        self._keep(batch.parts, ())
        self.depth += len(batch.items)

    def fail_all(self, error: Callable[[], GatekeeperError]) -> None:
        for job in self._jobs:
            job.fail(error())
        self._jobs.clear()
        self.depth = 0

    def _within_reach(self, now: float) -> list[Part[Item, Result]]:
        parts: list[Part[Item, Result]] = []
        room = self._reach
        while self._jobs and room:
            job = self._jobs[0]
            if job.gone(now):
                job.fail(Expired("the request's own deadline passed while it was waiting"))
                self.depth -= len(job.left)
                self._jobs.popleft()
                continue
            if len(job.left) <= room:
                positions, job.left = job.left, ()
                self._jobs.popleft()
            else:
                positions, job.left = job.left[:room], job.left[room:]
            parts.append((job, positions))
            room -= len(positions)
        return parts

    def _keep(self, parts: list[Part[Item, Result]], chosen: Collection[int]) -> list[Part[Item, Result]]:
        """Of the items in the parts, counted through, the chosen ones; the others go back to the head of the queue."""
        kept: list[Part[Item, Result]] = []
        index = sum(len(positions) for _, positions in parts)
        for job, positions in reversed(parts):
            index -= len(positions)
            taken = [position for offset, position in enumerate(positions, index) if offset in chosen]
            back = [position for offset, position in enumerate(positions, index) if offset not in chosen]
            if taken:
                kept.append((job, taken))
            if back:
                if not job.left:  # else it is still there
                    self._jobs.appendleft(job)
                job.left = [*back, *job.left]
                job.passed_over += bool(chosen)
        return kept[::-1]


def _items(parts: list[Part[Item, Result]]) -> list[Item]:
    items: list[Item] = []
    for job, positions in parts:
        if len(positions) == len(job.items):
            items += job.items
        else:
            items += [job.items[position] for position in positions]
    return items
