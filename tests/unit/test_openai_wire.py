"""The OpenAI wire against scripted servers in the dialects of real ones: real HTTP, one item a call."""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.faulty_server import Script, Turn, serving
from support.remotes import PATIENT_S, Outcomes, answering, ask, asking, never, remote_to

from models.llm_labels import LabelPrompt
from service.errors import RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable, StartupError
from service.remote.fan_out import FanOut
from service.remote.http import KeyRefused, Rejected
from service.remote.large_model import RemoteAnswer
from service.remote.openai_wire import OpenAIWire
from service.runtime import new_wire
from service.settings import EdgeSettings

LABELS = ("red", "dark green")
SECRET = "my iban is DE02"
WIRE = partial(OpenAIWire, model="llm-1", prompt=LabelPrompt(LABELS))


def completion(content: str | None, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": content} | choice.pop("message", {})
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice]}).encode()


def saying(content: str | None, **choice: Any) -> Script:
    return answering(200, completion(content, **choice), {"x-request-id": "req-of-the-server"})


def failing(status: int, error: Any, headers: Mapping[str, str] | None = None) -> Script:
    return answering(status, error if isinstance(error, bytes) else json.dumps(error).encode(), headers)


async def one(script: Script, *, outcomes: Outcomes | None = None, **options: Any) -> RemoteAnswer:
    async with serving(script) as server, remote_to(server.url, outcomes, wire=WIRE, **options) as remote:
        (answer,) = await ask(remote, SECRET)
    assert isinstance(answer, RemoteAnswer)
    return answer


async def error_of(script: Script, **options: Any) -> RemoteError:
    with pytest.raises(RemoteError) as raised:
        await one(script, **options)
    assert SECRET not in f"{raised.value.detail}{getattr(raised.value, 'excerpt', '')}", "a text must not reach a log"
    return raised.value


@pytest.mark.parametrize(("suffix", "path"), [("", "/v1/chat/completions"), ("/v1", "/v1/chat/completions")])
async def test_what_is_sent(suffix: str, path: str) -> None:
    async with serving(saying("red")) as server, remote_to(server.url + suffix, wire=WIRE, key="sk-1") as remote:
        await ask(remote, SECRET)
    (turn,) = server.requests
    assert turn.request_line == f"POST {path} HTTP/1.1"
    assert turn.headers["authorization"] == "Bearer sk-1"
    body = json.loads(turn.body)
    assert body["model"] == "llm-1"
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["messages"][0]["content"].endswith(SECRET)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"] == list(LABELS)
    assert (body["temperature"], body["logprobs"]) == (0, True)
    assert body["max_tokens"] >= len("dark green")
    assert "stream" not in body


async def test_tokens_are_told_also_of_an_answer_that_is_no_label() -> None:
    told: list[tuple[int, int]] = []
    usage = {"usage": {"prompt_tokens": 70, "completion_tokens": 3, "total_tokens": 73}}
    for content in ("red", "no idea"):
        body = json.dumps(json.loads(completion(content)) | usage).encode()
        async with (
            serving(answering(200, body)) as server,
            remote_to(server.url, wire=partial(WIRE, on_usage=told.append)) as remote,
        ):
            with suppress(RemoteBadAnswer):
                await ask(remote, "x")
    assert told == [(70, 3), (70, 3)]


async def test_an_image_travels_as_a_data_url() -> None:
    png = "iVBORw0KGgoAAAANSUhEUg=="
    async with serving(saying("red")) as server, remote_to(server.url, wire=WIRE) as remote:
        await remote.answer(asking({"image": png}))
    parts = json.loads(server.requests[0].body)["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"] == f"data:image/png;base64,{png}"


@pytest.mark.parametrize("content", ["red", '{"label": "red"}', " Red.\n"])
async def test_an_answer_without_log_probabilities_has_no_score(content: str) -> None:
    for logprobs in (None, {}, {"content": None}, {"content": [{"token": 3}]}, {"tokens": ["red"]}, "none"):
        found = await one(saying(content, logprobs=logprobs))
        assert found == RemoteAnswer("red", None, (), degraded=False)


async def test_the_score_comes_from_the_labels_tokens() -> None:
    tokens = [('{"label": "', -1.0), ("dark", math.log(0.5)), (" green", math.log(0.5)), ('"}', -1.0)]
    logprobs = {"content": [{"token": token, "logprob": value, "bytes": None} for token, value in tokens]}
    found = await one(saying('{"label": "dark green"}', logprobs=logprobs))
    assert (found.label, found.top) == ("dark green", (("dark green", found.score),))
    assert found.score == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (saying("It is red, I think: " + SECRET), "foreign-label"),
        (saying("blue"), "foreign-label"),
        (saying(""), "empty"),
        (saying(None), "empty"),
        (saying(None, finish_reason="content_filter"), "refusal"),
        (saying(None, message={"refusal": "I cannot help with " + SECRET}), "refusal"),
        (saying('{"label": "dar', finish_reason="length"), "cut"),
        (answering(200, b"<html>" + SECRET.encode()), "json"),
        (answering(200, b"{}"), "schema"),
        (answering(200, b'{"choices": []}'), "schema"),
        (answering(200, b'{"choices": [' + b"0," * 40_000 + b"0]}"), "length"),
    ],
)
async def test_what_is_no_label_is_a_bad_answer(script: Script, fault: str) -> None:
    error = await error_of(script)
    assert isinstance(error, RemoteBadAnswer)
    assert error.fault == fault


# As OpenAI, Azure, vLLM, llama.cpp, Ollama and LiteLLM put it.
NESTED = {"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
LLAMA_CPP = {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "x"}}
VLLM = {"object": "error", "message": "maximum context length is 4096 tokens", "type": "BadRequestError", "code": 400}
AZURE = {"error": {"code": "content_filter", "message": "triggered content management policy"}}


@pytest.mark.parametrize("error", [NESTED, LLAMA_CPP, VLLM])
async def test_a_text_that_is_too_long_says_nothing_of_the_server(error: dict[str, Any]) -> None:
    found = await error_of(failing(400, error), failures=1)
    assert isinstance(found, Rejected)
    assert (found.fault, found.provoked) == ("context-length", True)


async def test_a_filtered_text_says_nothing_of_the_server() -> None:
    found = await error_of(failing(400, AZURE))
    assert isinstance(found, Rejected)
    assert found.fault == "content-filter"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, {"error": {"message": "The model `llm-1` does not exist", "code": "model_not_found"}}),
        (404, {"error": 'model "llm-1" not found, try pulling it first'}),
        (400, {"error": {"message": "Invalid model name passed in model=llm-1: no such model"}}),
    ],
)
async def test_a_model_that_is_not_there_is_told_with_the_setting(status: int, error: dict[str, Any]) -> None:
    found = await error_of(failing(status, error))
    assert isinstance(found, RemoteBadAnswer)
    assert found.fault == "no-model"
    assert "GATEKEEPER_REMOTE_MODEL" in found.detail
    assert not found.provoked


async def test_keys_limits_and_quotas() -> None:
    assert isinstance(await error_of(failing(401, {"error": {"message": "Incorrect API key"}})), KeyRefused)
    limited = await error_of(failing(429, {"error": {"code": "rate_limit_exceeded"}}, {"retry-after": "7"}))
    assert isinstance(limited, RemoteLimit)
    assert limited.retry_after_s == 7
    spent = await error_of(failing(429, {"error": {"code": "insufficient_quota", "message": "check your billing"}}))
    assert isinstance(spent, RemoteLimit)
    assert "no quota" in spent.detail
    assert spent.retry_after_s == 30
    assert isinstance(await error_of(failing(503, b"overloaded")), RemoteUnavailable)


def taking(*known: str, words: str = "Unsupported parameter: '{name}' is not supported") -> Script:
    """A server that refuses what it does not know, by name."""

    async def script(turn: Turn) -> None:
        sent = [name for name in json.loads(turn.body) if name not in ("model", "messages")]
        unknown = next((name for name in sent if name not in known), None)
        if unknown is None:
            await turn.answer(200, completion("red"))
        else:
            await turn.answer(400, json.dumps({"error": {"message": words.format(name=unknown)}}).encode())

    return script


async def test_what_a_server_refuses_by_name_is_left_out_from_then_on() -> None:
    outcomes = Outcomes()
    script = taking("max_tokens", "temperature", "response_format")
    async with serving(script) as server, remote_to(server.url, outcomes, wire=WIRE, failures=1) as remote:
        for _ in range(3):
            (answer,) = await ask(remote, "x")
            assert isinstance(answer, RemoteAnswer)
    assert outcomes == ["remote_unavailable", "ok", "ok", "ok"]
    assert ["logprobs" in json.loads(turn.body) for turn in server.requests] == [True, False, False, False]


async def test_calls_that_learn_the_same_at_the_same_moment_leave_out_no_more() -> None:
    together = asyncio.Barrier(3)
    plain = taking("max_tokens", "temperature", "response_format")

    async def script(turn: Turn) -> None:
        if turn.number <= 3:
            await together.wait()
        await plain(turn)

    async with serving(script) as server, remote_to(server.url, wire=WIRE) as remote:
        answers = await FanOut(remote, most_at_once=3).answer(asking("a", "b", "c"))
    assert all(isinstance(answer, RemoteAnswer) for answer in answers)
    assert all("response_format" in json.loads(turn.body) for turn in server.requests)


async def test_the_newer_name_of_the_limit() -> None:
    words = "'{name}' is not supported with this model. Use 'max_completion_tokens' instead."
    async with (
        serving(taking("max_completion_tokens", "temperature", "response_format", "logprobs", words=words)) as server,
        remote_to(server.url, wire=WIRE) as remote,
    ):
        assert len(await ask(remote, "x")) == 1
    assert "max_tokens" not in json.loads(server.requests[1].body)


async def test_a_400_that_names_nothing_is_guessed_at_once_and_the_guess_is_taken_back() -> None:
    async with serving(failing(400, b"bad request")) as server, remote_to(server.url, wire=WIRE) as remote:
        with pytest.raises(RemoteError):
            await ask(remote, "x")
        sent = [set(json.loads(turn.body)) for turn in server.requests]
        assert sent[0] > sent[1] == {"model", "messages", "max_tokens"}
        with pytest.raises(RemoteError):
            await ask(remote, "x")
        assert set(json.loads(server.requests[2].body)) == sent[0]


async def test_no_text_can_have_something_left_out_for_others() -> None:
    """A server that repeats what it refuses, or says nothing of it, once it has answered."""
    hostile = "response_format, logprobs and max_tokens are not supported"

    async def script(turn: Turn) -> None:
        question = json.loads(turn.body)["messages"][0]["content"]
        if "good" in question:
            await turn.answer(200, completion("red"))
        else:
            await turn.answer(400, json.dumps({"error": {"message": f"rejected: {question}"}}).encode())

    async with serving(script) as server, remote_to(server.url, wire=WIRE) as remote:
        await ask(remote, "good")
        for text in (hostile, "anything"):
            with pytest.raises(RemoteError):
                await ask(remote, text)
        await ask(remote, "good")
    assert set(json.loads(server.requests[0].body)) == set(json.loads(server.requests[-1].body))


async def test_an_answer_that_is_too_long_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    error = await error_of(saying(f"{SECRET} " * 10_000))
    assert (error.reason, getattr(error, "excerpt", "")) == ("remote_bad_answer", "")
    assert SECRET not in caplog.text


@pytest.mark.parametrize("usage", [{"prompt_tokens": "many"}, {"prompt_tokens": 10**30, "completion_tokens": 1}, [3]])
async def test_a_usage_that_cannot_be_counts_nothing(usage: Any) -> None:
    told: list[tuple[int, int]] = []
    body = json.dumps(json.loads(completion("red")) | {"usage": usage}).encode()
    async with (
        serving(answering(200, body)) as server,
        remote_to(server.url, wire=partial(WIRE, on_usage=told.append)) as remote,
    ):
        assert len(await ask(remote, "x")) == 1
    assert told == []


async def test_a_dropped_connection_is_tried_again_and_a_hanging_server_is_left_in_time() -> None:
    async def drop(turn: Turn) -> None:
        turn.drop()

    async def then(turn: Turn) -> None:
        await (drop(turn) if turn.number == 1 else turn.answer(200, completion("red")))

    assert (await one(then)).label == "red"
    async with serving(never) as server, remote_to(server.url, wire=WIRE) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, "x", timeout_s=0.2)


async def test_the_items_of_a_request_go_out_side_by_side_within_a_bound_and_fail_alone() -> None:
    together = asyncio.Barrier(3)
    most = 0

    async def script(turn: Turn) -> None:
        nonlocal most
        most = max(most, server.running_scripts)
        text = json.loads(turn.body)["messages"][0]["content"].rpartition("\n")[2]
        await together.wait()
        await turn.answer(200, completion("red" if text != "4" else "no idea"))

    async with serving(script) as server, remote_to(server.url, wire=WIRE) as remote:
        answers = await FanOut(remote, most_at_once=3).answer(asking(*"012345", timeout_s=PATIENT_S))
    assert [isinstance(answer, RemoteAnswer) for answer in answers] == [True] * 4 + [False, True]
    assert isinstance(answers[4], RemoteBadAnswer)
    assert most == 3
    assert len(server.requests) == 6


async def test_items_that_waited_for_their_turn_do_not_open_the_breaker() -> None:
    """More texts than fit into the time: the LLM is slow, and answers."""

    async def script(turn: Turn) -> None:
        await asyncio.sleep(0.05)
        await turn.answer(200, completion("red"))

    async with serving(script) as server, remote_to(server.url, wire=WIRE, failures=1) as remote:
        answers = await FanOut(remote, most_at_once=2).answer(asking(*map(str, range(60)), timeout_s=0.5))
        assert not remote.breaker_open
        assert [answer.label for answer in await ask(remote, "x") if isinstance(answer, RemoteAnswer)] == ["red"]
    late = [answer for answer in answers if isinstance(answer, RemoteTimeout)]
    assert 0 < len(late) < 60
    assert len(late) + sum(isinstance(answer, RemoteAnswer) for answer in answers) == 60


async def test_a_client_that_leaves_takes_all_its_calls_along() -> None:
    async with serving(never) as server, remote_to(server.url, wire=WIRE) as remote:
        call = asyncio.create_task(FanOut(remote, most_at_once=4).answer(asking(*"abcdefgh")))
        await server.until(lambda seen: len(seen.requests) == 4)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await server.until(lambda seen: seen.open_connections == 0)
    assert call.cancelled()
    assert len(server.requests) == 4


def settings(**values: str) -> EdgeSettings:
    return EdgeSettings(remote_wire="openai", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "GATEKEEPER_REMOTE_WIRE=openai needs GATEKEEPER_REMOTE_MODEL"),
        (
            {"remote_model": "m", "remote_prompt": "no-such-file"},
            "GATEKEEPER_REMOTE_PROMPT: no-such-file cannot be read",
        ),
        ({"remote_model": "m", "remote_prompt": "list.json"}, "the template needs {labels} once"),
        ({"remote_model": "m", "remote_descriptions": "list.json"}, "list.json is no JSON object of labels to lines"),
        ({"remote_model": "m", "remote_descriptions": "odd.json"}, "a description is of 'nothing', which is no label"),
    ],
)
def test_what_cannot_be_asked_stops_the_start(
    values: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "odd.json").write_text('{"nothing": "x"}')
    with pytest.raises(StartupError, match=re.escape(words)):
        new_wire(settings(**values), LABELS, None)  # type: ignore[arg-type]


def test_the_url_may_end_in_v1_and_in_nothing_else() -> None:
    (url,) = settings(remote_url="https://llm.example/v1").remote_url
    assert str(url) == "https://llm.example/v1"
    for bad in ("https://llm.example/v1/chat/completions", "https://llm.example/v1/models"):
        with pytest.raises(ValidationError, match=r"give https://llm\.example"):
            settings(remote_url=bad)
    with pytest.raises(ValidationError, match="adds its routes itself"):
        EdgeSettings(remote_url="https://llm.example/v1")  # type: ignore[arg-type]
