"""A large model that is asked about one item a call: the items of a request at the same time, within a bound."""

import asyncio
from dataclasses import replace

from service.errors import RemoteError
from service.remote.large_model import Ask, Input, ItemAnswer, LargeModel


class FanOut:
    """At most `most_at_once` calls of one request are out. An item that fails has its error in its place."""

    def __init__(self, large_model: LargeModel, most_at_once: int) -> None:
        self._large_model = large_model
        self._most_at_once = most_at_once

    def refusal(self) -> RemoteError | None:
        """See LargeModel."""
        return self._large_model.refusal()

    async def answer(self, ask: Ask) -> list[ItemAnswer]:
        """See LargeModel."""
        if len(ask.inputs) == 1:
            return await self._large_model.answer(ask)
        turns = asyncio.Semaphore(self._most_at_once)

        async def one(item: Input) -> ItemAnswer:
            # What is left of the time is then our doing: running out of it says nothing of the large model.
            own_deadline = ask.own_deadline or turns.locked()
            async with turns:
                try:
                    (answer,) = await self._large_model.answer(replace(ask, inputs=(item,), own_deadline=own_deadline))
                except RemoteError as error:
                    return error
                return answer

        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(one(item)) for item in ask.inputs]
        return [call.result() for call in calls]
