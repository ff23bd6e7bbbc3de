"""What answers have lately taken: the quickest of all servers, and what one server usually takes."""

import statistics
from collections import deque
from collections.abc import Callable

# Of how many answered calls the quickest is remembered, and how long after the last of them.
QUICKEST_CALLS = 20
QUICKEST_S = 1.0
USUAL_CALLS = 9  # so that after five answers of a server that has become slow the clients' deadlines are too short
# A client's own deadline says something of the server if it left `ENOUGH` times what the server usually takes, and no
# less than `ENOUGH_S`, which is a pause and no outage; where it has never answered, `UNKNOWN_S`.
ENOUGH, ENOUGH_S, UNKNOWN_S = 2.0, 0.2, 1.0


class QuickestLately:
    """The least that a call needs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=QUICKEST_CALLS)
        self._until = 0.0

    def took(self, seconds: float) -> None:
        """How long an answer was in coming."""
        self._seconds.append(seconds)
        self._until = self._clock() + QUICKEST_S

    def least_s(self) -> float:
        """0.0 if there was no call lately, so that a guess never lasts."""
        return min(self._seconds, default=0.0) if self._clock() < self._until else 0.0


class UsualTime:
    """What one server takes, and how much time is therefore enough for it."""

    def __init__(self) -> None:
        self._answered: deque[tuple[float, int]] = deque(maxlen=USUAL_CALLS)  # seconds and items of a call

    def took(self, seconds: float, items: int) -> None:
        """How long an answer was in coming."""
        self._answered.append((seconds, items))

    def enough_s(self, items: int) -> float:
        """The time in which the server should have answered a call of so many items, in whatever state it is."""
        if not self._answered:
            return UNKNOWN_S
        # A call of more items may take longer, at worst in proportion.
        usual_s = statistics.median(seconds * max(1.0, items / others) for seconds, others in self._answered)
        return max(ENOUGH_S, ENOUGH * usual_s)
