"""Counting in a sliding window, in this process or in Redis. What fails raises one of STORE_ERRORS.

The strategy is the sliding window counter: two numbers a key however large its limit (a moving window keeps one entry
an item), no double burst where two fixed windows meet, and a refused request costs none of the budget.
"""

import math
import time
from dataclasses import dataclass
from functools import lru_cache

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.exceptions import RedisError

from service.access.keys import RateLimit

STORE_ERRORS = (StorageError, RedisError, OSError, TimeoutError, ValueError)  # the last: garbage in our keys

# Items before, seconds that they still weigh, items now, seconds until these are forgotten.
Window = tuple[int, float, int, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Until when (time.monotonic) a request of so many items cannot pass: known without asking again."""

    until: float
    items: int
    limit: RateLimit
    remaining: int


@lru_cache(maxsize=1_024)
def item_of(limit: RateLimit) -> RateLimitItem:
    return RateLimitItemPerSecond(limit.items, limit.window_s)


async def count(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, name: str, limit: RateLimit, items: int
) -> Refusal | None:
    if await limiter.hit(item, name, cost=items):
        return None
    window = await window_of(limiter, item, name)
    wait_s = seconds_until(window, limit, items)
    used = math.floor(window[0] * window[1] / limit.window_s) + window[2]
    return Refusal(time.monotonic() + wait_s, items, limit, max(0, limit.items - used))


async def window_of(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, name: str) -> Window:
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
