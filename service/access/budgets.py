"""How many items each API key may send: counted in Redis with REDIS_URL, else, or while it is down, in this process.

limits' and redis' errors end here. The strategy is the sliding window counter: two numbers a key however large its
limit (a moving window keeps one entry an item), no double burst where two fixed windows meet, and a refused request
costs none of the budget.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.exceptions import RedisError

from service.access.keys import Caller, RateLimit
from service.errors import RateLimited, TooLarge
from service.redis_connection import open_pool, reason_of

logger = logging.getLogger(__name__)

HIT_TIMEOUT_S = 0.05  # for one round of counting in Redis; while it is known to be down, no request waits
PROBE_TIMEOUT_S = 1.0
PROBE_INTERVAL_S = 1.0
MAX_CONNECTIONS = 1_000  # one for each key that is busy at the same moment
STORE_ERRORS = (StorageError, RedisError, OSError, TimeoutError, ValueError)  # the last: garbage in our keys

# Items before, seconds that they still weigh, items now, seconds until these are forgotten.
Window = tuple[int, float, int, float]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Until when (time.monotonic) a request of so many items cannot pass: known without asking again."""

    until: float
    items: int
    limit: RateLimit
    remaining: int


class RateLimits:
    """The budgets of all keys. `on_spent` hears of items let in, `on_shared` whether replicas count together."""

    def __init__(
        self,
        redis_url: str | None,
        *,
        group: str,
        on_spent: Callable[[str, int], None],
        on_shared: Callable[[bool], None],
    ) -> None:
        """`group` names the replicas that count together. Raises StartupError for a bad REDIS_URL; connects later."""
        self._on_spent = on_spent
        self._on_shared = on_shared
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if redis_url is None else _RedisCounts(redis_url, group)
        self._shared_up = False
        self._why = ""  # the last probe failed
        self._in_trouble: tuple[RateLimitItem, str] | None = None
        self._refusals: dict[str, _Refusal] = {}
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Try Redis once; when it does not answer, go on without it and keep trying."""
        self._on_shared(False)
        if self._shared is not None:
            if not await self._probe(self._shared):
                logger.warning(
                    "Redis does not answer: rate limits are counted by each replica alone", extra={"why": self._why}
                )
            self._probing = asyncio.create_task(self._keep_probing(self._shared), name="rate limits")

    async def aclose(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._shared is not None:
            await self._shared.aclose()

    def check(self, caller: Caller) -> None:
        """Raises RateLimited where the budget is known to be spent: before anything is read of a request."""
        refusal = None if caller.name is None else self._refusals.get(caller.name)
        if refusal is None or refusal.items > 1 or refusal.limit != caller.limit:
            return
        if time.monotonic() < refusal.until:
            raise _refused(refusal)

    async def charge(self, caller: Caller) -> None:
        """Take one item for a request that cannot be answered: reading it has cost work too. Raises RateLimited."""
        if caller.name is not None and caller.limit is not None:
            await self._take(caller.name, caller.limit, 1)

    async def spend(self, caller: Caller, items: int) -> None:
        """Take items from the caller's budget. Raises RateLimited, or TooLarge for more than the budget ever holds."""
        if caller.name is None:
            return
        if caller.limit is not None:
            await self._take(caller.name, caller.limit, items)
        self._on_spent(caller.name, items)

    async def _take(self, name: str, limit: RateLimit, items: int) -> None:
        if items > limit.items:
            raise TooLarge(
                f"{items:,} items, and this API key may send {limit.items:,} in {limit.window_s:,} s: send fewer"
            )
        refusal = self._refusals.get(name)
        if refusal is not None:
            # Use only grows until then: a flood of refused requests costs Redis nothing.
            if refusal.limit == limit and items >= refusal.items and time.monotonic() < refusal.until:
                raise _refused(refusal)
            del self._refusals[name]
        refusal = await self._hit(name, limit, items)
        if refusal is not None:
            self._refusals[name] = refusal
            raise _refused(refusal)

    async def _hit(self, name: str, limit: RateLimit, items: int) -> _Refusal | None:
        item = _item(limit)
        if self._shared is not None and self._shared_up:
            try:
                return await self._shared.take(name, limit, items)
            except STORE_ERRORS as error:
                self._fail(error, item, name)
        return await _count(self._local, item, name, limit, items)

    def _fail(self, error: Exception, item: RateLimitItem, name: str) -> None:
        if self._shared_up:
            self._shared_up = False
            self._in_trouble = (item, name)
            self._on_shared(False)
            why = reason_of(error.__cause__ or error)
            logger.warning("rate limits: Redis failed, each replica counts alone for now", extra={"why": why})

    async def _keep_probing(self, shared: "_RedisCounts") -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            if not self._shared_up and await self._probe(shared):
                logger.info("rate limits: Redis is back, replicas count together again")

    async def _probe(self, shared: "_RedisCounts") -> bool:
        """Do what a request does: a server that answers PING may still be read-only or full."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await shared.probe(self._in_trouble)
        except STORE_ERRORS as error:
            self._why = reason_of(error.__cause__ or error)
            return False
        self._in_trouble = None
        self._shared_up = True
        self._on_shared(True)
        return True


Waiting = tuple[int, "asyncio.Future[_Refusal | None]"]


class _RedisCounts:
    """The counters in Redis, under gatekeeper:limits:{group}.

    What arrives for a key while a call for it is under way goes into the next call, together: a call costs as much as
    the rest of an accepted request, and a burst of calls would be late by its own doing.
    """

    def __init__(self, url: str, group: str) -> None:
        self._pool = open_pool(url, PROBE_TIMEOUT_S, max_connections=MAX_CONNECTIONS)
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            wrap_exceptions=True,
            key_prefix=f"gatekeeper:limits:{quote(group, safe='')}",
            connection_pool=self._pool,  # type: ignore[arg-type]  # documented, not in its type
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._waiting: dict[tuple[str, RateLimit], list[Waiting]] = {}
        self._rounds: dict[tuple[str, RateLimit], asyncio.Task[None]] = {}

    async def take(self, name: str, limit: RateLimit, items: int) -> _Refusal | None:
        """None: they were counted. Raises one of STORE_ERRORS."""
        asked: asyncio.Future[_Refusal | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((name, limit), []).append((items, asked))
        if (name, limit) not in self._rounds:
            self._rounds[name, limit] = asyncio.create_task(self._serve(name, limit), name="rate limit")
        return await asked

    async def _serve(self, name: str, limit: RateLimit) -> None:
        waiting: list[Waiting] = []
        try:
            while waiting := self._waiting.pop((name, limit), []):
                async with asyncio.timeout(HIT_TIMEOUT_S):
                    await self._settle(name, limit, waiting)
        except Exception as error:  # noqa: BLE001  whatever it is, nobody else wakes those who wait
            for _, asked in (*waiting, *self._waiting.pop((name, limit), [])):
                if not asked.done():
                    asked.set_exception(error)
        finally:
            del self._rounds[name, limit]

    async def _settle(self, name: str, limit: RateLimit, waiting: list[Waiting]) -> None:
        """All together where they fit, else one by one in their order."""
        item = _item(limit)
        together = len(waiting) > 1 and await self._limiter.hit(item, name, cost=sum(items for items, _ in waiting))
        refusal: _Refusal | None = None
        for items, asked in waiting:
            if asked.done():
                continue  # its client has left
            if together:
                asked.set_result(None)
            elif refusal is not None and items >= refusal.items:
                asked.set_result(refusal)
            else:
                answer = await _count(self._limiter, item, name, limit, items)
                refusal = answer or refusal
                if not asked.done():
                    asked.set_result(answer)

    async def probe(self, in_trouble: tuple[RateLimitItem, str] | None) -> None:
        """Raises one of STORE_ERRORS while counting does not work. A key that holds garbage is deleted."""
        await self._limiter.hit(RateLimitItemPerSecond(2**31), "_probe")
        if in_trouble is not None:
            item, name = in_trouble
            try:
                await self._limiter.hit(item, name, cost=0)
                await _window(self._limiter, item, name)
            except (StorageError, ValueError):
                await self._limiter.clear(item, name)

    async def aclose(self) -> None:
        for round_ in self._rounds.values():
            round_.cancel()
        await asyncio.gather(*self._rounds.values(), return_exceptions=True)
        with suppress(*STORE_ERRORS):
            await self._pool.aclose()


@lru_cache(maxsize=1_024)
def _item(limit: RateLimit) -> RateLimitItem:
    return RateLimitItemPerSecond(limit.items, limit.window_s)


async def _count(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, name: str, limit: RateLimit, items: int
) -> _Refusal | None:
    if await limiter.hit(item, name, cost=items):
        return None
    window = await _window(limiter, item, name)
    wait_s = seconds_until(window, limit, items)
    used = math.floor(window[0] * window[1] / limit.window_s) + window[2]
    return _Refusal(time.monotonic() + wait_s, items, limit, max(0, limit.items - used))


async def _window(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, name: str) -> Window:
    """Raises ValueError for counters that no counting leads to: no numbers, more than the limit, without an end."""
    storage = limiter.storage
    assert isinstance(storage, MemoryStorage | RedisStorage)
    window_s = item.get_expiry()
    window = await storage.get_sliding_window(item.key_for(name), window_s)
    before, before_left_s, now, now_left_s = window
    if now and not now_left_s:
        raise ValueError("a counter without an end")
    if not 0 <= min(before, now) <= max(before, now) <= item.amount or max(before_left_s, now_left_s) > 2 * window_s:
        raise ValueError("a counter above its limit, or for longer than it counts")
    return window


def seconds_until(window: Window, limit: RateLimit, items: int) -> float:
    """When that many items fit, if nobody spends meanwhile. The items before weigh less and less, linearly; the items
    now weigh whole until they become those before, one window's length before they are forgotten."""
    before, before_left_s, now, now_left_s = window
    free = limit.items - items - now
    shift_s = max(0.0, now_left_s - limit.window_s)
    if free >= 0:
        wait_s = before_left_s - free * limit.window_s / before if before else 0.0
        if wait_s <= shift_s:
            return max(0.0, wait_s)
    return shift_s + max(0.0, limit.window_s * (1 - (limit.items - items) / now)) if now else shift_s


def _refused(refusal: _Refusal) -> RateLimited:
    wait_s = max(1, math.ceil(refusal.until - time.monotonic()))
    limit = refusal.limit
    return RateLimited(
        f"this API key may send {limit.items:,} items in {limit.window_s:,} s: try again in {wait_s} s",
        retry_after_s=wait_s,
        rate_limit=f'"items";r={refusal.remaining};t={wait_s}',
    )
