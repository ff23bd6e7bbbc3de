"""Counters of items in Redis, which replicas share: one of STORE_ERRORS where it fails."""

import asyncio
from contextlib import suppress
from urllib.parse import quote

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from service.access.keys import RateLimit
from service.access.windows import STORE_ERRORS, Refusal, count, item_of, window_of
from service.redis_connection import open_pool

HIT_TIMEOUT_S = 0.05  # for one round of counting in Redis; while it is known to be down, no request waits
PROBE_TIMEOUT_S = 1.0
MAX_CONNECTIONS = 1_000  # one for each key that is busy at the same moment

Waiting = tuple[int, "asyncio.Future[Refusal | None]"]


class RedisCounts:
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

    async def take(self, name: str, limit: RateLimit, items: int) -> Refusal | None:
        """None: they were counted. Raises one of STORE_ERRORS."""
        asked: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
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
        item = item_of(limit)
        together = len(waiting) > 1 and await self._limiter.hit(item, name, cost=sum(items for items, _ in waiting))
        refusal: Refusal | None = None
        for items, asked in waiting:
            if asked.done():
                continue  # its client has left
            if together:
                asked.set_result(None)
            elif refusal is not None and items >= refusal.items:
                asked.set_result(refusal)
            else:
                answer = await count(self._limiter, item, name, limit, items)
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
                await window_of(self._limiter, item, name)
            except (StorageError, ValueError):
                await self._limiter.clear(item, name)

    async def aclose(self) -> None:
        for round_ in self._rounds.values():
            round_.cancel()
        await asyncio.gather(*self._rounds.values(), return_exceptions=True)
        with suppress(*STORE_ERRORS):
            await self._pool.aclose()
