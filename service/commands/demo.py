"""`gatekeeper demo`: sentences through a running edge, who answered each, and what the threshold does."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

from httpx import AsyncClient
from pydantic import BaseModel, Field

from models.data.records import Columns
from models.errors import InputError
from models.evaluation.edge_client import NotAllowed, api_key, call, edge_client
from models.evaluation.examples import Example, read_examples
from models.printing import printable
from service.variables import value_of

# Each with its label in CLINC150, by which an edge is known that these sentences are for.
EASY = {
    "what's my checking account balance": "balance",
    "set a timer for twelve minutes": "timer",
    "how do i say good morning in japanese": "translate",
    "please turn the volume down a little": "change_volume",
    "book me a flight from oslo to lisbon on friday": "book_flight",
    "my card was declined at the grocery store": "card_declined",
    "remind me to call the plumber at noon": "reminder_update",
    "what is the weather going to be like tomorrow": "weather",
    "tell me a joke about elephants": "tell_joke",
    "how many calories are in a banana": "calories",
    "i need a new insurance card": "insurance",
    "flip a coin for me": "flip_coin",
    "what's the exchange rate between pounds and euros": "exchange_rate",
    "add oat milk to my shopping list": "shopping_list_update",
    "how much vacation do i have left": "pto_balance",
}
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
IMAGES = "image-classification"
THRESHOLDS = (0.5, 0.9, 0.99)
MOST_EXAMPLES = 36  # of somebody's own
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
    labels: list[str] = []


class _Models(BaseModel):
    data: Annotated[list[_Served], Field(min_length=1)]


class _Answer(BaseModel):
    model: str
    threshold: float
    outputs: list[_Output]


def show(
    url: str, data: str | None = None, *, api_key_file: Path | None = None, text_column: str, label_column: str
) -> int:
    """Print the table; the policy of the edge stays as it is. Raises InputError when nothing answers there, or the edge
    serves what these sentences are not for."""
    key = api_key(api_key_file)
    own = None
    if data is not None:
        folder = value_of("GATEKEEPER_DATA_DIR")
        own = read_examples(data, Path(folder) if folder else None, Columns(text_column, label_column), MOST_EXAMPLES)
    return asyncio.run(_show(url, key, own))


async def _show(url: str, key: str | None, own: tuple[str, list[Example]] | None) -> int:
    async with edge_client(url, "--url", key) as client:
        served = (await call(client, "GET", "/v1/models", None, _Models, NOT_THERE)).data[0]
        judged = False
        if own is None:
            _check_ours(served, str(client.base_url))
            examples = [Example(text, text, "") for text in SENTENCES]
        else:
            examples = own[1]
            judged = _check_own(served, str(client.base_url), *own)
        answer = await _classify(client, examples, None)
        print(f"{printable(answer.model)} at {url}, threshold {answer.threshold:g}\n")
        head = "image" if served.task == IMAGES else "sentence"
        right = f"{'right label':28}  " if own else ""
        print(f"{head:60}  {right}{'answer':28}  {'confidence':10}  answered by")
        for example, output in zip(examples, answer.outputs, strict=True):
            right = f"{printable(example.label):28}  " if own else ""
            print(
                f"{printable(example.shown):60}  {right}{printable(output.label):28}  {output.confidence:<10.3f}  "
                f"{printable(output.answered_by)}{printable(_remark(output))}"
            )
        print(f"\nthreshold  deferral ratio{'  right' if judged else ''}")
        for threshold in _thresholds(answer):
            try:
                outputs = (await _classify(client, examples, threshold)).outputs
            except NotAllowed as refused:
                print(f"no other threshold: {printable(str(refused))}")
                break
            deferred = sum(output.decision != "accepted" for output in outputs)
            hit = sum(example.label == output.label for example, output in zip(examples, outputs, strict=True))
            hits = f"{hit / len(outputs):.2f}   " if judged else ""
            print(f"{threshold:<9g}  {deferred / len(outputs):.2f}            {hits}{'#' * deferred}")
    return 0


def _thresholds(answer: _Answer) -> tuple[float, ...]:
    """Those that tell something: of a score that is no probability, quantiles of what was just seen."""
    confidences = sorted(output.confidence for output in answer.outputs)
    if confidences[0] >= 0.0 and confidences[-1] <= 1.0:
        return THRESHOLDS
    return tuple(float(f"{confidences[round(share * (len(confidences) - 1))]:.4g}") for share in (0.1, 0.3, 0.6))


def _remark(output: _Output) -> str:
    if output.decision == "degraded":
        return f" (the gate deferred; {output.reason})"
    if output.decision == "deferred" and output.small is not None and output.small.label != output.label:
        return f" (small: {output.small.label})"
    return ""


def _check_ours(served: _Served, url: str) -> None:
    """Raises InputError where the edge takes something else than our sentences."""
    if served.task == IMAGES:
        raise InputError(
            f"{served.id} at {url} takes images, and the demo has sentences alone: give --data FOLDER, a folder of "
            f"images by class, or send one: curl -s {url.rstrip('/')}/v1/classify -F images=@FILE"
        )
    if foreign := set(EASY.values()) - set(served.labels):
        raise InputError(
            f"{served.id} at {url} has other labels than the demo's sentences, which are CLINC150's "
            f"({len(foreign)} of {len(EASY)} are unknown to it, such as {min(foreign)}): "
            "give --data FILE, sentences of your own with their labels"
        )


def _check_own(served: _Served, url: str, task: str, examples: list[Example]) -> bool:
    """Whether it can be right about any; warns where it cannot about some. Raises InputError for another task."""
    if served.task is not None and served.task != task:
        kinds = {"text-classification": "texts", IMAGES: "images"}
        raise InputError(f"{served.id} at {url} takes {kinds[served.task]}, and --data holds {kinds[task]}")
    labels = {example.label for example in examples}
    if foreign := labels - set(served.labels):
        print(
            f"warning: {len(foreign)} of the {len(labels)} labels of --data are unknown to {printable(served.id)}, "
            f"such as {printable(min(foreign), 60)!r}: it cannot be right about those",
            file=sys.stderr,
        )
    return labels != foreign


async def _classify(client: AsyncClient, examples: list[Example], threshold: float | None) -> _Answer:
    parameters = {} if threshold is None else {"threshold": threshold}
    body = {"inputs": [example.sent for example in examples], "parameters": parameters}
    answer = await call(client, "POST", "/v1/classify", body, _Answer, NOT_THERE)
    if len(answer.outputs) != len(examples):
        raise InputError(f"{client.base_url} answered {len(answer.outputs)} outputs to {len(examples)} inputs")
    return answer
