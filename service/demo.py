"""`gatekeeper demo`: sentences through a running edge, who answered each, and what the threshold does."""

import asyncio
from typing import Annotated

from httpx import AsyncClient
from pydantic import BaseModel, Field

from models.edge_client import call, edge_client
from models.errors import InputError
from models.printing import printable

EASY = (
    "what's my checking account balance",
    "set a timer for twelve minutes",
    "how do i say good morning in japanese",
    "please turn the volume down a little",
    "book me a flight from oslo to lisbon on friday",
    "my card was declined at the grocery store",
    "remind me to call the plumber at noon",
    "what is the weather going to be like tomorrow",
    "tell me a joke about elephants",
    "how many calories are in a banana",
    "i need a new insurance card",
    "flip a coin for me",
    "what's the exchange rate between pounds and euros",
    "add oat milk to my shopping list",
    "how much vacation do i have left",
)
HARDER = (
    "the plastic thing i pay with has gone walkabout",
    "could you make the lights a bit less awful in here",
    "am i going to need a brolly on saturday",
    "i'd rather you spoke like someone from glasgow",
    "my tyres look a bit flat, how hard should they be",
    "put me down as away from the third to the ninth",
    "what do they want me to bring through customs for spain",
    "which of my bills is about to bite me",
    "who made you, and are they proud of it",
    "swap the oil for something else in this cake",
    "is there anything left on the plastic before they cut me off",
    "get me someone who speaks human",
)
ODD = (
    "the moon tastes of cheese and regret",
    "why do cats knock glasses off tables",
    "wer hat den kuchen gegessen",
    "asdf qwer zxcv",
    "compose a haiku on database migrations",
    "do fish get thirsty 🐟",
    "my left shoe has opinions about politics",
    "explain the offside rule to a goldfish",
    "∑ over all my regrets",
)
SENTENCES = (*EASY, *HARDER, *ODD)
THRESHOLDS = (0.5, 0.9, 0.99)
NOT_THERE = "; start it with `make serve`"


class _Small(BaseModel):
    label: str


class _Output(BaseModel):
    label: str
    confidence: float
    decision: str
    answered_by: str
    reason: str | None = None
    small: _Small | None = None


class _Served(BaseModel):
    id: str
    task: str | None = None


class _Models(BaseModel):
    data: Annotated[list[_Served], Field(min_length=1)]


class _Answer(BaseModel):
    model: str
    threshold: float
    outputs: Annotated[list[_Output], Field(min_length=len(SENTENCES), max_length=len(SENTENCES))]


def show(url: str) -> int:
    """Print the table; the policy of the edge stays as it is. Raises InputError when nothing answers there."""
    return asyncio.run(_show(url))


async def _show(url: str) -> int:
    async with edge_client(url, "--url") as client:
        await _check_task(client)
        answer = await _classify(client, None)
        print(f"{printable(answer.model)} at {url}, threshold {answer.threshold:g}\n")
        print(f"{'sentence':60}  {'answer':28}  {'confidence':10}  answered by")
        for sentence, output in zip(SENTENCES, answer.outputs, strict=True):
            print(
                f"{sentence:60}  {printable(output.label):28}  {output.confidence:<10.3f}  "
                f"{printable(output.answered_by)}{printable(_remark(output))}"
            )
        print("\nthreshold  deferral ratio")
        for threshold in THRESHOLDS:
            outputs = (await _classify(client, threshold)).outputs
            deferred = sum(output.decision != "accepted" for output in outputs)
            print(f"{threshold:<9g}  {deferred / len(outputs):.2f}  {'#' * deferred}")
    return 0


def _remark(output: _Output) -> str:
    if output.decision == "degraded":
        return f" (the gate deferred; {output.reason})"
    if output.decision == "deferred" and output.small is not None and output.small.label != output.label:
        return f" (small: {output.small.label})"
    return ""


async def _check_task(client: AsyncClient) -> None:
    """Raises InputError where the edge takes something else than sentences."""
    served = (await call(client, "GET", "/v1/models", None, _Models, NOT_THERE)).data[0]
    if served.task == "image-classification":
        raise InputError(
            f"{served.id} at {client.base_url} takes images, and the demo has sentences alone; "
            f"send it images of your own: curl -s {client.base_url}/v1/classify -F images=@FILE"
        )


async def _classify(client: AsyncClient, threshold: float | None) -> _Answer:
    parameters = {} if threshold is None else {"threshold": threshold}
    body = {"inputs": SENTENCES, "parameters": parameters}
    return await call(client, "POST", "/v1/classify", body, _Answer, NOT_THERE)
