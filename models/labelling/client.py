"""One question to an LLM's server, tried again where that may help; what cannot pass ends the run with one line."""

import asyncio
import random
from typing import NamedTuple

import httpx
from pydantic import ValidationError

from models.errors import InputError
from models.evaluation.edge_client import edge_client
from models.llm_chat import Completion, Dialect, chat_path
from models.llm_labels import LabelPrompt, NoLabel

ATTEMPTS = 6
CALL_S = 120.0
PAUSE_S = (0.5, 30.0)  # before the second attempt, then twice as long each time, up to that
MOST_BYTES = 1024 * 1024
CHARS_A_TOKEN = 4  # where the server does not count


class Answered(NamedTuple):
    """label None: `fault` says in one word what the answer is instead. tokens: of all attempts that were answered."""

    label: str | None
    score: float | None
    fault: str
    prompt_tokens: int
    completion_tokens: int


class LlmClient:
    """An LLM at `url`, with or without /v1. Raises InputError for what is no URL."""

    def __init__(self, url: str, model: str, prompt: LabelPrompt, key: str | None) -> None:
        self._http = edge_client(url, "--remote-url", key)
        self._url, self._path, self.dialect = url, chat_path(url), Dialect(model, prompt)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def ask(self, question: str) -> Answered:
        """Raises InputError where no question can be answered: a wrong key, no such model, a server that is away."""
        pause_s, longest_s = PAUSE_S
        attempt = 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout(CALL_S):
                    response = await self._http.post(self._path, json=self.dialect.body(question))
                    content = response.content[:MOST_BYTES]
            except (httpx.HTTPError, TimeoutError) as error:
                why = type(error).__name__
            else:
                if response.status_code == 200:
                    return self._answered(question, content)
                kind, about = self.dialect.meaning(response.status_code, content)
                if kind == "option" and attempt < ATTEMPTS:
                    continue  # what it refused is left out now
                if kind in ("context-length", "content-filter"):
                    return Answered(None, None, kind, 0, 0)
                why = self._final(kind, about, response.status_code)
                waits = response.headers.get("retry-after", "")
                if waits.isascii() and waits.isdecimal():
                    pause_s = min(float(waits), 300.0)
            if attempt == ATTEMPTS:
                raise InputError(
                    f"{self._url} does not answer ({why}, {ATTEMPTS} times): what was answered is kept; run the same "
                    "command again to go on"
                )
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, longest_s)

    def _final(self, kind: str, about: str, status: int) -> str:
        """What is wrong, where trying again may help. Raises InputError where it cannot."""
        if kind == "no-model":
            raise InputError(f"{self._url} has no model {about!r}: give --remote-model")
        if kind == "quota":
            raise InputError(f"{self._url}: the account has no quota left; what was answered is kept")
        if status in (401, 403):
            raise InputError(f"{self._url} refuses the key ({status}): set GATEKEEPER_REMOTE_KEY to one that it takes")
        if status < 500 and status not in (408, 409, 429):
            raise InputError(f"{self._url} answers {status} to {self._path}: is it the URL of a chat endpoint?")
        return str(status)

    def _answered(self, question: str, content: bytes) -> Answered:
        try:
            completion = Completion.model_validate_json(content)
        except ValidationError:
            return Answered(None, None, "schema", len(question) // CHARS_A_TOKEN + 1, 0)
        usage = completion.usage
        said = completion.choices[0].message.content or ""
        used = (
            (len(question) // CHARS_A_TOKEN + 1, len(said) // CHARS_A_TOKEN + 1)
            if usage is None
            else (usage.prompt_tokens, usage.completion_tokens)
        )
        try:
            label, score = self.dialect.answer(completion)
        except NoLabel as error:
            return Answered(None, None, error.fault, *used)
        return Answered(label, score, "", *used)
