"""Stand-ins for what is outside: a small model and a large model whose answers follow from the text."""

import asyncio
import math
import zlib
from dataclasses import dataclass, field

from service.errors import BreakerOpen, RemoteError
from service.remote.large_model import Ask, ItemAnswer, RemoteAnswer

LABELS = ("red", "green", "blue", "gold", "grey")


@dataclass(frozen=True)
class FakePrediction:
    """models.inference.classifier.Prediction without torch: label numbers follow from `label`, scores from `score`."""

    label: int
    score: float
    confidence: float

    def top(self, count: int) -> list[tuple[int, float]]:
        return [((self.label + rank) % len(LABELS), self.score / (1 + rank)) for rank in range(count)]


class FakeSmallModel:
    """Says of a text what it was told to; a text whose confidence is None is poisoned."""

    def __init__(self) -> None:
        self.confidences: dict[str, float | None] = {}

    def __call__(self, items: list[str]) -> list[FakePrediction]:
        return [self.predict(text) for text in items]

    def predict(self, text: str) -> FakePrediction:
        confidence = self.confidences[text]
        if confidence is None:
            raise ValueError(f"cannot take {text}")
        number = zlib.crc32(text.encode())
        score = confidence if math.isfinite(confidence) else 0.5
        return FakePrediction(number % len(LABELS), score, confidence)


def large_answer(text: str, top_k: int, degraded: frozenset[str] = frozenset()) -> RemoteAnswer:
    """What the fake large model says of a text; its labels are its own."""
    number = zlib.crc32(text.encode())
    top = tuple((f"large {text} {rank}", (number % 997) / 1000 / (1 + rank)) for rank in range(top_k))
    return RemoteAnswer(*top[0], top, text in degraded)


@dataclass
class Script:
    """How the large model treats one request: after `turns` of the event loop it raises `error` or answers.

    `asked` is set when the call arrives; `forever` holds it until it is cancelled.
    """

    turns: int = 0
    error: RemoteError | None = None
    forever: bool = False
    degraded: frozenset[str] = frozenset()
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    calls: int = 0


class FakeRemote:
    """A LargeModel that follows a script for each request id."""

    def __init__(self, breaker_open: bool = False) -> None:
        self.breaker_open = breaker_open
        self.scripts: dict[str, Script] = {}

    def refusal(self) -> RemoteError | None:
        return BreakerOpen("the breaker is open", retry_after_s=1) if self.breaker_open else None

    async def answer(self, ask: Ask) -> list[ItemAnswer]:
        script = self.scripts[ask.request_id]
        script.calls += 1
        script.asked.set()
        try:
            if script.forever:
                await asyncio.Event().wait()
            for _ in range(script.turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            script.cancelled = True
            raise
        if script.error is not None:
            raise script.error
        return [large_answer(str(text), ask.top_k, script.degraded) for text in ask.inputs]
