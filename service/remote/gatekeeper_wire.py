"""The wire to a large model that speaks the classify contract, the same that the edge itself serves.

What travels, what the answers must look like, whose labels they have, and whether the server is this edge itself.
"""

import json
import logging
import re
import secrets
import string
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from service.bounded_json import DoesNotFit, Model, TooManyValues, first_errors, parse
from service.errors import ForeignLabel, RemoteBadAnswer
from service.remote.http import HttpAnswer, HttpRequest, check_status
from service.remote.labels import LabelCheck
from service.remote.large_model import Ask, Input, ItemAnswer, RemoteAnswer
from service.remote.wire import Exchange, ServerFacts

logger = logging.getLogger(__name__)

ENVELOPE_BYTES = 64  # of a body, around its items
MAX_LABEL_CHARS = 10_000
MAX_LABELS = 100_000
MAX_OUTPUTS = 10_000
EXCERPT_BYTES = 200  # of a bad answer, kept for the log
# Values of an answer: its own fields, those of an item, and of each of its most probable labels. Ours have a dozen an
# item; another server may say more, such as the probabilities of all labels.
ANSWER_VALUES, ITEM_VALUES, TOP_VALUES = 256, 4_096, 16

# An edge that is its own large model finds in this header of GET /v1/models what it has sent itself.
HANDSHAKE = "x-gatekeeper-handshake"


class _Document(BaseModel):
    # Fields that a newer remote adds are not our business; those we read must be exactly right.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]


class _Scored(_Document):
    label: Label
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _Output(_Document):
    label: Label
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] | None
    decision: Literal["accepted", "deferred", "degraded"]
    reason: str | None = None
    top: list[Any] | None = None  # as many of them are checked as were asked for


class _Outputs(_Document):
    outputs: Annotated[list[_Output], Field(fail_fast=True, max_length=MAX_OUTPUTS)]


class _Model(_Document):
    labels: Annotated[list[Label], Field(fail_fast=True)] | None = None


class _Models(_Document):
    data: Annotated[list[_Model], Field(fail_fast=True)]


_is_plain = re.compile(r"[!-~]*").fullmatch


class GatekeeperWire:
    """To the server at `url`. `labels` are those of this edge's bundle.

    refuse_foreign: an answer whose label, or one of whose `top`, is none of them is refused.
    """

    def __init__(self, url: str, labels: Sequence[str], *, refuse_foreign: bool) -> None:
        self.facts = ServerFacts()
        self._url = url
        self._known = frozenset(labels) if refuse_foreign else None
        self._labels = LabelCheck(url, labels, self.facts, refuse=refuse_foreign)
        self._handshake = secrets.token_hex(8)

    def request(self, ask: Ask) -> HttpRequest:
        """See Wire."""
        headers = {
            "content-type": "application/json",
            "x-gatekeeper-hops": str(ask.hops),
            "x-request-id": header_value(ask.request_id),
            "x-request-timeout-ms": str(max(1, int(ask.left_s() * 1000))),
        }
        return HttpRequest("/v1/classify", headers, question(ask.inputs, ask.top_k), repeats=("x-request-id",))

    def parse(self, answer: HttpAnswer, ask: Ask) -> list[ItemAnswer]:
        """See Wire. An item with a foreign label has a ForeignLabel in its place."""
        check_status(answer)
        found = answers(answer.body, len(ask.inputs), ask.top_k)
        if self._known is None:
            return found
        # Where some labels are shared, a client can choose texts that get one of the others.
        return _refused(found, self._known, provoked=self.facts.labels_shared != 0)

    async def get_to_know(self, exchange: Exchange) -> None:
        """Compare the labels. That the server is this process is found out by the first question."""
        await self._labels.run(partial(self.ask_labels, exchange))

    async def ask_labels(self, exchange: Exchange) -> list[str]:
        """The labels that the server says its model has. Raises RemoteError; RemoteBadAnswer if it tells none."""
        answer = await exchange(HttpRequest("/v1/models", {HANDSHAKE: self._handshake}, method="GET"))
        check_status(answer)
        return labels(answer.body)

    def was_asked(self, handshake: str) -> None:
        """See Wire."""
        if handshake == self._handshake and not self.facts.is_self:
            self.facts.is_self = True
            logger.error(
                "the remote URL %s leads back to this edge: set GATEKEEPER_REMOTE_URL to a large model", self._url
            )


def question(inputs: Sequence[Input], top_k: int) -> bytes:
    """The body of POST /v1/classify, in UTF-8: no longer than a client's own body with the same items."""
    return b'{"inputs":%b,"parameters":{"top_k":%d}}' % (_encoded(inputs), top_k)


def divided(inputs: Sequence[Input], max_bytes: int) -> list[Sequence[Input]]:
    """The inputs in their order, in parts whose bodies have max_bytes at most; a longer item is a part by itself."""
    room = max_bytes - ENVELOPE_BYTES
    if sum(map(_most_bytes, inputs)) <= room:  # nearly always, and cheap to tell
        return [inputs]
    parts: list[Sequence[Input]] = []
    begin = size = 0
    for position, item in enumerate(inputs):
        item_size = len(_encoded(item)) + 1
        if size + item_size > room and position > begin:
            parts.append(inputs[begin:position])
            begin, size = position, 0
        size += item_size
    return [*parts, inputs[begin:]]


def _most_bytes(item: Input) -> int:
    """Of one item in a body, estimated from above: a control character takes six, a letter four at most."""
    return 6 * len(item) + 3 if isinstance(item, str) else sum(map(len, item.values())) + 64


def _encoded(value: object) -> bytes:
    try:
        return to_json(value)
    except PydanticSerializationError:  # half of a surrogate pair, which UTF-8 cannot carry
        return json.dumps(value).encode("ascii")


def header_value(text: str) -> str:
    """A client's own id can hold anything; quoted, it stays one header of ASCII."""
    return text if _is_plain(text) else quote(text, safe=string.punctuation, errors="replace")


def answers(body: bytes, items: int, top_k: int) -> list[ItemAnswer]:
    """One answer per item, in order. Raises RemoteBadAnswer."""
    outputs = _parsed(_Outputs, body, ANSWER_VALUES + items * (ITEM_VALUES + TOP_VALUES * top_k)).outputs
    if len(outputs) != items:
        raise RemoteBadAnswer(f"the large model answered {len(outputs)} of {items} items", fault="count")
    return [
        RemoteAnswer(
            label=output.label,
            score=output.score,
            top=_top(output.top[:top_k]) if output.top else (),
            degraded=output.decision == "degraded" or output.reason == "remote_degraded",
        )
        for output in outputs
    ]


def _refused(found: list[ItemAnswer], known: AbstractSet[str], *, provoked: bool) -> list[ItemAnswer]:
    """ForeignLabel in the place of each item with a label that is not known; raised if that is all of them."""
    refused = 0
    for position, answer in enumerate(found):
        assert isinstance(answer, RemoteAnswer)
        label = answer.label
        if label in known and answer.top:
            label = next((other for other, _ in answer.top if other not in known), label)
        if label not in known:
            found[position] = last = _foreign(label, provoked)
            refused += 1
    if refused and refused == len(found):
        raise last
    return found


def _foreign(label: str, provoked: bool) -> ForeignLabel:
    detail = (
        "the large model answered a label that this edge's bundle does not have; "
        "GATEKEEPER_REMOTE_FOREIGN_LABELS=allow lets such through"
    )
    error = ForeignLabel(detail, fault="foreign-label", excerpt=label[:EXCERPT_BYTES])
    error.provoked = provoked
    return error


def _top(entries: list[Any]) -> tuple[tuple[str, float], ...]:
    try:
        return tuple([(scored.label, scored.score) for scored in map(_Scored.model_validate, entries)])
    except ValidationError as error:
        raise _misfit(first_errors(error), str(entries)[:EXCERPT_BYTES], "top.") from None


def labels(body: bytes) -> list[str]:
    """The labels in an answer of GET /v1/models. Raises RemoteBadAnswer, also where there are none or two kinds."""
    told = [model.labels for model in _parsed(_Models, body, MAX_LABELS).data if model.labels is not None]
    if not told or any(labels != told[0] for labels in told):
        raise RemoteBadAnswer("the large model's answer tells no labels, or those of several models", fault="labels")
    return told[0]


def _parsed(model: type[Model], body: bytes, max_values: int) -> Model:
    try:
        return parse(model, body, max_values)
    except TooManyValues:
        detail = f"the large model's answer holds more than {max_values:,} values"
        raise RemoteBadAnswer(detail, fault="values", excerpt=_excerpt(body)) from None
    except DoesNotFit as error:
        raise _misfit(error.errors, _excerpt(body)) from None


def _excerpt(body: bytes) -> str:
    return body[:EXCERPT_BYTES].decode("utf-8", "backslashreplace")


def _misfit(errors: list[ErrorDetails], excerpt: str, within: str = "") -> RemoteBadAnswer:
    where = within + (".".join(map(str, errors[0]["loc"])) or "body")
    fault = "json" if errors[0]["type"] == "json_invalid" else "schema"
    detail = f"the large model's answer does not fit the contract: {where}: {errors[0]['msg']}"
    return RemoteBadAnswer(detail, fault=fault, excerpt=excerpt)
