"""One request on its way through the cascade, and its answer. A route's protocol says what an item is."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from service.outcomes import Draft, Outcome, Override, Route

Item_co = TypeVar("Item_co", covariant=True)
Question_co = TypeVar("Question_co", covariant=True)
DraftT_co = TypeVar("DraftT_co", bound=Draft, covariant=True)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)

Disconnected = Callable[[], Awaitable[None]]  # returns when the client has left


@dataclass(slots=True, eq=False)  # not frozen: that would cost as much as all that the cascade does
class Call(ABC, Generic[Item_co, Question_co]):
    """One request, checked. `items` are as the small model takes them, `deadline` is on time.monotonic's clock."""

    items: Sequence[Item_co]
    request_id: str
    threshold: float | None = None
    route: Route = "auto"
    deadline: float | None = None
    hops: int = 0

    @property
    def override(self) -> Override:
        """What of the policy it sets for itself."""
        if self.route != "auto":
            return "route"
        return "none" if self.threshold is None else "threshold"

    @abstractmethod
    def question(self, positions: Sequence[int], deadline: float, own_deadline: bool) -> Question_co:
        """What the large model is asked about the items at these positions, by `deadline` in the event loop's time.

        own_deadline: it is the client's, not the policy's.
        """


@dataclass(slots=True)
class Answer(Generic[DraftT_co, AnswerT_co]):
    """The answer to one request, in the order of its items. Without a gate there is no version and no threshold."""

    outcomes: Sequence[Outcome[DraftT_co, AnswerT_co]]
    policy_version: int | None = None
    threshold: float | None = None
    timings_s: dict[str, float] = field(default_factory=dict)


class Answerer(Protocol):
    """What a route serves: a cascade, or a model alone."""

    async def answer(self, call: Any, disconnected: Disconnected) -> Answer[Any, Any]:
        """Raises a GatekeeperError for the whole request."""
        ...
