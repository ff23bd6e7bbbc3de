"""What a wire is: the protocol that a server of a large model speaks, apart from how servers are chosen and reached."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from service.remote.http import HttpAnswer, HttpRequest
from service.remote.large_model import Ask, ItemAnswer

# One exchange with the server that is no call: on a connection of its own, in a few seconds. Raises RemoteError.
Exchange = Callable[[HttpRequest], Awaitable[HttpAnswer]]


@dataclass(slots=True)
class ServerFacts:
    """What a wire has found out about its server; None: not yet, or this wire does not ask."""

    labels_match: bool | None = None
    labels_told: int | None = None
    labels_shared: int | None = None
    is_self: bool = False  # it is this edge: no large model is there, and it is never called


class Wire(Protocol):
    """The protocol of one server, and what has been found out about that server."""

    @property
    def facts(self) -> ServerFacts: ...

    def request(self, ask: Ask) -> HttpRequest:
        """The request of one attempt: a second one can be another, when the first has taught something."""
        ...

    def parse(self, answer: HttpAnswer, ask: Ask) -> list[ItemAnswer]:
        """One answer per item, in order, of an answer of any status. Raises RemoteError.

        An item whose answer is no good has a RemoteBadAnswer in its place; if that is all of them, it is raised. A
        RemoteError that says it is `provoked` does not count for the breaker; a TransientFailure is tried again.
        """
        ...

    async def get_to_know(self, exchange: Exchange) -> None:
        """What is asked of the server beside the calls, for as long as that takes."""
        ...

    def was_asked(self, handshake: str) -> None:
        """This process has got a request with this handshake: if the wire has sent it, the server is this process."""
        ...
