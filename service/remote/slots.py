"""How many calls may be out at once, and how long one more may wait for its turn."""

import asyncio

from service.errors import RemoteLimit

# A burst may wait for a slot as long as nobody notices.
WAIT_S = 0.05
WAIT_SHARE = 0.25


class Slots:
    """`calls` of them. Behind `most_waiting` others a call does not wait at all."""

    def __init__(self, calls: int, most_waiting: int) -> None:
        self._free = asyncio.Semaphore(calls)
        self._most_waiting = most_waiting
        self._waiting = 0

    async def take(self, time_left_s: float) -> None:
        """A slot, for a call that has so many seconds left. Raises RemoteLimit."""
        if not self._free.locked():
            await self._free.acquire()  # without waiting
            return
        if self._waiting >= self._most_waiting:
            raise RemoteLimit("every slot to the large model is taken, and as many calls wait for one")
        self._waiting += 1
        try:
            async with asyncio.timeout(min(WAIT_S, time_left_s * WAIT_SHARE)):
                await self._free.acquire()
        except TimeoutError:
            raise RemoteLimit("every slot to the large model is taken") from None
        finally:
            self._waiting -= 1

    def give_back(self) -> None:
        """The call is over."""
        self._free.release()
