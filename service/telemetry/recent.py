"""The last items that an edge has decided: how sure the small model was, and what became of each. Listens."""

import math
from collections import deque
from collections.abc import Sequence

from service.outcomes import DECISIONS, Draft, Outcome, Settled


class RecentItems:
    """The last `size` items without an override."""

    def __init__(self, size: int = 1000) -> None:
        self._confidences: deque[float] = deque(maxlen=size)
        self._decisions: deque[str] = deque(maxlen=size)
        self.ever = self.accepted_ever = 0  # since the start, however many are kept

    def __len__(self) -> int:
        return len(self._decisions)

    def on_settled(self, call: Settled, outcomes: Sequence[Outcome[Draft, object]]) -> None:
        """Keep the items of a request that has left the decision to the policy."""
        if call.override == "none":
            for draft, decision, *_ in outcomes:
                self._confidences.append(draft.confidence)
                self._decisions.append(decision)
                self.accepted_ever += decision == "accepted"
            self.ever += len(outcomes)

    def deferral_ratio(self) -> float:
        """The share that the gate chose to defer; NaN before the first."""
        items = len(self._decisions)
        return (items - self._decisions.count("accepted")) / items if items else math.nan

    def decisions(self) -> dict[str, int]:
        """Items by decision."""
        return {name: self._decisions.count(name) for name in DECISIONS}

    def confidences(self) -> list[float]:
        """Oldest first."""
        return list(self._confidences)
