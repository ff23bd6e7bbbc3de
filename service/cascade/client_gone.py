"""Work that ends when its client has left. Starlette does not cancel a handler, and a model's time is worth saving."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from service.errors import ClientGone

Result = TypeVar("Result")


async def unless_gone(asked: Coroutine[Any, Any, Result], disconnected: Callable[[], Awaitable[None]]) -> Result:
    """The result of `asked`; when the client leaves first, `asked` is cancelled and ClientGone raised."""
    this, gone = asyncio.current_task(), False
    assert this is not None

    async def watch() -> None:
        nonlocal gone
        await disconnected()
        gone = True
        this.cancel()

    # Only the watching is a task of its own; it interrupts this one, as asyncio.timeout does.
    watching = asyncio.ensure_future(watch())
    try:
        return await asked
    except asyncio.CancelledError:
        if gone and this.uncancel() == 0:
            raise ClientGone("the client left before its answer was there") from None
        raise
    finally:
        watching.cancel()
