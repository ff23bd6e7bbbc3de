"""The one way to the large model: which of its endpoints to ask, slots, deadline, a second attempt elsewhere.

answer -> _with_failover -> _ask -> _with_retry -> _attempt: each step adds one concern. endpoint.py is one server and
its breaker, http.py the HTTP below, gatekeeper_wire.py the contract of the answers.
"""

import asyncio
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from service.errors import (
    BreakerOpen,
    ForeignLabel,
    RemoteBadAnswer,
    RemoteError,
    RemoteLimit,
    RemoteTimeout,
    RemoteUnavailable,
)
from service.remote.breaker import Breaker
from service.remote.endpoint import Endpoint
from service.remote.gatekeeper_wire import answers, header_value, question
from service.remote.http import HttpClient, Rejected, TransientFailure
from service.remote.large_model import Ask, ItemAnswer

# A burst may wait for a slot as long as nobody notices, and not at all behind as many others as there are slots.
SLOT_WAIT_S = 0.05
SLOT_SHARE = 0.25
# A second attempt with less than this share of the time left would mostly turn an honest failure into a late one.
RETRY_SHARE = 0.5
RETRY_PAUSE_S = (0.01, 0.05)
ATTEMPTS = 2
# Of how many answered calls the quickest is remembered, and how long after the last of them.
RECENT_CALLS = 20
RECENT_S = 1.0


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """Of one endpoint: calls at once, seconds to connect, bytes of an answer; failures in a row that open its breaker,
    for how long."""

    max_concurrency: int
    connect_timeout_s: float
    max_response_bytes: int
    breaker_failures: int
    breaker_open_s: float


@dataclass(slots=True)
class _Call:
    ask: Ask
    body: bytes
    headers: Mapping[str, str]
    attempts: int = 0


class Pool:
    """A large model behind `POST {url}/v1/classify`, the same contract that the edge itself serves, at each of `urls`.

    Calls go to the least busy endpoint whose breaker is closed, the earlier in the list where several are: to the first
    one alone until it has something to do. `key` travels to all of them as a bearer token, `tls` is what https trusts.
    `labels` are those that an answer may have, None: any. `observe(outcome, seconds)` is called once per HTTP attempt
    that came to an end; outcome is "ok" or a RemoteError's reason. A cancelled attempt has none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: EndpointLimits,
        observe: Callable[[str, float], None],
        *,
        key: str | None = None,
        tls: ssl.SSLContext | None = None,
        labels: AbstractSet[str] | None = None,
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
        self._labels = labels
        self._clock = clock
        self.endpoints = [_endpoint(url.rstrip("/"), limits, headers, tls, clock) for url in urls]
        # One endpoint that hangs must not take the slots of the others: each has its own number, this is their sum.
        self._slots = asyncio.Semaphore(limits.max_concurrency * len(urls))
        self._waiting = 0
        self._recent_s: deque[float] = deque(maxlen=RECENT_CALLS)
        self._recent_until = 0.0

    @property
    def breaker_open(self) -> bool:
        """Whether the breakers of all endpoints are open."""
        return all(endpoint.breaker_open for endpoint in self.endpoints)

    def refusal(self) -> RemoteError | None:
        """BreakerOpen if every breaker refuses, RemoteLimit if those that do not were told to wait, else None.

        RemoteUnavailable if every URL leads back to this edge.
        """
        others = [endpoint for endpoint in self.endpoints if not endpoint.is_self]
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
        if time_left_s <= (self._quickest_s() if ask.own_deadline else 0.0):
            raise RemoteTimeout("too little time is left to ask the large model")
        if (refusal := self.refusal()) is not None:
            raise refusal
        call = _Call(
            ask,
            body=question(ask.inputs, ask.top_k),
            headers={
                "content-type": "application/json",
                "x-gatekeeper-hops": str(ask.hops),
                "x-request-id": header_value(ask.request_id),
            },
        )
        await self._take_slot(time_left_s)
        try:
            return await self._with_failover(call)
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        """Close every connection. Calls after this raise RemoteUnavailable."""
        for endpoint in self.endpoints:
            await endpoint.aclose()

    def _quickest_s(self) -> float:
        """The least that a call has lately needed; 0.0 if there was none, so that a guess never lasts."""
        return min(self._recent_s, default=0.0) if self._clock() < self._recent_until else 0.0

    async def _take_slot(self, timeout_s: float) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # without waiting
            return
        if self._waiting >= self._limits.max_concurrency:
            raise RemoteLimit("every slot to the large model is taken, and as many calls wait for one")
        self._waiting += 1
        try:
            async with asyncio.timeout(min(SLOT_WAIT_S, timeout_s * SLOT_SHARE)):
                await self._slots.acquire()
        except TimeoutError:
            raise RemoteLimit("every slot to the large model is taken") from None
        finally:
            self._waiting -= 1

    def _choose(self, besides: Endpoint | None = None) -> Endpoint | None:
        ready = [endpoint for endpoint in self.endpoints if endpoint is not besides and endpoint.ready()]
        return min(ready, key=Endpoint.rank, default=None)

    async def _with_failover(self, call: _Call) -> list[ItemAnswer]:
        """Ask one endpoint and, after a failure that may be that server's own, another."""
        first = self._choose()
        if first is None:
            raise self.refusal() or RemoteLimit("every slot to the large model is taken")
        time_left_s = call.ask.left_s()
        try:
            return await self._ask(first, call)
        except Rejected:
            raise
        except RemoteError:
            another = self._choose(besides=first)
            if another is None or call.attempts >= ATTEMPTS or call.ask.left_s() < time_left_s * RETRY_SHARE:
                raise
        return await self._ask(another, call)

    async def _ask(self, endpoint: Endpoint, call: _Call) -> list[ItemAnswer]:
        """Tell the endpoint how its part of the call went: once, whatever happened."""
        # The second is for cleaning up: a probe reports by itself, the lease is for one that cannot.
        given_s, answers_before = call.ask.left_s(), endpoint.answers
        permit = endpoint.begin(lease_s=given_s + 1.0)
        try:
            answered = await self._with_retry(endpoint, call)
        except RemoteError as error:
            silent = endpoint.answers == answers_before  # else it answers others meanwhile
            enough_time = not call.ask.own_deadline or (silent and given_s >= endpoint.enough_s(len(call.ask.inputs)))
            endpoint.failed(permit, error, enough_time=enough_time)
            raise
        else:
            endpoint.succeeded(permit)
            return answered
        finally:
            endpoint.end(permit)

    async def _with_retry(self, endpoint: Endpoint, call: _Call) -> list[ItemAnswer]:
        """A second attempt at the same endpoint, where no other is ready for it."""
        time_left_s = call.ask.left_s()
        try:
            return await self._attempt(endpoint, call, fresh=call.attempts > 0)
        except TransientFailure:
            pause_s = random.uniform(*RETRY_PAUSE_S)
            if (
                call.attempts >= ATTEMPTS
                or call.ask.left_s() - pause_s < time_left_s * RETRY_SHARE
                or self._choose(besides=endpoint) is not None
            ):
                raise
        await asyncio.sleep(pause_s)
        return await self._attempt(endpoint, call, fresh=True)

    async def _attempt(self, endpoint: Endpoint, call: _Call, *, fresh: bool) -> list[ItemAnswer]:
        call.attempts += 1
        started = time.perf_counter()  # uvloop's own time has a resolution of 1 ms
        headers = {**call.headers, "x-request-timeout-ms": str(max(1, int(call.ask.left_s() * 1000)))}
        try:
            body = await endpoint.post("/v1/classify", headers, call.body, call.ask.deadline, fresh=fresh)
            answered = answers(body, len(call.ask.inputs), call.ask.top_k, self._labels)
        except RemoteError as error:
            self._observe(error.reason, time.perf_counter() - started)
            if isinstance(error, RemoteBadAnswer):
                endpoint.tell(error)
            raise
        seconds = time.perf_counter() - started
        foreign = next((answer for answer in answered if isinstance(answer, ForeignLabel)), None)
        if foreign is not None:
            endpoint.tell(foreign)
        self._observe("ok" if foreign is None else foreign.reason, seconds)
        endpoint.took(seconds, len(call.ask.inputs))
        self._recent_s.append(seconds)
        self._recent_until = self._clock() + RECENT_S
        return answered


def _endpoint(
    url: str,
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
    return Endpoint(url, client, breaker, limits.max_concurrency, clock)
