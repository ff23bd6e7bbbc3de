"""How fast the queue moves: a moving average, from which follows how long a new item would wait."""

WEIGHT = 0.2  # of the newest batch: after ten batches a change is seen in full
# What one batch is believed at most, as a multiple of what was known: one that a stopped process or a paused machine
# held up for seconds would else have every request refused for as long. What stays slow is believed batch by batch.
LEAP = 8.0


class Pace:
    """Seconds an item takes while more waits than a batch holds, from the end of one batch to the end of the next.

    So it holds what the event loop does between two batches, which for a quick inline model is most of it.
    """

    def __init__(self, max_batch_items: int) -> None:
        self.item_s = 0.0
        self._batch_items = max_batch_items
        self._samples = 0
        self._backlog_since: float | None = None

    def note(self, items: int, began: float, ended: float, *, more_waited: bool, more_wait: bool) -> None:
        """A batch, and whether others waited when it was taken and when it ended."""
        since, self._backlog_since = self._backlog_since, ended if more_wait else None
        if since is not None and more_waited:
            item_s = (ended - since) / items
            if self.item_s:
                # The first is compared with a batch that may have had a single item.
                item_s = min(item_s, self.item_s * LEAP * (1 if self._samples else self._batch_items))
            self._samples += 1
            self._batch_items = items
            self.item_s += max(WEIGHT, 1 / self._samples) * (item_s - self.item_s)
        elif not self.item_s:
            # All that is known of a model that was never pressed: a full batch takes at least as long as this one.
            self.item_s = (ended - began) / self._batch_items
        else:
            # A batch that is not full says how fast the model can be, never how slow: much of it is fixed cost.
            self.item_s += WEIGHT * min(0.0, (ended - began) / items - self.item_s)

    def wait_s(self, ahead: int, running: int, busy_s: float) -> float:
        """Expected seconds until an item starts that has so many waiting before it, and so many in the model."""
        batches = ahead // self._batch_items
        return max(0.0, running * self.item_s - busy_s) + batches * self._batch_items * self.item_s
