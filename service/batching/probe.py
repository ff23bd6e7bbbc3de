"""The measuring of a start: how many items a batch may have, and how long one item takes at worst."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

INLINE_BELOW_S = 0.002  # a forward pass of 32 items quicker than this is not worth a thread switch
INLINE_LONGEST_S = 0.05  # nothing may keep the event loop for longer


class Probed(Protocol):
    """A model that takes texts, or images where it has `prepare`."""

    @property
    def prepare(self) -> Callable[[Any], Any] | None: ...
    def predict(self, items: list[Any], /) -> object: ...


def batch_items(model: Probed, most: int, max_s: float) -> tuple[int, float]:
    """(items, seconds) of the largest batch that does not take too long.

    A batch is what a request waits for twice, behind one and in one. Where company costs next to nothing, as on a model
    that takes as long for one as for many, it stays large all the same.
    """
    alone_s = forward_s(model, 1)
    items = most
    while True:
        seconds = forward_s(model, items) if items > 1 else alone_s
        if items == 1 or seconds <= max(max_s, 2 * alone_s):
            return items, seconds
        items //= 2


def forward_s(model: Probed, items: int) -> float:
    """Seconds that a batch of short texts or prepared images takes at best: neighbours make some runs slower."""
    item: Any = "what is the balance of my savings account today"
    if model.prepare is not None:
        item = model.prepare(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    return _best_s(model, [item] * items, 8)


def _best_s(model: Probed, batch: list[Any], times: int) -> float:
    seconds: list[float] = []
    while len(seconds) < times:
        began = time.perf_counter()
        model.predict(batch)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > 20 * INLINE_BELOW_S and len(seconds) > 1:
            break  # slow beyond doubt: a start need not wait for the others
    return min(seconds)


def worst_item_s(model: Probed, max_text_chars: int) -> float:
    """Seconds that one item takes at worst: of the texts that are slow to tokenise, the slowest. Images are alike."""
    if model.prepare is not None:
        return forward_s(model, 1)
    slow = ("x" * 99 + " ", "x" * 99 + "_", "\uac01", "\uac01" * 16 + "!", "!", "a", " ")
    return max(_best_s(model, [(text * max_text_chars)[:max_text_chars]], 2) for text in slow)
