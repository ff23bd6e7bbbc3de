"""The remote under test before scripted servers, and the scripts that several test files use."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from support.faulty_server import Script, Turn
from support.waiting import Clock

from service.remote.gatekeeper_wire import GatekeeperWire
from service.remote.large_model import Ask, Input, ItemAnswer, LargeModel
from service.remote.pool import EndpointLimits, Pool
from service.remote.wire import Wire

PATIENT_S = 10.0  # for calls that are answered or fail by themselves
IMPATIENT_S = 0.2  # for calls that can only end by their deadline
MAX_BYTES = 64 * 1024


class Outcomes(list[str]):
    """What the remote observed, in order."""

    def __call__(self, outcome: str, seconds: float) -> None:
        assert seconds >= 0.0
        self.append(outcome)


@asynccontextmanager
async def remote_to(
    url: str,
    outcomes: Outcomes | None = None,
    *,
    clock: Clock | None = None,
    slots: int = 8,
    connect_timeout_s: float = 5.0,
    failures: int = 1_000,
    key: str | None = None,
    tls: ssl.SSLContext | None = None,
    labels: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
    wire: Callable[[str], Wire] | None = None,
) -> AsyncIterator[Pool]:
    limits = EndpointLimits(
        max_concurrency=slots,
        connect_timeout_s=connect_timeout_s,
        max_response_bytes=max_bytes,
        breaker_failures=failures,
        breaker_open_s=2.0,
    )
    observe = Outcomes() if outcomes is None else outcomes
    new_wire = wire or partial(GatekeeperWire, labels=labels or (), refuse_foreign=labels is not None)
    remote = Pool(url.split(","), new_wire, limits, observe, key=key, tls=tls, clock=clock or Clock())
    try:
        yield remote
    finally:
        await remote.aclose()


@contextmanager
def refusing_url() -> Iterator[str]:
    """The URL of a port that refuses connections: bound, never listening."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@asynccontextmanager
async def accepting(accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """The URL of a server that does not even read requests."""
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def asking(
    *inputs: Input,
    timeout_s: float = PATIENT_S,
    top_k: int = 1,
    hops: int = 1,
    request_id: str = "id-1",
    own_deadline: bool = False,
) -> Ask:
    """A call that has so many seconds from now on."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    return Ask(inputs, top_k, deadline, hops, request_id, own_deadline)


async def ask(
    remote: LargeModel, *texts: str, timeout_s: float = PATIENT_S, top_k: int = 1, own_deadline: bool = False
) -> list[ItemAnswer]:
    texts = texts or ("hello",)
    return await remote.answer(asking(*texts, timeout_s=timeout_s, top_k=top_k, own_deadline=own_deadline))


async def labels_of(remote: Pool, number: int = 0) -> list[str]:
    """What an endpoint says of itself."""
    endpoint = remote.endpoints[number]
    assert isinstance(endpoint.wire, GatekeeperWire)
    return await endpoint.wire.ask_labels(endpoint.exchange_apart)


async def good(turn: Turn) -> None:
    await turn.classify()


async def never(turn: Turn) -> None:
    await asyncio.Event().wait()


def answering(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Script:
    async def script(turn: Turn) -> None:
        await turn.answer(status, body, headers)

    return script


def sending(data: bytes) -> Script:
    """Send these bytes, whatever they are, and close."""

    async def script(turn: Turn) -> None:
        await turn.send(data)
        turn.drop()

    return script


def first_then_good(first: Script) -> Script:
    async def script(turn: Turn) -> None:
        await (first(turn) if turn.number == 1 else turn.classify())

    return script


async def dropping(turn: Turn) -> None:
    turn.drop()


async def resetting(turn: Turn) -> None:
    turn.reset()
