"""A wire of another kind fits the same pool: other paths, ids, bodies and errors, and a server that refuses a field."""

import asyncio
import json

import pytest
from support.faulty_server import Script, Turn, serving
from support.remotes import Outcomes, ask, never, remote_to

from service.errors import ForeignLabel, RemoteBadAnswer, RemoteUnavailable
from service.remote.http import HttpAnswer, HttpRequest, Rejected, TransientFailure, check_status
from service.remote.large_model import Ask, ItemAnswer, RemoteAnswer
from service.remote.wire import Exchange, ServerFacts

LABELS = ("red", "green")


class ChatWire:
    """A chat model that is asked for one label: what servers take differs, and an error's body says so."""

    def __init__(self, url: str) -> None:
        self.facts = ServerFacts()
        self._with_logprobs = True

    def request(self, ask: Ask) -> HttpRequest:
        (text,) = ask.inputs
        document = {"model": "m", "messages": [{"role": "user", "content": text}]}
        if self._with_logprobs:
            document["logprobs"] = True
        return HttpRequest("/v1/chat/completions", {}, json.dumps(document).encode(), error_bytes=1_000)

    def parse(self, answer: HttpAnswer, ask: Ask) -> list[ItemAnswer]:
        if answer.status == 400 and b"logprobs" in answer.body and self._with_logprobs:
            self._with_logprobs = False
            refused = TransientFailure("it takes no logprobs")
            refused.provoked = True  # it says nothing against the server
            raise refused
        if answer.status == 400:
            raise Rejected(json.loads(answer.body)["error"]["message"], fault="status")
        check_status(answer)
        label = json.loads(answer.body)["choices"][0]["message"]["content"]
        if label not in LABELS:
            raise ForeignLabel("no label", fault="foreign-label", excerpt=label)
        return [RemoteAnswer(label, 1.0, (), degraded=False)]

    async def get_to_know(self, exchange: Exchange) -> None:
        pass

    def was_asked(self, handshake: str) -> None:
        pass


def chat(content: str, *, refusing: str | None = None) -> Script:
    async def script(turn: Turn) -> None:
        # Such a server gives each request an id of its own.
        headers = {"x-request-id": f"req-{turn.number}"}
        if refusing is not None and refusing in json.loads(turn.body):
            error = {"error": {"message": f"{refusing} is not supported", "type": "invalid_request_error"}}
            await turn.answer(400, json.dumps(error).encode(), headers)
        else:
            await turn.answer(200, json.dumps({"choices": [{"message": {"content": content}}]}).encode(), headers)

    return script


async def test_an_answer_of_another_protocol_is_an_answer_whatever_id_it_has() -> None:
    async with serving(chat("red")) as server, remote_to(server.url, wire=ChatWire, key="k", failures=1) as remote:
        remote.start()
        assert await ask(remote, "x") == [RemoteAnswer("red", 1.0, (), degraded=False)]
    (turn,) = server.requests
    assert turn.request_line == "POST /v1/chat/completions HTTP/1.1"
    assert turn.headers["authorization"] == "Bearer k"
    assert not [name for name in turn.headers if name.startswith("x-")], "what the gatekeeper wire sends is its own"


async def test_what_a_server_refuses_is_left_out_at_the_second_attempt_and_from_then_on() -> None:
    outcomes = Outcomes()
    async with (
        serving(chat("red", refusing="logprobs")) as server,
        remote_to(server.url, outcomes, wire=ChatWire, failures=1) as remote,
    ):
        for _ in range(3):
            assert await ask(remote, "x")
        assert not remote.breaker_open
    assert ["logprobs" in json.loads(turn.body) for turn in server.requests] == [True, False, False, False]
    assert outcomes == ["remote_unavailable", "ok", "ok", "ok"]


async def test_what_one_server_has_taught_is_not_held_against_another() -> None:
    async with (
        serving(chat("red", refusing="logprobs")) as first,
        serving(chat("green")) as second,
        remote_to(f"{first.url},{second.url}", wire=ChatWire, failures=1) as remote,
    ):
        (answer,) = await ask(remote, "x")
        assert [endpoint.breaker_open for endpoint in remote.endpoints] == [False, False]
        assert await ask(remote, "y")
    assert isinstance(answer, RemoteAnswer)
    assert answer.label == "green", "the second attempt is at the server that is ready"
    assert ["logprobs" in json.loads(turn.body) for turn in first.requests] == [True, False]
    assert ["logprobs" in json.loads(turn.body) for turn in second.requests] == [True]


async def test_a_refusal_carries_the_servers_own_reason_and_counts_for_no_breaker() -> None:
    async with (
        serving(chat("red", refusing="messages")) as server,
        remote_to(server.url, wire=ChatWire, failures=1) as remote,
    ):
        with pytest.raises(RemoteBadAnswer, match="messages is not supported"):
            await ask(remote, "x")
        assert not remote.breaker_open
    assert len(server.requests) == 1


async def test_what_is_no_label_is_a_bad_answer_and_counts_unless_the_wire_says_otherwise() -> None:
    outcomes = Outcomes()
    async with (
        serving(chat("I would say red")) as server,
        remote_to(server.url, outcomes, wire=ChatWire, failures=1) as remote,
    ):
        with pytest.raises(ForeignLabel):
            await ask(remote, "x")
        assert remote.breaker_open
    assert outcomes == ["remote_bad_answer"]


async def test_an_errors_body_is_read_as_far_as_the_wire_wants_it_and_no_further() -> None:
    async def endless(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 500 Internal Server Error\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await turn.send(b"400\r\n" + b" " * 1_024 + b"\r\n")

    async def broken(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 100\r\n\r\n{")
        turn.drop()

    for script in (endless, broken):
        async with serving(script) as server, remote_to(server.url, wire=ChatWire) as remote:
            with pytest.raises(RemoteUnavailable, match="500"):
                await ask(remote, "x")
            await server.until(lambda seen: seen.open_connections == 0)


async def test_a_wire_of_another_kind_keeps_deadlines_and_cancellation() -> None:
    async with serving(never) as server, remote_to(server.url, wire=ChatWire, slots=1) as remote:
        call = asyncio.create_task(ask(remote, "x"))
        await server.until(lambda seen: seen.running_scripts == 1)
        call.cancel()
        await asyncio.wait([call])
        await server.until(lambda seen: seen.open_connections == 0)
