"""Whether nearly all deferrals degrade: told by what became of the last of them, whatever the reasons are.

A breaker sees only what is a server's fault. This sees what clients get: an outage, a limit, deadlines, bad answers.
Pure: no I/O, the clock is passed in.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.outcomes import Draft, Outcome, Settled

LAST = 20  # requests that needed the large model
WITHIN_S = 60.0  # older ones say nothing of now, so that the state ends by itself when no more come
FEWEST = 5
SHARE = 0.9
FOR_S = 2.0  # of a busy edge the last twenty are a moment: it must go on for so long
TELL_EVERY_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Degrading:
    """The state while it lasts: since when, on the clock of time.monotonic, and the reasons of the last requests."""

    since: float
    requests: int
    reasons: dict[str, int]


class Deferrals:
    """What became of the last requests that the gate deferred; it listens; ask `degrading` when somebody looks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: deque[tuple[float, str | None]] = deque(maxlen=LAST)
        self._lost = 0
        self._since: float | None = None
        self._reasons: Counter[str] = Counter()  # since it began
        self._told = False
        self._tell_at = 0.0

    def on_settled(self, _: Settled, outcomes: Sequence[Outcome[Draft, object]]) -> None:
        """Note a request of which anything was deferred: answered, if the large model answered any of its items."""
        reason: str | None = None
        for outcome in outcomes:
            if outcome.decision == "accepted":
                continue
            if outcome.decision == "deferred" and outcome.reason != "remote_degraded":
                self.note(None)
                return
            reason = outcome.reason
        if reason is not None:
            self.note(reason)

    def note(self, reason: str | None) -> None:
        """One request: None if the large model answered, else why it did not."""
        if len(self._last) == LAST:
            self._lost -= self._last[0][1] is not None
        self._last.append((self._clock(), reason))
        self._lost += reason is not None
        if reason is not None or self._since is not None:
            self._judge(reason)

    def degrading(self) -> Degrading | None:
        """None while the large model answers, and where nobody knows."""
        self._judge(None)
        if not self._lasts():
            return None
        assert self._since is not None
        return Degrading(self._since, len(self._last), dict(Counter(why for _, why in self._last if why is not None)))

    def _judge(self, reason: str | None) -> None:
        now = self._clock()
        while self._last and self._last[0][0] <= now - WITHIN_S:
            self._lost -= self._last.popleft()[1] is not None
        if self._lost < FEWEST or self._lost < SHARE * len(self._last):
            self._end(now)
            return
        if self._since is None:
            self._since = now
            self._reasons.update(why for _, why in self._last if why is not None)
        elif reason is not None:
            self._reasons[reason] += 1
        if not self._told and now >= self._tell_at and self._lasts():
            self._told, self._tell_at = True, now + TELL_EVERY_S
            why = {"reasons": dict(self._reasons), "requests": self._reasons.total()}
            logger.warning("nearly all deferrals degrade: the large model's answers do not reach clients", extra=why)

    def _end(self, now: float) -> None:
        if self._told:
            assert self._since is not None
            over = {"seconds": round(now - self._since, 1), "reasons": dict(self._reasons)}
            answered = len(self._last) > self._lost
            how = "the large model answers again" if answered else "nothing has been deferred since"
            logger.info("deferrals no longer degrade: %s", how, extra=over)
        self._told, self._since = False, None
        self._reasons.clear()

    def _lasts(self) -> bool:
        return self._since is not None and self._clock() - self._since >= FOR_S
