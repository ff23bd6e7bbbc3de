"""How items go into calls: those of one small-model batch together, too many of them in several, one after another."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from service.errors import ForeignLabel, RemoteBadAnswer, RemoteError
from service.remote.http import ServerFailed, TooMuch
from service.remote.large_model import Ask, Input, ItemAnswer, LargeModel

# A long text would make its neighbours wait for it.
PACKED_TEXT_CHARS = 1_024
PACK_CHARS = 64 * 1_024

# The inputs in their order, in parts that each fit into one body of the wire.
Divide = Callable[[Sequence[Input]], Sequence[Sequence[Input]]]


class _Kind(NamedTuple):
    """What calls must have in common to travel together."""

    top_k: int
    hops: int
    tenths: int  # of a second, until the deadline


class _Waiter(NamedTuple):
    ask: Ask
    # None: ask by yourself.
    answers: "asyncio.Future[list[ItemAnswer] | None]"


@dataclass(slots=True)
class _Pack:
    waiters: list[_Waiter] = field(default_factory=list)
    items: int = 0
    chars: int = 0
    sending: "asyncio.Task[None] | None" = None


class Coalescer:
    """A large model whose calls of one turn of the event loop travel together, up to `max_items` items.

    What is too much for one body, as `divide` has it, or for the server (413), goes in several calls, one after the
    other.

    No call suffers for its neighbours: one with a deadline of its own or a long text travels alone; when a pack fails
    by what may be one item's fault, each call is repeated alone; when a client leaves, the pack goes on without it.
    """

    def __init__(self, large_model: LargeModel, max_items: int, divide: Divide) -> None:
        self._large_model = large_model
        self._max_items = max_items
        self._divide = divide
        self._open: dict[_Kind, _Pack] = {}

    def refusal(self) -> RemoteError | None:
        """See LargeModel."""
        return self._large_model.refusal()

    async def answer(self, ask: Ask) -> list[ItemAnswer]:
        """See LargeModel."""
        if not ask.own_deadline and len(ask.inputs) < self._max_items and all(map(_is_short, ask.inputs)):
            answers = await self._together(ask)
            if answers is not None:
                return answers
        return await self._in_turn(ask, self._divide(ask.inputs))

    async def _in_turn(self, ask: Ask, parts: Sequence[Sequence[Input]]) -> list[ItemAnswer]:
        answers: list[ItemAnswer] = []
        for part in parts:
            try:
                answers += await self._large_model.answer(ask if part is ask.inputs else replace(ask, inputs=part))
            except TooMuch:
                if len(part) == 1:
                    raise
                middle = len(part) // 2
                answers += await self._in_turn(replace(ask, own_deadline=True), (part[:middle], part[middle:]))
            if len(parts) > 1:
                # What is left of the time is our doing: running out of it counts as a client's own deadline does.
                ask = replace(ask, own_deadline=True)
        return answers

    async def _together(self, ask: Ask) -> list[ItemAnswer] | None:
        loop = asyncio.get_running_loop()
        # Calls under one policy have the same time, but for the moments that have passed.
        kind = _Kind(ask.top_k, ask.hops, tenths=int((ask.deadline - loop.time()) * 10.0 + 0.5))
        pack = self._open.get(kind)
        chars = sum(map(len, ask.inputs))
        if pack is None or pack.items + len(ask.inputs) > self._max_items or pack.chars + chars > PACK_CHARS:
            pack = self._open[kind] = _Pack()
            # The others of this turn are already scheduled, and come first.
            loop.call_soon(self._close, kind, pack)
        waiter = _Waiter(ask, loop.create_future())
        pack.waiters.append(waiter)
        pack.items += len(ask.inputs)
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
            pack.sending = asyncio.create_task(self._send(waiters))

    async def _send(self, waiters: list[_Waiter]) -> None:
        inputs = [item for waiter in waiters for item in waiter.ask.inputs]
        try:
            answers = await self._large_model.answer(
                replace(waiters[0].ask, inputs=inputs, request_id=uuid.uuid4().hex)
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
                end = start + len(waiter.ask.inputs)
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
