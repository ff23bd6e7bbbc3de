"""Requests that arrive at a server by themselves (open loop), or as it answers (closed loop), and what became of them.

Open loop: arrivals are drawn beforehand, as a Poisson process, and do not wait for anything. Latency is counted from
the intended moment: what is sent late, because the server or this client was busy, was late for its user (otherwise
a server that stalls would be asked less while it stalls, and look better: "coordinated omission"). After the deadline
a request is given up and its connection closed, as a user's client would.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from loadtests.common.client import Connection, Pool, Reply

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None  # type: ignore[assignment]  # asked before it is used

# What a status can be besides one of HTTP.
WAITING, NOT_SENT, BROKEN, LATE = 0, 1, 2, 3
TICK_S = 0.001
OPENINGS = 64  # connections that are being made at a time: a listener's backlog is finite
Result = TypeVar("Result")
OnReply = Callable[[Reply], None]


@dataclass(frozen=True)
class Outcomes:
    """Of each request: when it was to be sent, how long after that it was sent and answered, how it ended.

    Seconds; NaN where it did not happen. `statuses` are HTTP's, or NOT_SENT, BROKEN, LATE. `seconds`: the whole run.
    """

    offsets: NDArray[np.float64]
    lags: NDArray[np.float64]
    latencies: NDArray[np.float64]
    statuses: NDArray[np.int16]
    seconds: float


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Moments of a Poisson process: `rate` a second on average, for so many seconds."""
    drawn = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 10))
    moments = np.cumsum(drawn)
    return moments[moments < seconds]


class OpenLoop:
    """One request a given moment, all with the same bytes."""

    def __init__(
        self, pool: Pool, request: bytes, offsets: NDArray[np.float64], deadline_s: float, on_reply: OnReply | None
    ) -> None:
        self._pool, self._request, self._deadline_s, self._on_reply = pool, request, deadline_s, on_reply
        self._offsets = offsets.tolist()  # a list is three times as quick to read as an array
        count = len(self._offsets)
        self._lags, self._latencies = [float("nan")] * count, [float("nan")] * count
        self._statuses = [WAITING] * count
        self._queue: deque[int] = deque()  # due, and no connection is free
        self._in_flight: deque[tuple[int, Connection]] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._next = 0
        self._began = 0.0

    async def run(self) -> Outcomes:
        """Returns when every request has been answered or given up."""
        self._began = time.perf_counter() + TICK_S
        offsets, count = self._offsets, len(self._offsets)
        while True:
            now = time.perf_counter() - self._began
            while self._next < count and offsets[self._next] <= now:
                self._queue.append(self._next)
                self._next += 1
            self._give_up(now)
            self._send_queue(now)
            if self._next < count:
                await asyncio.sleep(min(max(offsets[self._next] - time.perf_counter() + self._began, 0), 20 * TICK_S))
            elif self._queue or self._in_flight:
                await asyncio.sleep(TICK_S)
            else:
                break
        await asyncio.gather(*self._opening, return_exceptions=True)
        return Outcomes(
            np.array(offsets, np.float64),
            np.array(self._lags, np.float64),
            np.array(self._latencies, np.float64),
            np.array(self._statuses, np.int16),
            time.perf_counter() - self._began,
        )

    def _send_queue(self, now: float) -> None:
        while self._queue:
            connection = self._pool.take()
            if connection is None:
                break
            self._send(connection, now)
        # One for each that waits, and no more: this is how many a client without a pool would open.
        for _ in range(min(len(self._queue), OPENINGS) - len(self._opening)):
            if self._pool.size + len(self._opening) >= self._pool.limit:
                break
            task = asyncio.ensure_future(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _send(self, connection: Connection, now: float) -> None:
        number = self._queue.popleft()
        self._lags[number] = now - self._offsets[number]
        self._in_flight.append((number, connection))
        connection.send(self._request, partial(self._answered, number, connection))

    async def _open(self) -> None:
        try:
            connection = await self._pool.connect()
        except OSError:  # refused: whoever waits goes on waiting until its deadline
            await asyncio.sleep(10 * TICK_S)
            return
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        if self._queue and connection.open:
            self._send(connection, time.perf_counter() - self._began)
        else:
            self._pool.release(connection)

    def _answered(self, number: int, connection: Connection, reply: Reply | None) -> None:
        if self._statuses[number] != WAITING:  # given up, and now its connection has closed
            return
        self._latencies[number] = time.perf_counter() - self._began - self._offsets[number]
        if reply is None:
            self._statuses[number] = BROKEN
            return
        in_time = reply.status != 200 or self._latencies[number] <= self._deadline_s
        self._statuses[number] = reply.status if in_time else LATE
        if self._on_reply is not None:
            self._on_reply(reply)
        self._free(connection)

    def _give_up(self, now: float) -> None:
        oldest = now - self._deadline_s
        while self._queue and self._offsets[self._queue[0]] < oldest:
            self._statuses[self._queue.popleft()] = NOT_SENT
        while self._in_flight:
            number, connection = self._in_flight[0]
            if self._statuses[number] == WAITING:
                if self._offsets[number] >= oldest:
                    break
                self._statuses[number] = LATE
                connection.abort()
            self._in_flight.popleft()


async def open_loop(
    pool: Pool,
    request: bytes,
    offsets: NDArray[np.float64],
    deadline_s: float,
    on_reply: OnReply | None = None,
) -> Outcomes:
    """Send `request` at each of the moments (ascending, in seconds)."""
    return await OpenLoop(pool, request, offsets, deadline_s, on_reply).run()


async def closed_loop(
    pool: Pool, request: bytes, connections: int, seconds: float, on_reply: OnReply | None = None
) -> Outcomes:
    """Send `request` on so many connections, on each as soon as the last one is answered."""
    offsets: list[float] = []
    latencies: list[float] = []
    statuses: list[int] = []
    began = time.perf_counter()

    async def keep_asking() -> None:
        connection = await pool.get()
        while (sent := time.perf_counter()) - began < seconds:
            replied: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
            connection.send(request, replied.set_result)
            reply = await replied
            offsets.append(sent - began)
            latencies.append(time.perf_counter() - sent)
            statuses.append(BROKEN if reply is None else reply.status)
            if reply is not None and on_reply is not None:
                on_reply(reply)
            if not connection.open:
                connection = await pool.get()
        pool.release(connection)

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    elapsed_s = time.perf_counter() - began
    none = np.zeros(len(offsets))
    return Outcomes(np.array(offsets), none, np.array(latencies), np.array(statuses, np.int16), elapsed_s)


def run_load(load: Coroutine[Any, Any, Result]) -> Result:
    """Run on a loop of its own, the quickest there is, and without a collection of garbage in the middle."""
    with _no_garbage_collection(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(load)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The quickest there is."""
    loop: asyncio.AbstractEventLoop = asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()
    return loop


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
