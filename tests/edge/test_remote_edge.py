"""A whole edge before several large models: settings, key, status and metrics."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from support.faulty_server import Turn, serving
from support.load import ODD
from support.processes import TOKEN, admin, eventually, free_port, spawn, spawn_edge, stopping
from support.remotes import answering, refusing_url, remote_to

from service.remote import labels
from service.settings import EdgeSettings

KEY = "the-key-of-the-large-model"


async def large(turn: Turn) -> None:
    if turn.request_line.startswith("GET"):
        await turn.answer(200, json.dumps({"data": [{"labels": ["another", "set"]}]}).encode())
    else:
        await turn.classify({"set-cookie": "large=1"})


async def test_one_of_two_large_models_down_costs_no_answer_and_the_status_says_which(tmp_path: Path) -> None:
    """The key reaches the large model and nothing else; a client's authorization and cookies reach nothing."""
    with refusing_url() as away:
        async with serving(large) as server:
            edge = spawn_edge(tmp_path, f"{away}, {server.url}/", REMOTE_KEY=KEY, BREAKER_OPEN_S="600")
            with stopping(edge):
                await asyncio.to_thread(edge.wait_ready)
                client_headers = {"authorization": "Bearer of-a-client", "cookie": "client=1"}
                async with httpx.AsyncClient(base_url=edge.url, headers=client_headers, timeout=20.0) as client:
                    for _ in range(6):
                        response = await client.post("/v1/classify", json={"inputs": ODD})
                        (output,) = response.json()["outputs"]
                        assert (output["decision"], output["label"]) == ("deferred", ODD)
                        assert "set-cookie" not in response.headers
                    bearer = {"authorization": f"Bearer {TOKEN}"}
                    status = await client.get("/admin/v1/status", headers=bearer)
                    metrics = (await client.get("/metrics")).text
                sent = [turn.headers for turn in server.requests]
                answered = {
                    "url": server.url,
                    "breaker_open": False,
                    "in_flight": 0,
                    "labels_match": False,
                    "labels_told": 2,
                    "labels_shared": 0,
                    "is_self": False,
                }
                unmet = {"labels_match": None, "labels_told": None, "labels_shared": None}
    assert {headers["authorization"] for headers in sent} == {f"Bearer {KEY}"}
    assert not any("cookie" in headers for headers in sent)
    assert status.json()["remote"] == {
        "url": f"{away},{server.url}",
        "breaker_open": False,
        "labels_match": False,
        "foreign_labels": "allow",
        "endpoints": [{**answered, "url": away, "breaker_open": True, **unmet}, answered],
    }
    lines = set(metrics.splitlines())
    assert "gatekeeper_remote_breaker_open 0.0" in lines
    for url, is_open in ((away, "1.0"), (server.url, "0.0")):
        name = url.removeprefix("http://")
        assert f'gatekeeper_remote_endpoint_breaker_open{{endpoint="{name}"}} {is_open}' in lines
    log = (tmp_path / "edge.log").read_text()
    assert "labels of the large model differ" in log
    assert '"only_theirs": "another"' in log
    assert "GATEKEEPER_REMOTE_FOREIGN_LABELS=allow" in log
    for text in (log, status.text, metrics):
        assert KEY not in text


async def test_a_server_that_tells_no_labels_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(labels, "RETRY_S", (0.001, 0.004))
    script = answering(200, b'{"data":[' + b"0," * 10_000 + b"0]}")
    async with serving(script) as server, remote_to(server.url) as remote:
        await remote.endpoints[0].get_to_know()
        assert remote.endpoints[0].wire.facts.labels_match is None
    assert len(server.requests) == labels.ATTEMPTS
    assert caplog.messages == [
        "the large model does not tell its labels: they are not compared, each answer's are checked"
    ]


def test_an_edge_that_is_its_own_large_model_says_so_and_does_not_ask_itself(tmp_path: Path) -> None:
    port = free_port()
    edge = spawn_edge(tmp_path, f"http://127.0.0.1:{port}", port=port)
    with stopping(edge):
        edge.wait_ready()
        log = tmp_path / "edge.log"
        eventually(lambda: "leads back to this edge" in log.read_text(), "told in the log")
        with httpx.Client(base_url=edge.url, timeout=20.0) as client:
            (output,) = client.post("/v1/classify", json={"inputs": ODD}).json()["outputs"]
            (endpoint,) = admin(client, "GET", "status").json()["remote"]["endpoints"]
    assert (output["decision"], output["answered_by"], output["reason"]) == ("degraded", "small", "remote_unavailable")
    assert endpoint["is_self"]


@pytest.mark.slow
def test_what_the_edge_takes_it_can_forward(tmp_path: Path, bundles: Path) -> None:
    """As escapes, 2.2 MB of Chinese would be 4.5 MB, and the large model takes 4 MiB."""
    documents = [f"{number} {'请把我的酒店预订改到下周并告诉我价格' * 420}"[:7_500] for number in range(100)]
    body = json.dumps({"inputs": documents, "parameters": {"route": "large"}}, ensure_ascii=False).encode()
    large_model = spawn("serve-large", tmp_path / "large.log", LARGE_BUNDLE=str(bundles / "clinc150-small"))
    with stopping(large_model):
        large_model.wait_ready()
        edge = spawn_edge(tmp_path, large_model.url)
        with stopping(edge):
            edge.wait_ready()
            response = httpx.post(f"{edge.url}/v1/classify", content=body, timeout=60.0)
    assert len(body) > 2**21
    assert {output["decision"] for output in response.json()["outputs"]} == {"deferred"}


def settings(**values: str) -> EdgeSettings:
    return EdgeSettings(**values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "KEY", "CA_FILE"):
        monkeypatch.delenv(f"GATEKEEPER_REMOTE_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://a:1", ["http://a:1/"]),
        ("http://a:1,https://b/path", ["http://a:1/", "https://b/path"]),
        (" http://a:1 , http://b:1 ", ["http://a:1/", "http://b:1/"]),
    ],
)
def test_the_remote_is_one_url_or_several_with_commas(
    text: str, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [str(url) for url in settings(remote_url=text).remote_url] == urls
    monkeypatch.setenv("GATEKEEPER_REMOTE_URL", text)
    assert [str(url) for url in settings().remote_url] == urls


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "http://a,", "a:1", "ftp://a", "http://a,http://a/", "http://user:secret@a"),
        *("http://a,http://:secret@b", "http://a?secret=1", "http://a#secret"),
    ],
)
def test_a_remote_that_cannot_be_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(remote_url=text)
    (error,) = refused.value.errors()
    assert error["loc"] == ("remote_url",)
    assert "secret" not in error["msg"]


@pytest.mark.parametrize("key", ["", "two words", "line\r\nx-evil: 1", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="visible ASCII"):
        settings(remote_key=key)


def test_the_key_is_not_shown_with_the_settings() -> None:
    shown = settings(remote_key=KEY)
    assert KEY not in repr(shown)
    assert KEY not in shown.model_dump_json()
