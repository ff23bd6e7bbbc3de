"""Refused before it is parsed: the documented answer to the plain case, and nothing else is touched."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from support.load import EASY
from support.processes import eventually, spawn_edge, stopping

from service.api.problems import Problem
from service.server.shedding import shed

BODY = b'{"inputs": "what is my balance"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
POST = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n"


def test_a_plain_request_gets_the_documented_refusal() -> None:
    answer = shed(POST + LENGTH + b"X-Request-Id: Mine-1\r\n\r\n" + BODY, 7)
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 7\r\n" in head
    assert head.endswith(b"x-request-id: Mine-1")
    assert f"content-length: {len(body)}\r\n".encode() in head
    problem = Problem.model_validate_json(body)
    assert (problem.status, problem.type, problem.request_id) == (429, "urn:gatekeeper:problem:overloaded", "Mine-1")


def test_an_id_is_made_up_where_none_or_a_strange_one_is_given() -> None:
    ids = set()
    for header in (b"", b"", b"x-request-id: a b\r\n", b"x-request-id: " + b"a" * 129 + b"\r\n"):
        answer = shed(POST + header + LENGTH + b"\r\n" + BODY, 1)
        assert answer is not None
        ids.add(json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"])
    assert len(ids) == 4


@pytest.mark.parametrize(
    "data",
    [
        POST + b"\r\n",
        POST + LENGTH + b"\r\n" + BODY[:-1],
        POST + LENGTH + b"\r\n" + BODY + POST,
        POST + LENGTH,
        POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
        POST + LENGTH + b"expect: 100-continue\r\n\r\n" + BODY,
        POST + LENGTH + b"Connection: close\r\n\r\n" + BODY,
        POST.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY,
        POST.replace(b"POST", b"GET") + LENGTH + b"\r\n" + BODY,
        POST.replace(b"classify", b"models") + LENGTH + b"\r\n" + BODY,
        BODY,
        b"",
    ],
)
def test_all_else_goes_the_usual_way(data: bytes) -> None:
    assert shed(data, 1) is None


@pytest.mark.slow
async def test_an_overloaded_edge_refuses_some_answers_the_rest_and_keeps_its_connections(tmp_path: Path) -> None:
    """Sixty at once to a model that is too slow for them: 200 or 429 each, then all is as before."""
    edge = spawn_edge(
        tmp_path, "http://127.0.0.1:9", fault="slow:0.05", MAX_BATCH_ITEMS="2", MAX_QUEUE_WAIT_MS="100", RUNNER="thread"
    )
    with stopping(edge):
        edge.wait_ready()
        # Shorter than the edge keeps an idle connection: neither side closes one that the other is about to use.
        limits = httpx.Limits(max_connections=60, max_keepalive_connections=60, keepalive_expiry=2.0)
        async with httpx.AsyncClient(base_url=edge.url, limits=limits, timeout=30.0) as client:

            async def ask(number: int) -> int:
                headers = {"x-request-id": f"id-{number}"}
                response = await client.post("/v1/classify", json={"inputs": EASY}, headers=headers)
                assert response.headers["x-request-id"] == f"id-{number}"
                assert response.headers["x-content-type-options"] == "nosniff"
                if response.status_code == 429:
                    assert int(response.headers["retry-after"]) >= 1
                    assert response.json()["request_id"] == f"id-{number}"
                return response.status_code

            statuses = [status for _ in range(3) for status in await asyncio.gather(*map(ask, range(60)))]
            assert {200, 429} == set(statuses)
            assert (await client.get("/readyz")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert f'gatekeeper_rejected_total{{reason="overloaded"}} {statuses.count(429)}.0' in metrics
        with httpx.Client(base_url=edge.url) as client:
            eventually(lambda: client.post("/v1/classify", json={"inputs": EASY}).status_code == 200, "an answer")
