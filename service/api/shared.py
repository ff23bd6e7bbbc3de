"""One rendering for all who wait for it, so that a document that is slow to make cannot crowd out other requests."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

SHARE = 0.1  # of the event loop's time

Document = TypeVar("Document")


class SharedDocument(Generic[Document]):
    """`make` is called on the event loop, for at most SHARE of its time. What one gets was made after one asked."""

    def __init__(self, make: Callable[[], Document]) -> None:
        self._make = make
        self._next: asyncio.Task[Document] | None = None
        self._due = 0.0

    async def get(self) -> Document:
        """The next one to be made. Raises what `make` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._make_when_due(), name="shared document")
        return await asyncio.shield(self._next)  # one who leaves must not take it from the others

    async def _make_when_due(self) -> Document:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._due - loop.time()))
        self._next = None
        began = loop.time()
        try:
            return self._make()
        finally:
            ended = loop.time()
            self._due = ended + (ended - began) * (1 / SHARE - 1)
