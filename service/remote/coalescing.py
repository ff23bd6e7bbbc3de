"""How items go into calls: those of one small-model batch together, too many of them in several, one after another."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from service.errors import ForeignLabel, RemoteBadAnswer, RemoteError
from service.remote.gatekeeper_wire import Input, ItemAnswer, divided
from service.remote.http import ServerFailed, TooMuch
from service.remote.pool import Remote

# A long text would make its neighbours wait for it.
PACKED_TEXT_CHARS = 1_024
PACK_CHARS = 64 * 1_024


class Ask(Protocol):
    """One call with all but its items and its time."""

    async def __call__(self, inputs: Sequence[Input], *, timeout_s: float, own_deadline: bool) -> list[ItemAnswer]: ...


class _Kind(NamedTuple):
    """What calls must have in common to travel together."""

    top_k: int
    hops: int
    timeout_s: float


class _Waiter(NamedTuple):
    inputs: Sequence[Input]
    # None: ask by yourself.
    answers: "asyncio.Future[list[ItemAnswer] | None]"


@dataclass(slots=True)
class _Pack:
    waiters: list[_Waiter] = field(default_factory=list)
    items: int = 0
    chars: int = 0
    sending: "asyncio.Task[None] | None" = None


class PackingRemote:
    """A remote whose calls of one turn of the event loop travel together, up to `max_items` items.

    What is too much for one body of `max_bytes`, or for the server (413), goes in several calls, one after the other.

    No call suffers for its neighbours: one with a deadline of its own or a long text travels alone; when a pack fails
    by what may be one item's fault, each call is repeated alone; when a client leaves, the pack goes on without it.
    """

    def __init__(self, remote: Remote, max_items: int, max_bytes: int) -> None:
        self._remote = remote
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._open: dict[_Kind, _Pack] = {}

    def refusal(self) -> RemoteError | None:
        """See Remote."""
        return self._remote.refusal()

    async def classify(
        self,
        inputs: Sequence[Input],
        *,
        top_k: int,
        timeout_s: float,
        hops: int,
        request_id: str,
        own_deadline: bool = False,
    ) -> list[ItemAnswer]:
        """See Remote."""
        loop = asyncio.get_running_loop()
        if not own_deadline and len(inputs) < self._max_items and all(map(_is_short, inputs)):
            began = loop.time()
            waiter = _Waiter(inputs, loop.create_future())
            answers = await self._together(_Kind(top_k, hops, timeout_s), waiter)
            if answers is not None:
                return answers
            timeout_s -= loop.time() - began
        ask = partial(self._remote.classify, top_k=top_k, hops=hops, request_id=request_id)
        return await self._divided(inputs, ask, loop.time() + timeout_s, own_deadline)

    async def _divided(
        self, inputs: Sequence[Input], ask: Ask, deadline: float, own_deadline: bool
    ) -> list[ItemAnswer]:
        loop = asyncio.get_running_loop()
        answers: list[ItemAnswer] = []
        for part in divided(inputs, self._max_bytes):
            try:
                answers += await ask(part, timeout_s=deadline - loop.time(), own_deadline=own_deadline)
            except TooMuch:
                if len(part) == 1:
                    raise
                middle = len(part) // 2
                for half in (part[:middle], part[middle:]):
                    answers += await self._divided(half, ask, deadline, True)
            # What is left of the time is our doing: running out of it counts as a client's own deadline does.
            own_deadline = True
        return answers

    async def _together(self, kind: _Kind, waiter: _Waiter) -> list[ItemAnswer] | None:
        pack = self._open.get(kind)
        chars = sum(map(len, waiter.inputs))
        if pack is None or pack.items + len(waiter.inputs) > self._max_items or pack.chars + chars > PACK_CHARS:
            pack = self._open[kind] = _Pack()
            # The others of this turn are already scheduled, and come first.
            asyncio.get_running_loop().call_soon(self._close, kind, pack)
        pack.waiters.append(waiter)
        pack.items += len(waiter.inputs)
        pack.chars += chars
        try:
            return await waiter.answers
        except asyncio.CancelledError:
            if pack.sending is not None and not _waiting(pack.waiters):
                pack.sending.cancel()  # everybody has left
            raise

    def _close(self, kind: _Kind, pack: _Pack) -> None:
        if self._open.get(kind) is pack:
            del self._open[kind]
        waiters = _waiting(pack.waiters)
        if len(waiters) == 1:
            waiters[0].answers.set_result(None)
        elif waiters:
            pack.sending = asyncio.create_task(self._send(kind, waiters))

    async def _send(self, kind: _Kind, waiters: list[_Waiter]) -> None:
        try:
            answers = await self._remote.classify(
                [item for waiter in waiters for item in waiter.inputs],
                top_k=kind.top_k,
                timeout_s=kind.timeout_s,
                hops=kind.hops,
                request_id=uuid.uuid4().hex,
            )
        except RemoteError as error:
            _fail(_waiting(waiters), error)
        except asyncio.CancelledError:
            for waiter in _waiting(waiters):
                waiter.answers.cancel()
            raise
        else:
            start = 0
            for waiter in waiters:
                end = start + len(waiter.inputs)
                if not waiter.answers.done():
                    waiter.answers.set_result(answers[start:end])
                start = end


def _fail(waiters: list[_Waiter], error: RemoteError) -> None:
    """Each asks by itself where another's item may be to blame; not for a label, which would be the same again."""
    by_themselves = isinstance(error, RemoteBadAnswer | ServerFailed) and not isinstance(error, ForeignLabel)
    for waiter in waiters:
        if by_themselves:
            waiter.answers.set_result(None)
        else:  # an error of its own, with its own traceback
            waiter.answers.set_exception(type(error)(error.detail, retry_after_s=error.retry_after_s))


def _is_short(item: Input) -> bool:
    return isinstance(item, str) and len(item) <= PACKED_TEXT_CHARS


def _waiting(waiters: list[_Waiter]) -> list[_Waiter]:
    return [waiter for waiter in waiters if not waiter.answers.done()]
