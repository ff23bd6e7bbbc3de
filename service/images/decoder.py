"""Images are decoded before the model sees them: a classifier in front of the cascade, with a few threads of its own.

Decoding a photograph takes longer than a small model does; on the event loop, or on the model's thread, every other
request would wait for it. The queue behind holds images of the model's size, not photographs.

The way in front is bounded in time: what an image will cost is known from its header, before it is unpacked.
"""

import asyncio
import bisect
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from service.cascade.call import Answer, Answerer, Call, Disconnected
from service.cascade.client_gone import unless_gone
from service.errors import Expired, Overloaded, TooLarge

logger = logging.getLogger(__name__)

Encoded = str | bytes  # an image as a request holds it: base64, or a file's bytes
SLICE_S = 0.02  # after so long it is another request's turn
SHORT_BYTES = 16 * 1024  # reading the header of so small a file takes less than the way to a thread and back
WEIGHT = 0.2  # of the newest slice, in how fast this machine is
MAX_PACE = 20.0
LATE = 4.0  # times its estimate: a slice that takes longer is told of
LATE_S = 1.0


class Reader(Protocol):
    """How images are read, in a thread, but for a short one's header; both get a name for errors."""

    def seconds(self, encoded: Encoded, where: str) -> float:
        """What it will take to read it. Raises for what is not to be read."""

    def __call__(self, encoded: Encoded, where: str) -> Any:
        """What the model takes."""


@dataclass(frozen=True)
class DecodeLimits:
    """max_request_s: of one request's images together. max_queue_wait_s: what would wait longer is refused."""

    threads: int
    max_queue_items: int
    max_queue_bytes: int
    max_request_s: float = math.inf
    max_queue_wait_s: float = math.inf


class _Job:
    """One request's images and what each is estimated to take."""

    def __init__(
        self,
        images: Sequence[Encoded],
        costs_s: Sequence[float],
        deadline: float | None,
        done: "asyncio.Future[list[Any]]",
    ) -> None:
        self.images = images
        self.costs_s = costs_s
        self.deadline = deadline
        self.done = done
        self.decoded: list[Any] = []
        self.total_s = self.left_s = sum(costs_s)
        self.overtakes = False  # in its present turn

    @property
    def next_s(self) -> float:
        """Of the next image, or of the one that is being unpacked."""
        return sum(self.costs_s[len(self.decoded) :][:1])

    def add(self, decoded: list[Any]) -> float:
        """The estimate of what was decoded now."""
        start = len(self.decoded)
        self.decoded += decoded
        estimated_s = sum(self.costs_s[start : len(self.decoded)])
        self.left_s -= estimated_s
        return estimated_s


class Decoder:
    """`read` turns encoded images into what the model takes, in threads.

    As many images are unpacked at once as there are threads: what they need in memory is bounded by that. The shortest
    request goes first, so that nobody's many keep out another's one; half of the time is for those that it overtakes,
    so that no request waits for ever.
    """

    def __init__(self, read: Reader, limits: DecodeLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._limits = limits
        self._clock = clock
        self._items = 0
        self._bytes = 0
        self._waiting: list[_Job] = []  # by length
        self._turns: dict[_Job, None] = {}  # the same, by how long they have waited for a turn
        self._running: dict[_Job, float] = {}  # an image of each is in a thread, since then
        self._overtaken_s = 0.0  # for so long others have gone before who has waited longest
        self._pace = 1.0  # seconds for each of the estimate
        self.late = 0  # slices that took far longer than estimated
        self._executor = ThreadPoolExecutor(limits.threads, thread_name_prefix="decode")
        self._headers = ThreadPoolExecutor(1, thread_name_prefix="headers")

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return len(self._waiting)

    def admit(self) -> None:
        """Raises Overloaded where not even a request of one small image would be taken. For before a body is read."""
        self._check_room(1, 1)

    async def decode(self, images: Sequence[Encoded], deadline: float | None = None) -> list[Any]:
        """What `read` makes of each, in order; cancelled, it decodes no further.

        Raises what `read` raises on the first bad one, TooLarge, Overloaded, or Expired after `deadline`, on its clock.
        """
        items, size = len(images), sum(map(len, images))
        self._check_room(items, size)
        self._items += items
        self._bytes += size
        try:
            costs_s: list[float] = []
            if size <= SHORT_BYTES and items == 1:
                costs_s.append(self._read.seconds(images[0], "inputs.0"))
            while len(costs_s) < items:
                # A slice that nobody waits for any more is taken out of the executor's queue.
                read = partial(self._some, self._read.seconds, images, len(costs_s))
                costs_s += (await asyncio.get_running_loop().run_in_executor(self._headers, read)).values
            total_s = sum(costs_s)
            if total_s > self._limits.max_request_s:
                raise TooLarge(
                    f"the images would take {total_s:.1f} s to unpack, and {self._limits.max_request_s:g} s is the "
                    "most in one request: send several"
                )
            self._check_wait(total_s, deadline)
            job = _Job(images, costs_s, deadline, asyncio.get_running_loop().create_future())
            self._put(job)
            self._start()
            try:
                return await job.done
            finally:
                if job in self._turns:
                    self._take(job)
        finally:
            self._items -= items
            self._bytes -= size

    def wait_s(self, total_s: float) -> float:
        """Expected seconds until a request of that length, put in now, is begun."""
        wait_s = self._queue_s(total_s)
        if self._busy:
            wait_s += min(self._image_left_s(job) for job in self._running)
        return wait_s

    async def aclose(self) -> None:
        """Let the images in the threads end; what waits is cancelled."""
        for job in [*self._waiting, *self._running]:
            job.done.cancel()
        self._waiting.clear()
        self._turns.clear()
        for executor in (self._headers, self._executor):
            await asyncio.get_running_loop().run_in_executor(None, partial(executor.shutdown, cancel_futures=True))

    def _check_room(self, items: int, size: int) -> None:
        """Room for twice as much: whatever large ones are there, they leave some to the smaller."""
        limits = self._limits
        full = self._items + 2 * items > limits.max_queue_items or self._bytes + 2 * size > limits.max_queue_bytes
        if self._items and full:
            raise _overloaded(self.wait_s(math.inf))
        if items > limits.max_queue_items or size > limits.max_queue_bytes:
            raise _overloaded(0.0)

    def _check_wait(self, total_s: float, deadline: float | None) -> None:
        wait_s = self.wait_s(total_s)
        # Not by an image that is being unpacked: whoever is next is always taken, as by the model's queue.
        if self._queue_s(total_s) > self._limits.max_queue_wait_s:
            raise _overloaded(wait_s)
        if deadline is not None and self._clock() + wait_s + total_s * self._pace > deadline and self._busy:
            raise Overloaded(
                "unpacking the images would take longer than the request's own deadline: try again, or allow more time",
                retry_after_s=_whole(wait_s),
            )

    @property
    def _busy(self) -> bool:
        return len(self._running) >= self._limits.threads

    def _queue_s(self, total_s: float) -> float:
        """The same without the images that are being unpacked: requests no longer than that, and as much for others."""
        waiting = self._waiting[: bisect.bisect_right(self._waiting, total_s, key=_length)]
        begun = [job.left_s - job.next_s for job in self._running if job.total_s <= total_s]
        shorter_s = sum(job.left_s for job in waiting) + sum(begun)
        longer_s = sum(job.left_s for job in self._waiting[len(waiting) :])
        return (shorter_s + min(shorter_s, longer_s)) * self._pace / self._limits.threads

    def _image_left_s(self, job: _Job) -> float:
        return max(0.0, job.next_s * self._pace - (self._clock() - self._running[job]))

    def _put(self, job: _Job) -> None:
        bisect.insort_right(self._waiting, job, key=_length)
        self._turns[job] = None

    def _take(self, job: _Job) -> None:
        self._waiting.remove(job)
        del self._turns[job]

    def _start(self) -> None:
        while self._waiting and not self._busy:
            job, now = self._next(), self._clock()
            self._take(job)
            if job.done.done():
                continue  # nobody waits for it any more
            if job.deadline is not None and now >= job.deadline:
                job.done.set_exception(Expired("the request's own deadline passed before its images were decoded"))
                continue
            self._running[job] = now
            run = partial(self._some, self._read, job.images, len(job.decoded))
            asyncio.get_running_loop().run_in_executor(self._executor, run).add_done_callback(partial(self._end, job))

    def _next(self) -> _Job:
        """The shortest, or of the longer who has waited longest, once overtaken for as long as its next image."""
        shortest = self._waiting[0]
        oldest = next((job for job in self._turns if job.total_s > shortest.total_s), shortest)
        shortest.overtakes = oldest is not shortest and self._overtaken_s < oldest.next_s * self._pace
        if shortest.overtakes:
            return shortest
        self._overtaken_s = 0.0
        oldest.overtakes = False
        return oldest

    def _end(self, job: _Job, ended: "asyncio.Future[_Slice]") -> None:
        del self._running[job]
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        if error is None:
            found = ended.result()
            self._note(job.add(found.values), found.taken_s)
            if job.overtakes:
                self._overtaken_s += found.taken_s
        if job.done.done():
            pass  # nobody waits for it any more
        elif isinstance(error, asyncio.CancelledError):
            job.done.cancel()
        elif error is not None:
            job.done.set_exception(error)
        elif len(job.decoded) == len(job.images):
            job.done.set_result(job.decoded)
        else:
            self._put(job)
        self._start()

    def _note(self, estimated_s: float, taken_s: float) -> None:
        """Learn how fast this machine is, and tell of an image that was not what its header let expect."""
        if taken_s > max(LATE_S, LATE * estimated_s * max(1.0, self._pace)):
            self.late += 1
            found = {"took_s": round(taken_s, 3), "estimated_s": round(estimated_s, 3), "count": self.late}
            logger.warning("images took far longer to unpack than estimated", extra=found)
        if estimated_s > 0:
            weight = WEIGHT * min(1.0, estimated_s / SLICE_S)  # of a tiny image most is what surrounds it
            self._pace += weight * (min(MAX_PACE, taken_s / estimated_s) - self._pace)

    def _some(self, read: Callable[[Encoded, str], Any], images: Sequence[Encoded], start: int) -> "_Slice":
        """The images from `start` on, as many as fit into SLICE_S; at least one."""
        began = self._clock()
        found: list[Any] = []
        while start + len(found) < len(images) and (not found or self._clock() - began < SLICE_S):
            position = start + len(found)
            found.append(read(images[position], f"inputs.{position}"))
        return _Slice(found, self._clock() - began)


class _Slice(NamedTuple):
    values: list[Any]
    taken_s: float


def _length(job: _Job) -> float:
    return job.total_s


def _whole(seconds: float) -> int:
    return min(60, max(1, math.ceil(seconds)))


def _overloaded(wait_s: float) -> Overloaded:
    return Overloaded("too many images are waiting to be decoded: try again", retry_after_s=_whole(wait_s))


class DecodingFirst:
    """What answers behind it, for calls whose items are still encoded."""

    def __init__(self, decoder: Decoder, answerer: Answerer) -> None:
        self._decoder = decoder
        self._answerer = answerer

    async def answer(self, call: Call[Any, Any], disconnected: Disconnected) -> Answer[Any, Any]:
        """As what is behind it; raises also what Decoder.decode does, and ClientGone."""
        began = time.monotonic()
        items = await unless_gone(self._decoder.decode(call.items, call.deadline), disconnected)
        decode_s = time.monotonic() - began
        answer = await self._answerer.answer(replace(call, items=items), disconnected)
        answer.timings_s = {"decode": decode_s, **answer.timings_s}
        return answer
