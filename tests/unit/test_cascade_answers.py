"""The cascade does not know what an answer is: the same story with words for drafts and sentences for answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from service.cascade.call import Call, Disconnected
from service.cascade.cascade import Cascade
from service.cascade.drafts import Drafts
from service.errors import RemoteBadAnswer, RemoteError
from service.outcomes import Draft, Outcome, Settled
from service.policy.document import Policy
from service.policy.live import LivePolicy
from service.policy.operating_point import OperatingPoint


class Words(NamedTuple):
    """A draft: what was written, and how sure the small model is of it."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Sentence:
    text: str
    degraded: bool = False


class Prompt(Call[str, list[str]]):
    """Its question to the large model is a list of prompts."""

    def question(self, positions: Sequence[int], deadline: float, own_deadline: bool) -> list[str]:
        return [self.items[position] for position in positions]


class Writer:
    """A small model without a queue: the shorter the prompt, the surer it is."""

    async def draft(self, call: Call[str, Any], disconnected: Disconnected) -> Drafts[Words]:
        return Drafts([Words(f"draft of {item}", 1.0 / len(item)) for item in call.items], 0.0, 0.0)


class Author:
    """A large model that cannot answer `???`."""

    def refusal(self) -> RemoteError | None:
        return None

    async def answer(self, question: list[str], /) -> list[Sentence | RemoteError]:
        return [RemoteBadAnswer("no sentence") if "???" in prompt else Sentence(prompt.upper()) for prompt in question]


async def test_drafts_and_answers_may_be_anything() -> None:
    policy = Policy(version=3, gate_digest="d", threshold=0.5, updated_at=datetime.now(UTC), updated_by="test")
    in_force = cast("LivePolicy", SimpleNamespace(point=OperatingPoint.of(policy)))
    heard: list[tuple[str, str | None]] = []

    def listen(_: Settled, outcomes: Sequence[Outcome[Draft, object]]) -> None:
        heard.extend((outcome.decision, outcome.reason) for outcome in outcomes)

    cascade: Cascade[str, list[str], Words, Sentence] = Cascade(Writer(), in_force, Author(), [listen])
    answer = await cascade.answer(Prompt(["hi", "longer", "what???"], "id"), _staying)
    assert answer.outcomes == [
        Outcome(Words("draft of hi", 1 / 2), "accepted", None, "small"),
        Outcome(Words("draft of longer", 1 / 6), "deferred", "below_threshold", "large", Sentence("LONGER")),
        Outcome(Words("draft of what???", 1 / 7), "degraded", "remote_bad_answer", "small"),
    ]
    assert heard == [("accepted", None), ("deferred", "below_threshold"), ("degraded", "remote_bad_answer")]
    assert (answer.policy_version, answer.threshold) == (3, 0.5)
    assert set(answer.timings_s) == {"queue", "small", "remote"}


async def _staying() -> None:
    await asyncio.Event().wait()
