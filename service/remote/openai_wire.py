"""The OpenAI wire to an LLM that answers with labels: one item a call, one question of models/llm_labels.py.

Nothing of a question or an answer goes into an error: an LLM may repeat what it was asked.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_json

from models.llm_chat import Completion, Dialect, chat_path
from models.llm_labels import LabelPrompt, NoLabel
from service.bounded_json import DoesNotFit, TooManyValues, parse
from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit
from service.remote.gatekeeper_wire import header_value
from service.remote.http import HttpAnswer, HttpRequest, Rejected, TransientFailure, check_status
from service.remote.large_model import Ask, Input, ItemAnswer, RemoteAnswer
from service.remote.wire import Exchange, ServerFacts

logger = logging.getLogger(__name__)

MOST_VALUES = 100_000  # of an answer; a token's log-probability has a dozen
ERROR_BYTES = 4 * 1024
QUOTA_PAUSE_S = 30
IMAGE_TYPES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}


class OpenAIWire:
    """To the server at `url`, with or without /v1, whose model is `model`.

    on_usage: told the (prompt, completion) tokens of each answer that says them.
    """

    def __init__(
        self, url: str, model: str, prompt: LabelPrompt, on_usage: Callable[[tuple[int, int]], None] = lambda _: None
    ) -> None:
        self.facts = ServerFacts()
        self._url, self._path, self._dialect = url, chat_path(url), Dialect(model, prompt)
        self._on_usage = on_usage

    def request(self, ask: Ask) -> HttpRequest:
        """See Wire. The one item of the call."""
        (item,) = ask.inputs
        headers = {
            "content-type": "application/json",
            "x-gatekeeper-hops": str(ask.hops),
            "x-request-id": header_value(ask.request_id),
        }
        body = _encoded(self._dialect.body(self._content(item)))
        return HttpRequest(self._path, headers, body, error_bytes=ERROR_BYTES, private=True)

    def parse(self, answer: HttpAnswer, ask: Ask) -> list[ItemAnswer]:
        """See Wire."""
        if answer.status != 200:
            (item,) = ask.inputs
            raise self._failure(answer, item if isinstance(item, str) else "")
        try:
            completion = parse(Completion, answer.body, MOST_VALUES)
        except TooManyValues:
            raise RemoteBadAnswer(f"the LLM's answer holds more than {MOST_VALUES:,} values", fault="values") from None
        except DoesNotFit as error:
            fault = "json" if error.is_no_json else "schema"
            raise RemoteBadAnswer("the LLM's answer is no chat completion", fault=fault) from None
        if completion.used is not None:
            self._on_usage(completion.used)
        try:
            label, score = self._dialect.answer(completion)
        except NoLabel as error:
            bad = RemoteBadAnswer(f"the LLM's answer is no label: {error}", fault=error.fault)
            bad.provoked = True  # whoever chooses the text can have an LLM say anything
            raise bad from None
        return [RemoteAnswer(label, score, () if score is None else ((label, score),), degraded=False)]

    async def get_to_know(self, exchange: Exchange) -> None:
        """Nothing is asked of an LLM beside the calls: it would cost."""

    def was_asked(self, handshake: str) -> None:
        """See Wire: this one sends none."""

    def _content(self, item: Input) -> Any:
        """The user's turn: a text, or a question with its image as a data URL."""
        question = self._dialect.prompt.question
        if isinstance(item, str):
            return question(item)
        encoded = item["image"]
        kind = next((kind for start, kind in IMAGE_TYPES.items() if encoded.startswith(start)), "png")
        return [
            {"type": "text", "text": question("(the image)")},
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded}"}},
        ]

    def _failure(self, answer: HttpAnswer, asked: str) -> RemoteError:
        """What an answer that is no 200 means, by what it says where the status says too little."""
        kind, about = self._dialect.meaning(answer.status, answer.body, asked)
        match kind:
            case "no-model":
                return RemoteBadAnswer(
                    f"the LLM's server has no model {about!r}: set GATEKEEPER_REMOTE_MODEL", fault=kind
                )
            case "context-length":
                return Rejected("the text is too long for the LLM", fault=kind)
            case "content-filter":
                return Rejected("the LLM's server filters the text", fault=kind)
            case "quota":
                return RemoteLimit("the account of the LLM has no quota left", retry_after_s=QUOTA_PAUSE_S)
            case "option":
                logger.warning("the LLM at %s does not take %s: it is left out from now on", self._url, about)
                error = TransientFailure(f"the LLM's server does not take {about}: asked again without")
                error.provoked = True  # it says nothing against the server
                return error
        try:
            check_status(answer)
        except RemoteError as error:
            return error
        raise AssertionError(answer.status)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return to_json(body)
    except ValueError:  # half of a surrogate pair, which UTF-8 cannot carry
        return json.dumps(body).encode("ascii")
