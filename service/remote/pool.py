"""The servers of one large model: which of them to ask, and where to try a second time.

answer -> _attempts -> _attempt. endpoint.py is one server with its breaker, http.py one exchange with it, and the wire
says what is sent and what an answer means. slots.py and latency.py hold what is known of all calls together.
"""

import asyncio
import math
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import BreakerOpen, RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable
from service.remote.breaker import Breaker
from service.remote.endpoint import Endpoint
from service.remote.http import HttpClient, Rejected, TransientFailure
from service.remote.large_model import Ask, ItemAnswer
from service.remote.latency import QuickestLately
from service.remote.slots import Slots
from service.remote.wire import Wire

ATTEMPTS = 2
# A second attempt with less than this share of the time left would mostly turn an honest failure into a late one.
RETRY_SHARE = 0.5
RETRY_PAUSE_S = (0.01, 0.05)  # before the same server is asked again


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """Of one endpoint: calls at once, seconds to connect, bytes of an answer; failures in a row that open its breaker,
    for how long."""

    max_concurrency: int
    connect_timeout_s: float
    max_response_bytes: int
    breaker_failures: int
    breaker_open_s: float


class _Attempt(NamedTuple):
    """Where a call is tried again, and after which pause."""

    endpoint: Endpoint
    pause_s: float


class Pool:
    """A large model at each of `urls`, over the wire that `new_wire` makes for a URL.

    Calls go to the least busy endpoint whose breaker is closed, the earlier in the list where several are: to the first
    one alone until it has something to do. `key` travels to all of them as a bearer token, `tls` is what https trusts.
    `observe(outcome, seconds)` is called once per HTTP attempt that came to an end; outcome is "ok" or a RemoteError's
    reason. A cancelled attempt has none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        new_wire: Callable[[str], Wire],
        limits: EndpointLimits,
        observe: Callable[[str, float], None],
        *,
        key: str | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",  # what arrives is what is counted, and nothing can blow up
            "user-agent": "gatekeeper",
        }
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._limits = limits
        self._observe = observe
        self.endpoints = [_endpoint(url.rstrip("/"), new_wire, limits, headers, tls, clock) for url in urls]
        # One endpoint that hangs must not take the slots of the others: each has its own number, this is their sum.
        self._slots = Slots(limits.max_concurrency * len(urls), most_waiting=limits.max_concurrency)
        self._quickest = QuickestLately(clock)
        self._first_contacts: list[asyncio.Task[None]] = []

    @property
    def breaker_open(self) -> bool:
        """Whether the breakers of all endpoints are open."""
        return all(endpoint.breaker_open for endpoint in self.endpoints)

    def start(self) -> None:
        """Let each wire get to know its server, beside the calls."""
        self._first_contacts = [
            asyncio.create_task(endpoint.get_to_know(), name="first contact") for endpoint in self.endpoints
        ]

    def was_asked(self, handshake: str) -> None:
        """This process has got a request with this handshake. See Wire."""
        for endpoint in self.endpoints:
            endpoint.wire.was_asked(handshake)

    def refusal(self) -> RemoteError | None:
        """BreakerOpen if every breaker refuses, RemoteLimit if those that do not were told to wait, else None.

        RemoteUnavailable if every URL leads back to this edge.
        """
        for endpoint in self.endpoints:
            if endpoint.willing():
                return None
        others = [endpoint for endpoint in self.endpoints if not endpoint.wire.facts.is_self]
        if not others:
            return RemoteUnavailable("every remote URL leads back to this edge")
        closed = [endpoint for endpoint in others if endpoint.broken_s() == 0.0]
        if not closed:
            # While a probe is out the wait is its whole lease; it is nearly always back sooner.
            wait_s = min(self._limits.breaker_open_s, *(endpoint.broken_s() for endpoint in others))
            return BreakerOpen("the large model has failed too often just now", retry_after_s=max(1, math.ceil(wait_s)))
        wait_s = min(endpoint.limited_s() for endpoint in closed)
        if wait_s > 0.0:
            return RemoteLimit("the large model has asked for a pause", retry_after_s=math.ceil(wait_s))
        return None

    async def answer(self, ask: Ask) -> list[ItemAnswer]:
        """See LargeModel. A client's own deadline below the quickest of the recent calls is given up untried."""
        if not ask.inputs:
            return []
        time_left_s = ask.left_s()
        if time_left_s <= (self._quickest.least_s() if ask.own_deadline else 0.0):
            raise RemoteTimeout("too little time is left to ask the large model")
        if (refusal := self.refusal()) is not None:
            raise refusal
        await self._slots.take(time_left_s)
        try:
            return await self._attempts(ask)
        finally:
            self._slots.give_back()

    async def aclose(self) -> None:
        """Close every connection. Calls after this raise RemoteUnavailable."""
        for contact in self._first_contacts:
            contact.cancel()
        await asyncio.gather(*self._first_contacts, return_exceptions=True)
        for endpoint in self.endpoints:
            await endpoint.aclose()

    async def _attempts(self, ask: Ask) -> list[ItemAnswer]:
        """Ask one server and, while there is time and a place for it, once more."""
        endpoint = self._choose()
        if endpoint is None:
            raise self.refusal() or RemoteLimit("every slot to the large model is taken")
        time_left_s = ask.left_s()
        visit = endpoint.begin(ask, time_left_s)
        attempts = 0
        try:
            while True:
                attempts += 1
                try:
                    answers = await self._attempt(endpoint, ask, fresh=attempts > 1)
                except RemoteError as error:
                    spare_s = ask.left_s() - time_left_s * RETRY_SHARE
                    another = self._another(endpoint, error, spare_s) if attempts < ATTEMPTS else None
                    if another is not None and another.endpoint is endpoint:
                        await asyncio.sleep(another.pause_s)
                        continue  # its breaker hears of both attempts as one
                    endpoint.failed(visit, error)
                    if another is None:
                        raise
                    endpoint.end(visit)
                    endpoint = another.endpoint
                    visit = endpoint.begin(ask, ask.left_s())
                else:
                    endpoint.succeeded(visit)
                    return answers
        finally:
            endpoint.end(visit)

    def _another(self, endpoint: Endpoint, error: RemoteError, spare_s: float) -> _Attempt | None:
        """After a failure at that server: at another that is ready or else, if the failure may pass, at the same."""
        if spare_s < 0.0 or isinstance(error, Rejected):
            return None
        if (other := self._choose(besides=endpoint)) is not None:
            return _Attempt(other, pause_s=0.0)
        pause_s = random.uniform(*RETRY_PAUSE_S)
        return _Attempt(endpoint, pause_s) if isinstance(error, TransientFailure) and pause_s <= spare_s else None

    def _choose(self, besides: Endpoint | None = None) -> Endpoint | None:
        ready = [endpoint for endpoint in self.endpoints if endpoint is not besides and endpoint.ready()]
        return min(ready, key=Endpoint.rank) if len(ready) > 1 else ready[0] if ready else None

    async def _attempt(self, endpoint: Endpoint, ask: Ask, *, fresh: bool) -> list[ItemAnswer]:
        request = endpoint.wire.request(ask)
        started = time.perf_counter()  # uvloop's own time has a resolution of 1 ms
        try:
            answer = await endpoint.exchange(request, ask.deadline, fresh=fresh)
            answers = endpoint.wire.parse(answer, ask)
        except RemoteError as error:
            self._observe(error.reason, time.perf_counter() - started)
            if isinstance(error, RemoteBadAnswer):
                endpoint.tell(error)
            raise
        seconds = time.perf_counter() - started
        bad = next((item for item in answers if isinstance(item, RemoteBadAnswer)), None)
        if bad is not None:
            endpoint.tell(bad)
        self._observe("ok" if bad is None else bad.reason, seconds)
        endpoint.took(seconds, len(ask.inputs))
        self._quickest.took(seconds)
        return answers


def _endpoint(
    url: str,
    new_wire: Callable[[str], Wire],
    limits: EndpointLimits,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None,
    clock: Callable[[], float],
) -> Endpoint:
    client = HttpClient(
        url,
        headers=headers,
        tls=tls,
        max_connections=limits.max_concurrency,
        connect_timeout_s=limits.connect_timeout_s,
        max_response_bytes=limits.max_response_bytes,
    )
    breaker = Breaker(limits.breaker_failures, limits.breaker_open_s, clock)
    return Endpoint(url, new_wire(url), client, breaker, limits.max_concurrency, clock)
