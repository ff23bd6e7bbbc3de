"""Time in tests: waiting for what is to happen, in a thread or on an event loop, and a clock that is moved by hand."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 0.005  # between two looks: what is waited for needs the machine too


def eventually(condition: Callable[[], Any], what: str, within_s: float = 5.0) -> Any:
    """The first true value of condition(), asked again and again; fails loudly at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(4 * PAUSE_S)


async def until(condition: Callable[[], Any], within_s: float = 5.0) -> Any:
    """The same on an event loop, whose other tasks go on meanwhile; the condition may be a coroutine function.

    Raises TimeoutError.
    """
    async with asyncio.timeout(within_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(PAUSE_S)


class Clock:
    """A clock that moves when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
