"""The faults of an LLM as the large model, under load: every request is answered, and deferral resumes by itself.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_llm.py -k prose
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from support.background import Upstream
from support.faults import Load, Row
from support.faulty_server import Script, Turn, head
from support.load import ODD
from support.processes import Service, admin, eventually, spawn_edge, stopping

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

TIMEOUT_S = 0.4
LLM = {"REMOTE_WIRE": "openai", "REMOTE_MODEL": "m", "BREAKER_OPEN_S": "0.3", "REMOTE_MAX_RESPONSE_BYTES": "65536"}


def completion(content: str | None, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": content} | choice.pop("message", {})
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice]}).encode()


def answering(status: int, body: bytes, **headers: str) -> Script:
    async def script(turn: Turn) -> None:
        await turn.answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return script


good = answering(200, completion("transfer"))


async def never_answering(turn: Turn) -> None:
    await asyncio.Event().wait()


async def dripping(turn: Turn) -> None:
    body = completion("transfer")
    await turn.send(head(200, {"content-length": str(len(body))}))
    for position in range(len(body)):
        await turn.send(body[position : position + 1])
        await asyncio.sleep(1.0)


async def never_ending(turn: Turn) -> None:
    await turn.send(head(200, {"transfer-encoding": "chunked"}))
    while True:
        await turn.send(b"1000\r\n" + b" " * 4096 + b"\r\n")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Service]:
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, **LLM)
    with stopping(edge):
        edge.wait_ready()
        with httpx.Client(base_url=edge.url) as client:
            assert admin(client, "PATCH", "policy", json={"remote_timeout_s": TIMEOUT_S}).status_code == 200
        yield edge


@pytest.fixture
def healed(edge: Service, upstream: Upstream) -> None:
    """Whatever the test before did, this one begins with an LLM that answers."""
    upstream.accept()
    upstream.behave(good)
    with httpx.Client(base_url=edge.url, timeout=10.0) as client:

        def decision() -> str:
            found: str = client.post("/v1/classify", json={"inputs": ODD}).json()["outputs"][0]["decision"]
            return found

        eventually(lambda: decision() == "deferred", "a healthy pair", 15.0)


@dataclass(frozen=True)
class Fault:
    script: Script
    reasons: frozenset[str]
    words: str


def bad(name: str, script: Script, reason: str, words: str) -> object:
    # Once the breaker is open nothing is asked, and answers say so.
    return pytest.param(Fault(script, frozenset({reason, "breaker_open"}), words), id=name)


ERROR = json.dumps({"error": {"message": "no", "code": "insufficient_quota"}}).encode()


@pytest.mark.usefixtures("healed")
@pytest.mark.parametrize(
    "wrong",
    [
        bad("hanging", never_answering, "remote_timeout", "accepts, never answers"),
        bad("dripping", dripping, "remote_timeout", "one byte a second"),
        bad("500", answering(500, b""), "remote_unavailable", "500s"),
        bad("garbage", answering(200, b"\x00\xff<html>"), "remote_bad_answer", "garbage"),
        bad("endless", never_ending, "remote_bad_answer", "an endless body"),
        bad("prose", answering(200, completion("It is about a card.")), "remote_bad_answer", "prose, no label"),
        bad("invented", answering(200, completion('{"label": "lost_wallet"}')), "remote_bad_answer", "invented labels"),
        bad("refusal", answering(200, completion(None, message={"refusal": "no"})), "remote_bad_answer", "refusals"),
        bad("429", answering(429, b"{}", retry_after="1"), "remote_limit", "429 with Retry-After: 1"),
        bad("revoked", answering(401, b'{"error": "revoked"}'), "remote_unavailable", "the key is revoked"),
    ],
)
def test_wrong(wrong: Fault, edge: Service, upstream: Upstream, fault: Row) -> None:
    """An LLM that answers wrongly, late or without end costs no request, and is used again when it is well."""
    with Load(edge.url) as load:
        load.more("deferred")
        upstream.behave(wrong.script)
        load.more("degraded", 20)
        during = set(load.reasons) - {"below_threshold"}
        upstream.behave(good)
        with fault.healing():
            load.more("deferred")
    assert during <= wrong.reasons
    assert during - {"breaker_open"}
    fault.account(load)
    fault.tell(f"LLM: {wrong.words}", f"degraded, {' or '.join(sorted(during))}")


@pytest.mark.usefixtures("healed")
def test_dead(edge: Service, upstream: Upstream, fault: Row) -> None:
    with Load(edge.url) as load:
        load.more("deferred")
        upstream.refuse()
        load.more("degraded", 20)
        with fault.healing():
            upstream.accept()
            upstream.behave(good)
            load.more("deferred")
    assert set(load.reasons) <= {"below_threshold", "remote_unavailable", "breaker_open", "remote_bad_answer"}
    fault.account(load)
    fault.tell("LLM: refuses connections", "degraded, remote_unavailable, then breaker_open")


@pytest.mark.usefixtures("healed")
def test_out_of_budget(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Nothing is sent for a while, and what a client gets says why."""
    with Load(edge.url) as load:
        load.more("deferred")
        upstream.behave(answering(429, ERROR))
        load.more("degraded", 20)
        asked = len(upstream.server.requests)
        load.more("degraded", 20)
        assert len(upstream.server.requests) == asked
    assert set(load.reasons) == {"below_threshold", "remote_limit"}
    fault.account(load)
    fault.tell("LLM: the account has no quota left", "degraded, remote_limit; nothing is sent for 30 s")
