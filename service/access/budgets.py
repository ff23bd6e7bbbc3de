"""How many items each API key may send: counted in Redis with REDIS_URL, else, or while it is down, in this process.

limits' and redis' errors end here.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.access.keys import Caller, RateLimit
from service.access.redis_counts import PROBE_TIMEOUT_S, RedisCounts
from service.access.windows import STORE_ERRORS, Refusal, count, item_of
from service.errors import RateLimited, TooLarge
from service.redis_connection import reason_of

logger = logging.getLogger(__name__)

PROBE_INTERVAL_S = 1.0


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
        self._shared = None if redis_url is None else RedisCounts(redis_url, group)
        self._shared_up = False
        self._why = ""  # the last probe failed
        self._in_trouble: tuple[RateLimitItem, str] | None = None
        self._refusals: dict[str, Refusal] = {}
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

    async def _hit(self, name: str, limit: RateLimit, items: int) -> Refusal | None:
        item = item_of(limit)
        if self._shared is not None and self._shared_up:
            try:
                return await self._shared.take(name, limit, items)
            except STORE_ERRORS as error:
                self._fail(error, item, name)
        return await count(self._local, item, name, limit, items)

    def _fail(self, error: Exception, item: RateLimitItem, name: str) -> None:
        if self._shared_up:
            self._shared_up = False
            self._in_trouble = (item, name)
            self._on_shared(False)
            why = reason_of(error.__cause__ or error)
            logger.warning("rate limits: Redis failed, each replica counts alone for now", extra={"why": why})

    async def _keep_probing(self, shared: RedisCounts) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            if not self._shared_up and await self._probe(shared):
                logger.info("rate limits: Redis is back, replicas count together again")

    async def _probe(self, shared: RedisCounts) -> bool:
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


def _refused(refusal: Refusal) -> RateLimited:
    wait_s = max(1, math.ceil(refusal.until - time.monotonic()))
    limit = refusal.limit
    return RateLimited(
        f"this API key may send {limit.items:,} items in {limit.window_s:,} s: try again in {wait_s} s",
        retry_after_s=wait_s,
        rate_limit=f'"items";r={refusal.remaining};t={wait_s}',
    )
