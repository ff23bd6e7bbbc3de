"""The model of this process: all drafts of a request, or the error of its first item that has none."""

import math
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from service.batching.batcher import Batcher
from service.cascade.call import Call, Disconnected
from service.cascade.client_gone import unless_gone
from service.errors import GatekeeperError, ModelFailed
from service.outcomes import Draft

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
DraftT = TypeVar("DraftT", bound=Draft)
DraftT_co = TypeVar("DraftT_co", bound=Draft, covariant=True)


class Drafts(NamedTuple, Generic[DraftT_co]):
    """In the order of the items; seconds in the queue and in the model."""

    drafts: Sequence[DraftT_co]
    queue_s: float
    model_s: float


class SmallModel(Protocol[Item_contra, DraftT_co]):
    """Whatever drafts, and is sure or not."""

    async def draft(self, call: Call[Item_contra, Any], disconnected: Disconnected) -> Drafts[DraftT_co]:
        """Raises Overloaded, Expired, ClientGone or ModelFailed for the whole request."""
        ...


class BatchedModel(Generic[Item, DraftT]):
    """A small model behind the queue that makes batches."""

    def __init__(self, batcher: Batcher[Item, DraftT]) -> None:
        self._batcher = batcher

    async def draft(self, call: Call[Item, Any], disconnected: Disconnected) -> Drafts[DraftT]:
        """See SmallModel."""
        submitted = self._batcher.submit(call.items, call.deadline)
        if self._batcher.runner == "inline":  # nobody can leave in the time that it takes
            batched = await submitted
        else:
            batched = await unless_gone(submitted, disconnected)
        return Drafts(_whole(batched.results), batched.queue_s, batched.model_s)


def _whole(results: Sequence[DraftT | GatekeeperError]) -> list[DraftT]:
    drafts: list[DraftT] = []
    for result in results:
        if isinstance(result, GatekeeperError):
            raise result
        if not math.isfinite(result.confidence):
            raise ModelFailed("the model gave no finite confidence on this input")
        drafts.append(result)
    return drafts
