"""A circuit breaker: after a run of failures it refuses calls for a while, then lets one probe through.

    closed --- N failures in a row ---> open --- open_s later ---> half-open: one probe is out
       ^                                 ^                            |
       |                                 +--------- it fails ---------+
       +------------------------------ it succeeds -------------------+

Pure: no I/O, no waiting, the clock is passed in. Not thread-safe: it belongs to one event loop.
"""

import time
from collections.abc import Callable


class Permit:
    """Leave for one call, to be handed back with the report. The first report counts, later ones are ignored."""

    __slots__ = ("epoch", "reported")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.reported = False


class Breaker:
    """Counts failures in a row. `failures` of them open it; it refuses for `open_s` seconds, then admits one probe."""

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._open_s = open_s
        self._clock = clock
        self._failures_in_a_row = 0
        # None: closed. Otherwise open, refusing until then; a probe that is out pushes it forward by its lease.
        self._refuse_until: float | None = None
        # A report counts only in the epoch it was admitted in: a call that began before the breaker opened says
        # nothing about the remote of now.
        self._epoch = 0

    @property
    def is_open(self) -> bool:
        """True from the failure that opens it to the probe that closes it, half-open included."""
        return self._refuse_until is not None

    def wait_s(self) -> float:
        """Seconds until a call can be let through; 0.0 when one would be let through now.

        While a probe is out this is what is left of its lease: the longest the wait can be.
        """
        if self._refuse_until is None:
            return 0.0
        return max(0.0, self._refuse_until - self._clock())

    def admit(self, lease_s: float) -> Permit | None:
        """Let a call through, or None to refuse it. The caller reports how it went, with the permit.

        `lease_s` is the longest that the call can take, in seconds: a probe that has not reported by then is given
        up, and the next call is the probe.
        """
        if self._refuse_until is not None:
            if self.wait_s() > 0.0:
                return None
            self._refuse(lease_s)
        return Permit(self._epoch)

    def succeeded(self, permit: Permit) -> bool:
        """The call was answered. True if this has closed the breaker."""
        if not self._first_report(permit):
            return False
        self._failures_in_a_row = 0
        return self.close()

    def close(self) -> bool:
        """The remote is known to answer, whatever the probe says. True if this has closed the breaker."""
        if self._refuse_until is None:
            return False
        self._failures_in_a_row = 0
        self._epoch += 1
        self._refuse_until = None
        return True

    def failed(self, permit: Permit) -> bool:
        """The call failed through the remote's fault. True if this has opened the breaker (not: kept it open)."""
        if not self._first_report(permit):
            return False
        was_open = self.is_open
        self._failures_in_a_row += 1
        if was_open or self._failures_in_a_row >= self._failures:
            self._refuse(self._open_s)
        return self.is_open and not was_open

    def withdraw(self, permit: Permit) -> None:
        """The call says nothing about the remote: it was cancelled, say. A probe's turn is free again.

        After another report this does nothing, so it fits a `finally`.
        """
        if self._first_report(permit) and self.is_open:
            self._refuse(0.0)

    def _refuse(self, seconds: float) -> None:
        self._epoch += 1
        self._refuse_until = self._clock() + seconds

    def _first_report(self, permit: Permit) -> bool:
        """Whether this report counts: the permit's first, and of the present epoch."""
        first, permit.reported = not permit.reported, True
        return first and permit.epoch == self._epoch
