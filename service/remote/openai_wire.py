"""The OpenAI wire to an LLM that answers with labels: one item a call, one question of models/llm_labels.py.

What a server refuses by name (a schema, log-probabilities, the name of a limit) is left out from then on, and the call
is made again. Nothing of a question or an answer goes into an error: an LLM may repeat what it was asked.
"""

import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from models.llm_labels import SCHEMA_NAME, LabelPrompt, NoLabel, score_of
from service.bounded_json import DoesNotFit, TooManyValues, parse
from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit
from service.remote.gatekeeper_wire import header_value
from service.remote.http import HttpAnswer, HttpRequest, Rejected, TransientFailure, check_status
from service.remote.large_model import Ask, Input, ItemAnswer, RemoteAnswer
from service.remote.wire import Exchange, ServerFacts

logger = logging.getLogger(__name__)

MOST_VALUES = 100_000  # of an answer; a token's log-probability has a dozen
ERROR_BYTES = 4 * 1024
BESIDE_LABEL_TOKENS = 24  # of the JSON around a label
QUOTA_PAUSE_S = 30
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
# What a 400 says where the text is to blame, in the words of several servers.
TOO_LONG = ("context_length", "context length", "maximum context", "context window", "too long", "context size")
FILTERED = ("content_filter", "content management policy", "content_policy", "safety system")
NO_MODEL = ("model_not_found", "no such model", "model not found", "does not exist", "unknown model")
NO_QUOTA = ("insufficient_quota", "billing", "credit balance", "budget has been exceeded")
IMAGE_TYPES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Message(_Document):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Document):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None  # every server has its own idea of it: read with care, or not at all


class _Completion(_Document):
    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]


class OpenAIWire:
    """To the server at `url`, with or without /v1, whose model is `model`."""

    def __init__(self, url: str, model: str, prompt: LabelPrompt) -> None:
        self.facts = ServerFacts()
        self._url, self._model, self._prompt = url, model, prompt
        self._path = "/chat/completions" if url.rstrip("/").endswith("/v1") else "/v1/chat/completions"
        self._left_out: set[str] = set()
        self._limit_name = LIMIT_NAMES[0]
        schema = {"name": SCHEMA_NAME, "strict": True, "schema": prompt.schema()}
        self._options: Mapping[str, Any] = {
            "response_format": {"type": "json_schema", "json_schema": schema},
            "logprobs": True,
            "temperature": 0,
        }
        # A token has one character at least.
        self._most_tokens = max(len(label.encode()) for label in prompt.labels) + BESIDE_LABEL_TOKENS

    def request(self, ask: Ask) -> HttpRequest:
        """See Wire. The one item of the call."""
        (item,) = ask.inputs
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._content(item)}],
            self._limit_name: self._most_tokens,
            **{name: value for name, value in self._options.items() if name not in self._left_out},
        }
        headers = {
            "content-type": "application/json",
            "x-gatekeeper-hops": str(ask.hops),
            "x-request-id": header_value(ask.request_id),
        }
        return HttpRequest(self._path, headers, _encoded(body), error_bytes=ERROR_BYTES)

    def parse(self, answer: HttpAnswer, ask: Ask) -> list[ItemAnswer]:  # noqa: ARG002  of one item
        """See Wire."""
        if answer.status != 200:
            raise self._failure(answer)
        try:
            choice = parse(_Completion, answer.body, MOST_VALUES).choices[0]
        except TooManyValues:
            raise RemoteBadAnswer(f"the LLM's answer holds more than {MOST_VALUES:,} values", fault="values") from None
        except DoesNotFit as error:
            fault = "json" if error.is_no_json else "schema"
            raise RemoteBadAnswer("the LLM's answer is no chat completion", fault=fault) from None
        return [self._answer(choice)]

    async def get_to_know(self, exchange: Exchange) -> None:
        """Nothing is asked of an LLM beside the calls: it would cost."""

    def was_asked(self, handshake: str) -> None:
        """See Wire: this one sends none."""

    def _content(self, item: Input) -> Any:
        """The user's turn: a text, or a question with its image as a data URL."""
        if isinstance(item, str):
            return self._prompt.question(item)
        encoded = item["image"]
        kind = next((kind for start, kind in IMAGE_TYPES.items() if encoded.startswith(start)), "png")
        return [
            {"type": "text", "text": self._prompt.question("(the image)")},
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded}"}},
        ]

    def _answer(self, choice: _Choice) -> RemoteAnswer:
        """Raises RemoteBadAnswer."""
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise _about_the_item("the LLM refuses to answer", "refusal")
        content = choice.message.content or ""
        try:
            label = self._prompt.read(content)
        except NoLabel as error:
            cut = choice.finish_reason == "length"
            detail = "the LLM's answer was cut before its label" if cut else f"the LLM's answer is no label: {error}"
            raise _about_the_item(detail, "cut" if cut else error.fault) from None
        score = score_of(content, _tokens(choice.logprobs))
        return RemoteAnswer(label, score, () if score is None else ((label, score),), degraded=False)

    def _failure(self, answer: HttpAnswer) -> RemoteError:
        """What an answer that is no 200 means, by what it says where the status says too little."""
        said = _said(answer.body)
        if answer.status in (400, 404, 422):
            if "model" in said and (answer.status == 404 or any(word in said for word in NO_MODEL)):
                detail = f"the LLM's server has no model {self._model!r}: set GATEKEEPER_REMOTE_MODEL"
                return RemoteBadAnswer(detail, fault="no-model")
            if any(word in said for word in TOO_LONG):
                return Rejected("the text is too long for the LLM", fault="context-length")
            if any(word in said for word in FILTERED):
                return Rejected("the LLM's server filters the text", fault="content-filter")
            if answer.status != 404 and (refused := self._leave_out(said)):
                error = TransientFailure(f"the LLM's server does not take {refused}: asked again without")
                error.provoked = True  # it says nothing against the server
                return error
        if answer.status == 429 and any(word in said for word in NO_QUOTA):
            return RemoteLimit("the account of the LLM has no quota left", retry_after_s=QUOTA_PAUSE_S)
        try:
            check_status(answer)
        except RemoteError as error:
            return error
        raise AssertionError(answer.status)

    def _leave_out(self, said: str) -> str:
        """Note what the server does not take, as it names it, else all that can be left out; "" if nothing is left."""
        other = next(name for name in LIMIT_NAMES if name != self._limit_name)
        if self._limit_name in said and other not in self._left_out:
            self._left_out.add(self._limit_name)
            self._limit_name, refused = other, self._limit_name
        else:
            sent = [name for name in self._options if name not in self._left_out]
            named = [name for name in sent if name in said or (name == "response_format" and "json_schema" in said)]
            self._left_out.update(named or sent)
            refused = ", ".join(named or sent)
        if refused:
            logger.warning("the LLM at %s does not take %s: it is left out from now on", self._url, refused)
        return refused


def _about_the_item(detail: str, fault: str) -> RemoteBadAnswer:
    """Whoever chooses the text can have an LLM say anything: it says nothing of the server."""
    error = RemoteBadAnswer(detail, fault=fault)
    error.provoked = True
    return error


def _tokens(logprobs: Any) -> list[tuple[str, float]]:
    """(token, log-probability) of each; none where they do not look like that."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return []
    found = []
    for entry in content:
        token, value = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(value, int | float):
            return []
        found.append((token, float(value)))
    return found


def _said(body: bytes) -> str:
    """What an error says, in lower case; nested as OpenAI has it, flat as others do, or no JSON at all."""
    return body.decode("utf-8", "replace").lower()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return to_json(body)
    except ValueError:  # half of a surrogate pair, which UTF-8 cannot carry
        return json.dumps(body).encode("ascii")
