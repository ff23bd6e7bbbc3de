"""What bodies hold in memory while they arrive."""

import asyncio

from service.errors import Overloaded


class Arriving:
    """A body on its way, read by the task that makes it."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._given_up = False
        self.bytes = 0

    def give_up(self) -> None:
        """Interrupt the reading task, which asks `gave_way`."""
        self._given_up = True
        self._task.cancel()

    def gave_way(self) -> bool:
        """For a task that was cancelled: whether it was for this, and for nothing else."""
        return self._given_up and self._task.uncancel() == 0


class Intake:
    """All bodies on their way together: a connection may be one of thousands.

    Where there is no more room the largest gives way, so that nobody's large bodies, which may never end, keep out
    another's small ones.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._arriving: set[Arriving] = set()
        self.bytes = 0

    def take(self, body: Arriving, size: int) -> None:
        """So many bytes more have come of it. Raises Overloaded if it is the largest, and there is no room."""
        self._arriving.add(body)
        body.bytes += size
        self.bytes += size
        while self.bytes > self._max_bytes:
            largest = max(self._arriving, key=lambda one: one.bytes)
            if largest is body:
                raise no_room()
            self.release(largest)
            largest.give_up()

    def release(self, body: Arriving) -> None:
        """It is there, or nobody waits for it."""
        if body in self._arriving:
            self._arriving.remove(body)
            self.bytes -= body.bytes


def no_room() -> Overloaded:
    return Overloaded("too many large bodies are on their way at once: try again", retry_after_s=1)
