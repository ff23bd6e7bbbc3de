"""A large model as the cascade sees it: what it is asked, what it answers. It says nothing of a wire."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.errors import RemoteError

# One item as it travels: a text, or {"image": base64}.
Input = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """One call. `deadline` bounds the whole of it, waiting and retry included, and is in the event loop's time.

    own_deadline: the deadline is the client's choice, so that running out of it says something of the large model only
    if it was time enough. `hops` and `request_id` are sent as given, but for characters that no header can hold.
    """

    inputs: Sequence[Input]
    top_k: int
    deadline: float
    hops: int
    request_id: str
    own_deadline: bool = False

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """The large model's answer to one item. `score` is in [0, 1]; None where it says none, as an LLM may.

    degraded: it is an edge, and its own large model was out of reach, or that of an edge behind it.
    """

    label: str
    score: float | None
    top: tuple[tuple[str, float], ...]
    degraded: bool


# What is said of one item: an answer, or what is wrong with the one that came.
ItemAnswer = RemoteAnswer | RemoteError


class LargeModel(Protocol):
    """One large model, whatever it speaks on the wire and wherever it runs."""

    def refusal(self) -> RemoteError | None:
        """The error of a call that would be refused right now, without any waiting; else None."""
        ...

    async def answer(self, ask: Ask) -> list[ItemAnswer]:
        """One answer per input, in order. Raises nothing but RemoteError's subclasses (and CancelledError)."""
        ...
