"""One server of a large model: its wire, its breaker, the calls it has, the wait that it has asked for."""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout
from service.remote.breaker import Breaker, Permit
from service.remote.http import HttpAnswer, HttpClient, HttpRequest, KeyRefused
from service.remote.large_model import Ask
from service.remote.latency import UsualTime
from service.remote.wire import Wire

APART_TIMEOUT_S = 5.0
TELL_EVERY_S = 60.0  # a bad answer, of each kind
TOLD_CHARS = 80

logger = logging.getLogger(__name__)


class Visit(NamedTuple):
    """A call at one server, with its second attempt there. `time_left_s` and `answers_before` are of its beginning."""

    permit: Permit
    ask: Ask
    time_left_s: float
    answers_before: int


class Endpoint:
    """A server that takes up to `slots` calls at once. Whoever calls it frames the call with `begin` and `end`."""

    def __init__(
        self, url: str, wire: Wire, client: HttpClient, breaker: Breaker, slots: int, clock: Callable[[], float]
    ) -> None:
        self.url = url
        self.wire = wire
        self.in_flight = 0
        self._client = client
        self._breaker = breaker
        self._slots = slots
        self._clock = clock
        self._limited_until = 0.0
        self._key_refused = False
        self._answers = 0  # that it has given
        self._silent = False  # its breaker was opened by calls that it left without an answer
        self._usual = UsualTime()
        # By the kind of bad answer, of which the code has a dozen: told last when, and how many since.
        self._told: dict[str, tuple[float, int]] = {}

    @property
    def name(self) -> str:
        """Host, port and path: what tells the configured endpoints apart."""
        return self.url.partition("://")[2]

    @property
    def breaker_open(self) -> bool:
        """True from the failure that opens the breaker to the answer that closes it."""
        return self._breaker.is_open

    def broken_s(self) -> float:
        """Seconds until the breaker lets a call through; 0.0 when it would now."""
        return self._breaker.wait_s()

    def limited_s(self) -> float:
        """Seconds that are left of the last 429's Retry-After."""
        return max(0.0, self._limited_until - self._clock())

    def willing(self) -> bool:
        """Whether nothing but its slots may stand against a call."""
        return self._limited_until <= self._clock() and self.broken_s() == 0.0 and not self.wire.facts.is_self

    def ready(self) -> bool:
        """Whether a call could go out right now."""
        return self.in_flight < self._slots and self.willing()

    def rank(self) -> tuple[bool, int]:
        """Lower is asked sooner: first an endpoint whose probe is due, or it would never heal, then the least busy."""
        return not self._breaker.is_open, self.in_flight

    def begin(self, ask: Ask, time_left_s: float) -> Visit:
        """A ready endpoint is called."""
        # The second is for cleaning up: a probe reports by itself, the lease is for one that cannot.
        permit = self._breaker.admit(lease_s=time_left_s + 1.0)
        assert permit is not None, "only a ready endpoint is called"
        self.in_flight += 1
        return Visit(permit, ask, time_left_s, self._answers)

    def took(self, seconds: float, items: int) -> None:
        """How long an answer was in coming."""
        self._answers += 1
        self._usual.took(seconds, items)

    def enough_s(self, items: int) -> float:
        """The time in which it should have answered a call of so many items, in whatever state it is."""
        return self._usual.enough_s(items)

    def succeeded(self, visit: Visit) -> None:
        """The call was answered."""
        self._key_refused = False
        # An answer to a call from before it opened is a sign of life too, where silence is what opened it.
        if self._breaker.succeeded(visit.permit) or (self._silent and self._breaker.close()):
            logger.info("the breaker closes: the large model at %s has answered", self.url)

    def failed(self, visit: Visit, error: RemoteError) -> None:
        """The call failed. What a client can provoke, and a limit, are not counted by the breaker."""
        if isinstance(error, RemoteLimit):
            self._limited_until = max(self._limited_until, self._clock() + (error.retry_after_s or 0))
            return
        if error.provoked:
            return
        if isinstance(error, RemoteTimeout) and not self._had_enough_time(visit):
            return  # else a client with a deadline of 1 ms could open the breaker for all
        if isinstance(error, KeyRefused) and not self._key_refused:
            self._key_refused = True
            logger.error("%s at %s: set GATEKEEPER_REMOTE_KEY to a key that it takes", error.detail, self.url)
        if self._breaker.failed(visit.permit):
            self._silent = isinstance(error, RemoteTimeout)
            cause = error.__cause__ or error.reason
            logger.warning("the breaker opens for %s: %s (%r)", self.url, error.detail, cause)

    def end(self, visit: Visit) -> None:
        """The call is over, whatever happened; a probe that has not reported gives its turn back."""
        self.in_flight -= 1
        self._breaker.withdraw(visit.permit)

    def _had_enough_time(self, visit: Visit) -> bool:
        """Whether a late call says something of the server: the call left it time enough, and it answers no other."""
        if not visit.ask.own_deadline:
            return True
        answers_others = self._answers > visit.answers_before
        return not answers_others and visit.time_left_s >= self.enough_s(len(visit.ask.inputs))

    def tell(self, error: RemoteBadAnswer) -> None:
        """Log what is wrong with its answers: once a minute for each kind."""
        now = self._clock()
        told_at, more = self._told.get(error.fault, (-TELL_EVERY_S, 0))
        if now - told_at < TELL_EVERY_S:
            self._told[error.fault] = (told_at, more + 1)
            return
        self._told[error.fault] = (now, 0)
        found: dict[str, object] = {"fault": error.fault, "not_told_before": more}
        if error.excerpt:  # a formatter escapes it
            found["excerpt"] = error.excerpt[:TOLD_CHARS]
        logger.warning("a bad answer of %s: %s", self.url, error.detail, extra=found)

    async def exchange(self, request: HttpRequest, deadline: float, *, fresh: bool) -> HttpAnswer:
        """The answer, by the deadline in the event loop's time. Raises RemoteError."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._client.exchange(request, fresh=fresh)
        except TimeoutError:
            raise RemoteTimeout("the large model did not answer in time") from None

    async def exchange_apart(self, request: HttpRequest) -> HttpAnswer:
        """What is no call: on a fresh connection, since the pool's are all for calls."""
        deadline = asyncio.get_running_loop().time() + APART_TIMEOUT_S
        return await self.exchange(request, deadline, fresh=True)

    async def get_to_know(self) -> None:
        """See Wire."""
        await self.wire.get_to_know(self.exchange_apart)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()
