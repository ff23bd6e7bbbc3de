"""The OpenAI wire as servers really speak it: what is sent, what an answer holds, what a refusal means. Pure, no I/O.

The edge uses it online (service/remote/openai_wire.py) and `gatekeeper label` offline. What a server refuses by name (a
schema, log-probabilities, the name of a limit) is left out from then on.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from models.llm_labels import SCHEMA_NAME, LabelPrompt, NoLabel, score_of

BESIDE_LABEL_TOKENS = 24  # of the JSON around a label
MOST_TOKENS = 100_000_000  # of one call; more is no count
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
# What a 400 says where the text is to blame, in the words of several servers.
TOO_LONG = ("context_length", "context length", "maximum context", "context window", "too long", "context size")
FILTERED = ("content_filter", "content management policy", "content_policy", "safety system")
NO_MODEL = ("model_not_found", "no such model", "model not found", "does not exist", "unknown model")
NO_QUOTA = ("insufficient_quota", "billing", "credit balance", "budget has been exceeded")
Meaning = Literal["no-model", "context-length", "content-filter", "option", "quota", "status"]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Message(_Document):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Document):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None  # every server has its own idea of it: read with care, or not at all


class Completion(_Document):
    """The body of a 200."""

    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]
    usage: Any = None

    @property
    def used(self) -> tuple[int, int] | None:
        """(prompt, completion) tokens, where the server says numbers that can be."""
        said = self.usage if isinstance(self.usage, dict) else {}
        counts = [said.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in counts)
        return None if prompt is None or completion is None else (prompt, completion)


class Labelled(NamedTuple):
    """A label, and its probability where the server gives log-probabilities."""

    label: str
    score: float | None


class Dialect:
    """What one server takes. model: the LLM's name there."""

    def __init__(self, model: str, prompt: LabelPrompt) -> None:
        self.model, self.prompt = model, prompt
        self._left_out: set[str] = set()
        self._suspected: set[str] = set()  # left out on a guess, which no answer has confirmed
        self._proven = False  # it has answered what is sent now
        self._limit_name = LIMIT_NAMES[0]
        schema = {"name": SCHEMA_NAME, "strict": True, "schema": prompt.schema()}
        self._options: Mapping[str, Any] = {
            "response_format": {"type": "json_schema", "json_schema": schema},
            "logprobs": True,
            "temperature": 0,
        }
        # A token has one byte at least.
        self.most_tokens = max(len(label.encode()) for label in prompt.labels) + BESIDE_LABEL_TOKENS

    def body(self, content: Any) -> dict[str, Any]:
        """The request about one item. content: of the user's turn, a text or parts."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            self._limit_name: self.most_tokens,
            **{name: value for name, value in self._options.items() if name not in self._left_out},
        }

    def answer(self, completion: Completion) -> Labelled:
        """Raises NoLabel, whose fault is one word."""
        self._proven, self._suspected = True, set()
        choice = completion.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise NoLabel("refusal", "the LLM refuses to answer")
        content = choice.message.content or ""
        try:
            label = self.prompt.read(content)
        except NoLabel:
            if choice.finish_reason == "length":
                raise NoLabel("cut", "the answer was cut before its label") from None
            raise
        return Labelled(label, score_of(content, _tokens(choice.logprobs)))

    def meaning(self, status: int, body: bytes, text: str) -> tuple[Meaning, str]:
        """(what an answer that is no 200 means, what it is about); "status": no more than its status says.

        "option": the server does not take something, which is left out from now on. text: that was asked about, which
        the server may repeat: a name that stands in it is not the server's.
        """
        said = body.decode("utf-8", "replace").lower()  # nested as OpenAI has it, flat as others do, or no JSON at all
        if status == 429:
            return ("quota", "") if any(word in said for word in NO_QUOTA) else ("status", "")
        if status not in (400, 404, 422):
            return "status", ""
        if "model" in said and (status == 404 or any(word in said for word in NO_MODEL)):
            return "no-model", self.model
        if any(word in said for word in TOO_LONG):
            return "context-length", ""
        if any(word in said for word in FILTERED):
            return "content-filter", ""
        refused = "" if status == 404 else self._leave_out(said, text.lower())
        return ("option", refused) if refused else ("status", "")

    def _leave_out(self, said: str, text: str) -> str:
        """Note what the server does not take, as it names it; "" if it may be something else.

        Of a server that names nothing and has answered nothing yet, all that can be left out, until it answers that
        no better.
        """
        if any(name in text for name in (*self._options, *LIMIT_NAMES, "json_schema")):
            return ""
        other = next(name for name in LIMIT_NAMES if name != self._limit_name)
        if self._limit_name in said and other not in self._left_out:
            self._left_out.add(self._limit_name)
            self._limit_name, refused = other, self._limit_name
            return refused
        sent = [name for name in self._options if name not in self._left_out]
        named = [name for name in sent if name in said or (name == "response_format" and "json_schema" in said)]
        if not named and (before := [name for name in self._left_out if name in said]):
            return ", ".join(before)  # this call went out before another had learned it
        if named:
            self._left_out.update(named)
            return ", ".join(named)
        if self._proven or self._suspected:
            self._left_out -= self._suspected
            self._suspected = set()
            return ""
        self._suspected = set(sent)
        self._left_out.update(sent)
        return ", ".join(sent)


def chat_path(url: str) -> str:
    """What follows a URL that is given with or without /v1."""
    return "/chat/completions" if url.rstrip("/").endswith("/v1") else "/v1/chat/completions"


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
