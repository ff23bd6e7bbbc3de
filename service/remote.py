"""The one way to the large model: slots, deadline, retry, breaker, and the contract of its answers.

classify -> _with_retry -> _attempt -> _exchange: each step adds one concern; exchange.py is the HTTP below.
"""

import asyncio
import json
import logging
import math
import random
import string
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.breaker import Breaker, Permit
from service.errors import BreakerOpen, RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable
from service.exchange import Passing, Rejected, exchange, open_transport

LABELS_TIMEOUT_S = 5.0
# A call that has waited longer than this share of its time for a slot would mostly time out in the end.
SLOT_SHARE = 0.25
# A retry with less than this share of the time left would mostly turn an honest failure into a late one.
RETRY_SHARE = 0.5
RETRY_PAUSE_S = (0.01, 0.05)
# Below uvicorn's 5 s, so that it is mostly us who close an idle connection and no call meets a stale one.
KEEPALIVE_S = 4.0

logger = logging.getLogger(__name__)


# One item as it travels: a text, or {"image": base64}.
Input = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """The large model's answer to one item. `score` is in [0, 1]; `degraded`: its own large model was out of reach."""

    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    degraded: bool


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """Calls at once, seconds to connect, bytes of an answer; failures in a row that open the breaker, for how long."""

    max_concurrency: int
    connect_timeout_s: float
    max_response_bytes: int
    breaker_failures: int
    breaker_open_s: float


class Remote(Protocol):
    """One large model, whatever it speaks on the wire."""

    @property
    def breaker_open(self) -> bool:
        """True from the failure that opens the breaker to the answer that closes it."""
        ...

    def refusal(self) -> RemoteError | None:
        """BreakerOpen if a call would be refused right now, without any waiting; else None."""
        ...

    async def classify(
        self,
        inputs: Sequence[Input],
        *,
        top_k: int,
        timeout_s: float,
        hops: int,
        request_id: str,
        own_deadline: bool = False,
    ) -> list[RemoteAnswer]:
        """One answer per input, in order. Raises nothing but RemoteError's subclasses (and CancelledError).

        `timeout_s` bounds the whole call, waiting and retry included; `own_deadline` says that it is the client's
        choice, so that running out of it says nothing about the large model. `hops` and `request_id` are sent as given,
        but for characters that no header can hold.
        """
        ...

    async def labels(self) -> list[str] | None:
        """The labels that the large model says it has; None if it cannot be told."""
        ...

    async def aclose(self) -> None:
        """Close every connection. Calls after this raise RemoteUnavailable."""
        ...


class _Wire(BaseModel):
    # Fields that a newer remote adds are not our business; those we read must be exactly right.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Scored(_Wire):
    label: Annotated[str, Field(min_length=1)]
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _Output(_Scored):
    decision: Literal["accepted", "deferred", "degraded"]
    top: list[_Scored] | None = None


class _Outputs(_Wire):
    outputs: list[_Output]


class _Model(_Wire):
    labels: list[str] | None = None


class _Models(_Wire):
    data: list[_Model]


Parsed = TypeVar("Parsed", bound=_Wire)


@dataclass(frozen=True, slots=True)
class _Call:
    body: bytes
    headers: Mapping[str, str]
    deadline: float  # in the event loop's time
    items: int
    top_k: int
    own_deadline: bool


class GatekeeperRemote:
    """A large model behind `POST {base_url}/v1/classify`, the same contract that the edge itself serves.

    `observe(outcome, seconds)` is called once per HTTP attempt that came to an end; outcome is "ok" or a RemoteError's
    reason. A cancelled attempt has none. `transport` replaces the network in tests.
    """

    def __init__(
        self,
        base_url: str,
        limits: RemoteLimits,
        observe: Callable[[str, float], None],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        base = httpx.URL(base_url.rstrip("/"))
        self._classify_url = httpx.URL(f"{base}/v1/classify")
        self._models_url = httpx.URL(f"{base}/v1/models")
        self._limits = limits
        self._observe = observe
        self._transport = transport or open_transport(base, limits.max_concurrency, KEEPALIVE_S)
        # For retries, each on a connection of its own: others of the pool may be as stale as the one that failed, and
        # a load balancer can choose another server.
        self._retry_transport = transport or open_transport(base, limits.max_concurrency, None)
        self._slots = asyncio.Semaphore(limits.max_concurrency)
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_open_s, clock)
        self._closed = False

    @property
    def breaker_open(self) -> bool:
        return self._breaker.is_open

    def refusal(self) -> RemoteError | None:
        wait_s = self._breaker.wait_s()
        return self._refused(wait_s) if wait_s > 0.0 else None

    async def classify(
        self,
        inputs: Sequence[Input],
        *,
        top_k: int,
        timeout_s: float,
        hops: int,
        request_id: str,
        own_deadline: bool = False,
    ) -> list[RemoteAnswer]:
        if not inputs:
            return []
        if timeout_s <= 0.0:
            raise RemoteTimeout("no time was left to ask the large model")
        if (refusal := self.refusal()) is not None:
            raise refusal
        now = asyncio.get_running_loop().time
        call = _Call(
            # ASCII escapes carry what UTF-8 cannot: a lone surrogate in a client's text.
            body=json.dumps({"inputs": list(inputs), "parameters": {"top_k": top_k}}).encode("ascii"),
            headers={
                "content-type": "application/json",
                "x-gatekeeper-hops": str(hops),
                # A client's own id can hold anything; quoted, it stays one header of ASCII.
                "x-request-id": quote(request_id, safe=string.punctuation, errors="replace"),
            },
            deadline=now() + timeout_s,
            items=len(inputs),
            top_k=top_k,
            own_deadline=own_deadline,
        )
        async with self._slot(timeout_s * SLOT_SHARE):
            # The second is for cleaning up: a probe reports by itself, the lease is for one that cannot.
            permit = self._breaker.admit(lease_s=call.deadline - now() + 1.0)
            if permit is None:
                raise self._refused(self._breaker.wait_s())
            return await self._accounted(call, permit)

    async def labels(self) -> list[str] | None:
        deadline = asyncio.get_running_loop().time() + LABELS_TIMEOUT_S
        try:
            async with self._slot(LABELS_TIMEOUT_S):
                body = await self._exchange(self._request("GET", self._models_url, {}), self._transport, deadline)
            models = _parsed(_Models, body).data
        except RemoteError:
            return None
        told = [model.labels for model in models if model.labels is not None]
        return told[0] if told and all(labels == told[0] for labels in told) else None

    async def aclose(self) -> None:
        self._closed = True
        await self._transport.aclose()
        await self._retry_transport.aclose()

    def _refused(self, wait_s: float) -> BreakerOpen:
        # While a probe is out the wait is its whole lease; it is nearly always back sooner.
        retry_after_s = max(1, math.ceil(min(wait_s, self._limits.breaker_open_s)))
        return BreakerOpen("the large model has failed too often just now", retry_after_s=retry_after_s)

    @asynccontextmanager
    async def _slot(self, patience_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(patience_s):
                await self._slots.acquire()
        except TimeoutError:
            raise RemoteLimit("every slot to the large model is taken") from None
        try:
            yield
        finally:
            self._slots.release()

    async def _accounted(self, call: _Call, permit: Permit) -> list[RemoteAnswer]:
        """Tell the breaker how the whole call went: once, whatever happened."""
        try:
            answers = await self._with_retry(call)
        except (RemoteLimit, Rejected):
            raise
        except RemoteError as error:
            if call.own_deadline and isinstance(error, RemoteTimeout):
                raise  # else a client with a deadline of 1 ms could open the breaker for all
            if self._breaker.failed(permit):
                logger.warning("the breaker opens: %s (%r)", error.detail, error.__cause__ or error.reason)
            raise
        else:
            if self._breaker.succeeded(permit):
                logger.info("the breaker closes: the large model has answered")
            return answers
        finally:
            self._breaker.withdraw(permit)

    async def _with_retry(self, call: _Call) -> list[RemoteAnswer]:
        now = asyncio.get_running_loop().time
        time_left_s = call.deadline - now()
        try:
            return await self._attempt(call, self._transport)
        except Passing:
            pause_s = random.uniform(*RETRY_PAUSE_S)
            if call.deadline - now() - pause_s < time_left_s * RETRY_SHARE:
                raise
        await asyncio.sleep(pause_s)
        return await self._attempt(call, self._retry_transport)

    async def _attempt(self, call: _Call, transport: httpx.AsyncBaseTransport) -> list[RemoteAnswer]:
        started = time.perf_counter()  # uvloop's own time has a resolution of 1 ms
        time_left_ms = max(1, int((call.deadline - asyncio.get_running_loop().time()) * 1000))
        headers = {**call.headers, "x-request-timeout-ms": str(time_left_ms)}
        request = self._request("POST", self._classify_url, headers, call.body)
        try:
            answers = _answers(await self._exchange(request, transport, call.deadline), call)
        except RemoteError as error:
            self._observe(error.reason, time.perf_counter() - started)
            raise
        self._observe("ok", time.perf_counter() - started)
        return answers

    def _request(self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes = b"") -> httpx.Request:
        return httpx.Request(
            method,
            url,
            content=content,
            headers={
                "accept": "application/json",
                "accept-encoding": "identity",  # what arrives is what is counted, and nothing can blow up
                "user-agent": "gatekeeper",
                **headers,
            },
            # httpx-aiohttp: `connect` bounds the TCP and TLS handshakes, `pool` DNS and the wait for the pool as well.
            extensions={"timeout": dict.fromkeys(("connect", "pool"), self._limits.connect_timeout_s)},
        )

    async def _exchange(self, request: httpx.Request, transport: httpx.AsyncBaseTransport, deadline: float) -> bytes:
        """The whole body of the 200 that answers this request."""
        if self._closed:
            raise RemoteUnavailable("the way to the large model is closed")
        try:
            async with asyncio.timeout_at(deadline):
                return await exchange(request, transport, self._limits.max_response_bytes)
        except TimeoutError:
            raise RemoteTimeout("the large model did not answer in time") from None


def _parsed(model: type[Parsed], body: bytes) -> Parsed:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise RemoteBadAnswer(f"the large model's answer does not fit the contract: {where}: {first['msg']}") from None


def _answers(body: bytes, call: _Call) -> list[RemoteAnswer]:
    outputs = _parsed(_Outputs, body).outputs
    if len(outputs) != call.items:
        raise RemoteBadAnswer(f"the large model answered {len(outputs)} of {call.items} items")
    return [
        RemoteAnswer(
            label=output.label,
            score=output.score,
            top=tuple((scored.label, scored.score) for scored in (output.top or ())[: call.top_k]),
            degraded=output.decision == "degraded",
        )
        for output in outputs
    ]
