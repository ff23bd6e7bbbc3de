"""One question to an LLM's server, tried again where that may help; what cannot pass ends the run with one line."""

import asyncio
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import httpx
from pydantic import ValidationError

from models.errors import InputError
from models.evaluation.edge_client import edge_client
from models.llm_chat import Completion, Dialect, chat_path
from models.llm_labels import LabelPrompt, NoLabel

ATTEMPTS = 6
MOST_LIMITED = 60  # refusals of one question by 429, which a limit by the minute needs
CALL_S = 60.0
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


class _Trouble(NamedTuple):
    """Why a call is to be made again, and when."""

    why: str
    wait_s: float | None = None
    limit: bool = False
    at_once: bool = False


class LlmClient:
    """An LLM at `url`, with or without /v1. say: told once of each kind of trouble.

    Raises InputError for what is no URL or no key.
    """

    def __init__(self, url: str, model: str, prompt: LabelPrompt, key: str | None, say: Callable[[str], None]) -> None:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise InputError("--remote-url must be scheme, host, port and path alone; the key is GATEKEEPER_REMOTE_KEY")
        if url.rstrip("/").endswith("/chat/completions"):
            right = url.rstrip("/").removesuffix("/chat/completions")
            raise InputError(f"--remote-url ends in /chat/completions, which is added: give {right}")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise InputError("GATEKEEPER_REMOTE_KEY must be visible ASCII characters, no spaces or line ends")
        self._http = edge_client(url, "--remote-url", key)
        self._url, self._path, self.dialect, self._say = url, chat_path(url), Dialect(model, prompt), say
        self._told: set[str] = set()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def ask(self, text: str) -> Answered:
        """Raises InputError where no question can be answered: a wrong key, no such model, a server that is away."""
        question = self.dialect.prompt.question(text)
        pause_s, longest_s = PAUSE_S
        attempt = limited = 0
        while True:
            attempt += 1
            found = await self._attempt(question, text)
            if isinstance(found, Answered):
                return found
            if found.limit:
                attempt, limited = attempt - 1, limited + 1
            if attempt == ATTEMPTS or limited == MOST_LIMITED:
                raise InputError(
                    f"{self._url} does not answer ({found.why}, {attempt + limited} times): what was answered is kept; "
                    "run the same command again to go on"
                )
            if found.at_once:
                continue
            self._tell(found.why)
            await asyncio.sleep((pause_s if found.wait_s is None else found.wait_s) * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, longest_s)

    async def _attempt(self, question: str, text: str) -> "Answered | _Trouble":
        """One call. Raises InputError where no other can pass either."""
        try:
            async with asyncio.timeout(CALL_S):
                response = await self._http.post(self._path, json=self.dialect.body(question))
                content = response.content[:MOST_BYTES]
        except (httpx.HTTPError, TimeoutError) as error:
            return _Trouble(type(error).__name__)
        if response.status_code == 200:
            return self._answered(question, content)
        kind, about = self.dialect.meaning(response.status_code, content, text)
        if kind == "option":
            return _Trouble(f"it does not take {about}", at_once=True)
        if kind in ("context-length", "content-filter"):
            return Answered(None, None, kind, 0, 0)
        if response.status_code in (400, 422) and kind != "no-model":
            return Answered(None, None, "rejected", 0, 0)
        why = self._passing(kind, about, response.status_code)
        waits = response.headers.get("retry-after", "")
        wait_s = min(float(waits), 300.0) if waits.isascii() and waits.isdecimal() else None
        return _Trouble(why, wait_s, limit=response.status_code == 429)

    def _tell(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            self._say(f"{self._url}: {why}; such calls are made again")

    def _passing(self, kind: str, about: str, status: int) -> str:
        """What is wrong, where trying again may help. Raises InputError where it cannot."""
        if kind == "no-model":
            raise InputError(f"{self._url} has no model {about!r}: give --remote-model")
        if kind == "quota":
            raise InputError(f"{self._url}: the account has no quota left; what was answered is kept")
        if status in (401, 403):
            raise InputError(f"{self._url} refuses the key ({status}): set GATEKEEPER_REMOTE_KEY to one that it takes")
        if status < 500 and status not in (408, 409, 429):
            raise InputError(f"{self._url} answers {status} to {self._path}: is it the URL of a chat endpoint?")
        return f"it answers {status}"

    def _answered(self, question: str, content: bytes) -> Answered:
        try:
            completion = Completion.model_validate_json(content)
        except ValidationError:
            return Answered(None, None, "schema", 0, 0)
        said = completion.choices[0].message.content or ""
        used = completion.used or (len(question) // CHARS_A_TOKEN + 1, len(said) // CHARS_A_TOKEN + 1)
        try:
            label, score = self.dialect.answer(completion)
        except NoLabel as error:
            return Answered(None, None, error.fault, *used)
        return Answered(label, score, "", *used)
