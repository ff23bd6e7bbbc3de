"""The way of a request to the model and back, once for all protocols: authenticate, admit, read, check, answer, render.

The hot path: plain ASGI, because FastAPI's own way to an endpoint and through a response model costs twice what the
small model does.
"""

import logging
import re
import time
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from service.api.body import Headers, headers_of
from service.api.callers import authenticated
from service.api.problems import refusal, unexpected
from service.api.state import runtime_of
from service.cascade.call import Answer, Call
from service.errors import ClientGone, GatekeeperError, InvalidRequest, RequestError, TooManyHops
from service.runtime import Runtime

logger = logging.getLogger(__name__)

MAX_HOPS = 4
MAX_TIMEOUT_MS = 86_400_000

RawHeaders = list[tuple[bytes, bytes]]
CallT = TypeVar("CallT", bound=Call[Any, Any])


@dataclass(slots=True)
class Arrival:
    """A request that may be read. `deadline` is when its client stops waiting, on time.monotonic's clock."""

    runtime: Runtime
    headers: Headers
    receive: Receive
    request_id: str
    deadline: float | None
    hops: int


class RouteProtocol(Protocol[CallT]):
    """What one protocol adds: how its requests are read, and how its answers are written."""

    async def read(self, arrival: Arrival) -> CallT:
        """The call, within the service's limits. Raises RequestError, ClientGone or Overloaded."""
        ...

    def render(self, runtime: Runtime, call: CallT, answer: Answer[Any, Any]) -> bytes:
        """The body of the answer, as JSON."""
        ...


class Pipeline(Generic[CallT]):
    """One route as an ASGI app."""

    def __init__(self, protocol: RouteProtocol[CallT]) -> None:
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body, headers = await self._respond(scope, receive)
        except GatekeeperError as error:
            await refusal(scope, error)(scope, receive, send)
        except Exception:  # the top of a request: whatever it was, its client gets an answer
            logger.exception("request failed", extra={"request_id": scope["gatekeeper.request_id"]})
            await refusal(scope, unexpected())(scope, receive, send)
        else:
            headers += ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[bytes, RawHeaders]:
        """(body, headers) of the answer."""
        runtime = runtime_of(scope)
        caller = authenticated(scope)
        runtime.rate_limits.check(caller)
        headers = headers_of(scope)
        try:
            deadline = _deadline(headers)
            runtime.batcher.admit(1, deadline)
            hops = _hops(headers)
            call = await self._protocol.read(
                Arrival(runtime, headers, receive, scope["gatekeeper.request_id"], deadline, hops)
            )
            caller.check_overrides(call.threshold, call.route)
            _check_threshold(call.threshold, runtime.threshold_range)
        except (RequestError, ClientGone):
            await runtime.rate_limits.charge(caller)
            raise
        await runtime.rate_limits.spend(caller, len(call.items))

        async def disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        answer = await runtime.answerer.answer(call, disconnected)
        return self._protocol.render(runtime, call, answer), _answer_headers(answer)


def _check_threshold(threshold: float | None, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if threshold is not None and not low <= threshold <= high:
        raise InvalidRequest(f"parameters.threshold: must be between {low:g} and {high:g}, this score's range")


def _hops(headers: Headers) -> int:
    value = headers.get(b"x-gatekeeper-hops")
    if value is None:
        return 0
    value = value.strip()  # httptools leaves the white space behind it
    if not re.fullmatch(rb"[0-9]{1,4}", value):
        raise InvalidRequest("x-gatekeeper-hops must be a small whole number")
    if int(value) > MAX_HOPS:
        raise TooManyHops(f"more than {MAX_HOPS} edges in a row: check for a remote URL that leads back here")
    return int(value)


def _deadline(headers: Headers) -> float | None:
    value = headers.get(b"x-request-timeout-ms")
    if value is None:
        return None
    value = value.strip()
    if not re.fullmatch(rb"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"x-request-timeout-ms must be a whole number between 1 and {MAX_TIMEOUT_MS}")
    return time.monotonic() + int(value) / 1000


def _answer_headers(answer: Answer[Any, Any]) -> RawHeaders:
    timing = ", ".join([f"{name};dur={seconds * 1000:.3f}" for name, seconds in answer.timings_s.items()])
    headers = [(b"server-timing", timing.encode())]
    if answer.policy_version is not None:
        headers.append((b"x-gatekeeper-policy-version", b"%d" % answer.policy_version))
    return headers
