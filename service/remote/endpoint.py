"""One server of a large model: its connections, its breaker, the calls it has, the wait that it has asked for."""

import asyncio
import logging
import secrets
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from service.errors import ForeignLabel, RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout
from service.remote import gatekeeper_wire
from service.remote.breaker import Breaker, Permit
from service.remote.http import HttpClient, KeyRefused, Rejected

LABELS_TIMEOUT_S = 5.0
# A client's own deadline says something of the server if it left `ENOUGH` times what the server usually takes, and no
# less than `ENOUGH_S`, which is a pause and no outage; where it has never answered, `UNKNOWN_S`.
ENOUGH, ENOUGH_S, UNKNOWN_S = 2.0, 0.2, 1.0
USUAL_CALLS = 9  # so that after five answers of a server that has become slow the clients' deadlines are too short
TELL_EVERY_S = 60.0  # a bad answer, of each kind
TOLD_CHARS = 80

logger = logging.getLogger(__name__)


class Endpoint:
    """A server that takes up to `slots` calls at once. Whoever calls it frames the call with `begin` and `end`."""

    def __init__(self, url: str, client: HttpClient, breaker: Breaker, slots: int, clock: Callable[[], float]) -> None:
        self.url = url
        self.in_flight = 0
        self.labels_match: bool | None = None
        self.labels_shared: int | None = None  # None until it has been asked
        self.labels_told: int | None = None
        self.is_self = False
        self._handshake = secrets.token_hex(8)
        self._client = client
        self._breaker = breaker
        self._slots = slots
        self._clock = clock
        self._limited_until = 0.0
        self._key_refused = False
        self.answers = 0  # that it has given
        self._silent = False  # its breaker was opened by calls that it left without an answer
        self._answered: deque[tuple[float, int]] = deque(maxlen=USUAL_CALLS)  # seconds and items of the last calls
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

    def ready(self) -> bool:
        """Whether a call could go out right now."""
        free = self.in_flight < self._slots and not self.is_self
        return free and self.broken_s() == 0.0 and self.limited_s() == 0.0

    def rank(self) -> tuple[bool, int]:
        """Lower is asked sooner: first an endpoint whose probe is due, or it would never heal, then the least busy."""
        return not self._breaker.is_open, self.in_flight

    def begin(self, lease_s: float) -> Permit:
        """Leave for one call to a ready endpoint, which takes at most `lease_s`."""
        permit = self._breaker.admit(lease_s)
        assert permit is not None, "only a ready endpoint is called"
        self.in_flight += 1
        return permit

    def took(self, seconds: float, items: int) -> None:
        """How long an answer was in coming."""
        self.answers += 1
        self._answered.append((seconds, items))

    def enough_s(self, items: int) -> float:
        """The time in which it should have answered a call of so many items, in whatever state it is."""
        if not self._answered:
            return UNKNOWN_S
        # A call of more items may take longer, at worst in proportion.
        usual_s = statistics.median(seconds * max(1.0, items / others) for seconds, others in self._answered)
        return max(ENOUGH_S, ENOUGH * usual_s)

    def succeeded(self, permit: Permit) -> None:
        """The call was answered."""
        self._key_refused = False
        # An answer to a call from before it opened is a sign of life too, where silence is what opened it.
        if self._breaker.succeeded(permit) or (self._silent and self._breaker.close()):
            logger.info("the breaker closes: the large model at %s has answered", self.url)

    def failed(self, permit: Permit, error: RemoteError, *, enough_time: bool) -> None:
        """The call failed. What a client can provoke, and a limit, are not counted by the breaker.

        enough_time: no client had chosen a time that was too short for anybody.
        """
        if isinstance(error, RemoteLimit):
            self._limited_until = max(self._limited_until, self._clock() + (error.retry_after_s or 0))
        if isinstance(error, RemoteLimit | Rejected):
            return
        if isinstance(error, ForeignLabel) and self.labels_shared != 0:
            return  # of those who share some labels, a client can choose texts that get a foreign one
        if not enough_time and isinstance(error, RemoteTimeout):
            return  # else a client with a deadline of 1 ms could open the breaker for all
        if isinstance(error, KeyRefused) and not self._key_refused:
            self._key_refused = True
            logger.error("%s at %s: set GATEKEEPER_REMOTE_KEY to a key that it takes", error.detail, self.url)
        if self._breaker.failed(permit):
            self._silent = isinstance(error, RemoteTimeout)
            cause = error.__cause__ or error.reason
            logger.warning("the breaker opens for %s: %s (%r)", self.url, error.detail, cause)

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
        hint = "; GATEKEEPER_REMOTE_FOREIGN_LABELS=allow lets such through" if isinstance(error, ForeignLabel) else ""
        logger.warning("a bad answer of %s: %s%s", self.url, error.detail, hint, extra=found)

    def end(self, permit: Permit) -> None:
        """The call is over, whatever happened; a probe that has not reported gives its turn back."""
        self.in_flight -= 1
        self._breaker.withdraw(permit)

    async def post(self, path: str, headers: Mapping[str, str], body: bytes, deadline: float, *, fresh: bool) -> bytes:
        """The body of the 200 that answers a request, by the deadline in the event loop's time. Raises RemoteError."""
        return await self._exchange("POST", path, headers, body, deadline, fresh=fresh)

    async def labels(self) -> list[str]:
        """The labels that this server says its model has. Raises RemoteError; RemoteBadAnswer if it tells none."""
        deadline = asyncio.get_running_loop().time() + LABELS_TIMEOUT_S
        # On a fresh connection: the pool's are all for calls.
        headers = {gatekeeper_wire.HANDSHAKE: self._handshake}
        return gatekeeper_wire.labels(await self._exchange("GET", "/v1/models", headers, None, deadline, fresh=True))

    def meets(self, theirs: Sequence[str], ours: Sequence[str]) -> None:
        """It has told its labels."""
        told, known = set(theirs), set(ours)
        self.labels_match = told == known
        self.labels_told, self.labels_shared = len(theirs), len(told & known)

    def meet(self, handshake: str) -> None:
        """This process was asked for its labels: if by this endpoint, it is no large model, and is never called."""
        if handshake == self._handshake and not self.is_self:
            self.is_self = True
            logger.error(
                "the remote URL %s leads back to this edge: set GATEKEEPER_REMOTE_URL to a large model", self.url
            )

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, deadline: float, *, fresh: bool
    ) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._client.exchange(method, path, headers, body, fresh=fresh)
        except TimeoutError:
            raise RemoteTimeout("the large model did not answer in time") from None
