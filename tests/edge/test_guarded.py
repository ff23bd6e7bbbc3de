"""Guarded services, as real processes: keys, scopes, budgets, headers, and no secret anywhere."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from support.answers import problem
from support.processes import ROOT, TOKEN, Service, admin, eventually, free_port, spawn, spawn_edge, stopping
from support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

EASY = "what is my checking account balance"
MARKER = "zebra-marker-in-a-text"
KEYS = {name: f"gk_{name}_{name[0] * 43}" for name in ("plain", "boss", "slow", "other", "careless")}
WRONG = "gk_plain_" + "w" * 43


def entry(name: str, rest: str = "") -> str:
    return f"{name}:{hashlib.sha256(KEYS[name].encode()).hexdigest()}{rest}"


LINE = ",".join(
    (
        entry("plain"),
        entry("boss", ":classify+override"),
        entry("slow", "::10/hour"),
        entry("other", ":override"),
        entry("careless", "::4/hour"),
    )
)


@dataclass
class Guarded:
    """An edge that asks for keys."""

    service: Service

    def classify(self, key: str | None, inputs: object = EASY, **parameters: object) -> httpx.Response:
        headers = {} if key is None else {"x-api-key": key}
        body = {"inputs": inputs, "parameters": parameters}
        return httpx.post(f"{self.service.url}/v1/classify", json=body, headers=headers, timeout=20.0)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, large: Service) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    service = spawn_edge(directory, large.url, API_KEYS=LINE, LOG_LEVEL="debug", ACCESS_LOG="true")
    with stopping(service):
        service.wait_ready()
        yield Guarded(service)


def test_a_key_is_asked_for_and_let_in(guarded: Guarded) -> None:
    for key in (None, WRONG, "gk_nobody_" + "x" * 43, TOKEN):
        response = guarded.classify(key)
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.classify(KEYS["plain"]).status_code == 200
    headers = {"authorization": f"bearer {KEYS['plain']}"}
    assert httpx.get(f"{guarded.service.url}/v1/models", headers=headers).status_code == 200
    problem(httpx.get(f"{guarded.service.url}/v1/models"), 401, "unauthorized")
    problem(guarded.classify(KEYS["other"]), 403, "forbidden")


def test_an_override_needs_its_scope(guarded: Guarded) -> None:
    for parameters in ({"threshold": 0.0}, {"route": "large"}, {"route": "small"}):
        problem(guarded.classify(KEYS["plain"], **parameters), 403, "forbidden")
        assert guarded.classify(KEYS["boss"], **parameters).status_code == 200
    assert guarded.classify(KEYS["plain"], top_k=3, route="auto").status_code == 200


def test_what_is_public_stays_public(guarded: Guarded) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert httpx.get(guarded.service.url + path).status_code == 200
    with httpx.Client(base_url=guarded.service.url) as client:
        assert admin(client, "GET", "policy").status_code == 200
        headers = {"authorization": f"Bearer {KEYS['boss']}"}
        assert client.get("/admin/v1/policy", headers=headers).status_code == 401


def test_a_budget_is_spent_by_items_and_told_in_headers(guarded: Guarded) -> None:
    first = guarded.classify(KEYS["slow"], [EASY] * 7)
    assert first.status_code == 200
    assert first.headers["ratelimit-policy"] == '"items";q=10;w=3600;qu="items"'
    refused = guarded.classify(KEYS["slow"], [EASY] * 4)
    problem(refused, 429, "rate-limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit"] == f'"items";r=3;t={refused.headers["retry-after"]}'
    assert guarded.classify(KEYS["slow"], [EASY] * 3).status_code == 200
    problem(guarded.classify(KEYS["slow"], [EASY] * 11), 413, "too-large")
    assert "ratelimit-policy" not in guarded.classify(KEYS["plain"]).headers
    metrics = httpx.get(f"{guarded.service.url}/metrics").text
    assert 'gatekeeper_key_items_total{key="slow"} 10.0' in metrics
    assert 'gatekeeper_key_items_total{key="other"} 0.0' in metrics, "there before its first item"
    assert 'gatekeeper_rejected_total{reason="rate-limited"} 1.0' in metrics


def test_an_invalid_request_costs_an_item_and_a_spent_budget_reads_no_body(guarded: Guarded) -> None:
    key = KEYS["careless"]
    for inputs, route in (([], "auto"), ([1, 2, 3], "auto"), (EASY, "middle"), (EASY, "large")):
        assert guarded.classify(key, inputs, route=route).status_code in (422, 403)
    problem(guarded.classify(key, []), 429, "rate-limited")
    with socket.create_connection(("127.0.0.1", guarded.service.port), timeout=10.0) as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: 4000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
    metrics = httpx.get(f"{guarded.service.url}/metrics").text
    assert 'gatekeeper_key_items_total{key="careless"} 0.0' in metrics, "nothing was let in"


def test_a_refused_body_is_not_waited_for(guarded: Guarded) -> None:
    """Before the body: an answer comes although the client has sent none of it."""
    with socket.create_connection(("127.0.0.1", guarded.service.port), timeout=10.0) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer gk_plain_\xff\xfe\xd0\xba",
        "Authorization: Bearer gk_plain_ключ".encode(),
        b"Authorization: Bearer gk_plain_" + b"x" * 30_000,
        b"Authorization:",
        b"Authorization: Basic Zm9vOmJhcg==",
        b"Authorization: Bearer " + KEYS["plain"].encode() + b"\r\nAuthorization: Bearer " + KEYS["plain"].encode(),
        b"x-api-key: " + KEYS["plain"].encode() + b"\r\nx-api-key: " + WRONG.encode(),
    ],
)
def test_a_strange_header_is_refused_and_the_service_goes_on(guarded: Guarded, header: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.service.port), timeout=10.0) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n" + header + b"\r\ncontent-length: 2\r\n\r\n{}")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    assert guarded.classify(KEYS["plain"]).status_code == 200


def test_a_header_without_end_is_refused(guarded: Guarded) -> None:
    with socket.create_connection(("127.0.0.1", guarded.service.port), timeout=10.0) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-api-key: gk_" + b"x" * 100_000)
        connection.sendall(b"\r\ncontent-length: 2\r\n\r\n{}")
        assert connection.recv(4096)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 431")
    assert guarded.classify(KEYS["plain"]).status_code == 200


SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


def test_every_answer_of_both_services_carries_the_security_headers(guarded: Guarded, large: Service) -> None:
    body = {"inputs": EASY}
    for url in (guarded.service.url, large.url):
        for path in ("/livez", "/metrics", "/docs", "/openapi.json", "/nothing", "/v1/models", "/admin/v1/policy"):
            answer = httpx.get(url + path)
            assert SECURITY.items() <= answer.headers.items(), path
            kept = {"/docs": "no-cache"}.get(path) if not path.startswith(("/v1", "/admin")) else "no-store"
            assert answer.headers.get("cache-control") == kept, path
        for answer in (httpx.post(f"{url}/v1/classify", json=body), httpx.put(f"{url}/v1/classify")):
            assert SECURITY.items() <= answer.headers.items()
            assert answer.headers["cache-control"] == "no-store"
    assert guarded.classify(KEYS["plain"]).headers["cache-control"] == "no-store"


def test_no_secret_and_no_text_is_logged_counted_or_shown(guarded: Guarded) -> None:
    """The whole log at level debug, the metrics, the status and every answer."""
    long = "gk_plain_" + "v" * 500
    answers = [
        guarded.classify(key, [EASY, f"{MARKER} {key}"], **parameters)
        for key in (*KEYS.values(), WRONG, long, None)
        for parameters in ({}, {"threshold": 0.5}, {"threshold": "x"}, {"route": "large"}, {"fast": 1})
    ]
    url = f"{guarded.service.url}/v1/classify"
    headers = {"x-api-key": KEYS["boss"]}
    answers.append(httpx.post(url, content=f'{{"inputs": "{MARKER}', headers=headers))
    answers.append(httpx.post(url, params={"key": MARKER}, json={}, headers=headers))
    with httpx.Client(base_url=guarded.service.url) as client:
        answers.append(admin(client, "GET", "status"))
        answers.append(client.get("/metrics"))
    assert {answer.status_code for answer in answers} == {200, 400, 401, 403, 422, 429}
    # The id of one of ours is in the log: so are all before it.
    last = answers[-1].headers["x-request-id"]
    eventually(lambda: last in guarded.service.log.read_text(), "the last access line")
    log = guarded.service.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"boss", "plain", None} <= {line["key"] for line in lines if line["event"] == "request"}
    everything = log + "".join(answer.text + str(answer.headers) for answer in answers)
    command = Path(f"/proc/{guarded.service.process.pid}/cmdline").read_text()
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS.values()]
    secrets = [key.split("_")[2] for key in (*KEYS.values(), WRONG)]
    for secret in (*secrets, "v" * 43, TOKEN, *hashes, MARKER):
        assert secret not in everything + command, secret[:8]


def holds(operation: schemathesis.schemas.APIOperation, headers: dict[str, str]) -> None:
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]

    @given(case=operation.as_strategy())
    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def answers_as_documented(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, checks=checks)

    answers_as_documented()


def test_the_document_of_a_guarded_edge_is_true(guarded: Guarded) -> None:
    """With a key, without one, and with one of a lesser scope."""
    schema = schemathesis.openapi.from_url(f"{guarded.service.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    operations = [operation for operation in found if operation.path.startswith("/v1/")]
    assert len(operations) == 2
    for operation in operations:
        assert operation.definition.raw["security"] == [{"bearer": []}, {"x-api-key": []}, {}]
        for headers in ({"authorization": f"Bearer {KEYS['boss']}"}, {"authorization": f"Bearer {KEYS['plain']}"}, {}):
            holds(operation, headers)


# ---- other ways to run it


@pytest.mark.slow
def test_two_edges_count_one_key_together_and_outlive_redis(tmp_path: Path, large: Service) -> None:
    with RedisServer() as server:
        started = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            line = f"{entry('slow', '::10/hour')},{entry('plain', '::1000/second')}"
            started.append(spawn_edge(tmp_path / name, large.url, API_KEYS=line, REDIS_URL=server.url))
        with stopping(*started):
            edges = [Guarded(service) for service in started]
            for edge in edges:
                edge.service.wait_ready()
            first, second = edges
            assert first.classify(KEYS["slow"], [EASY] * 6).status_code == 200
            assert second.classify(KEYS["slow"], [EASY] * 5).status_code == 429
            assert second.classify(KEYS["slow"], [EASY] * 4).status_code == 200
            for edge in edges:
                problem(edge.classify(KEYS["slow"]), 429, "rate-limited")

            def shared(edge: Guarded) -> bool:
                return "gatekeeper_rate_limits_shared 1.0" in httpx.get(f"{edge.service.url}/metrics").text

            assert all(shared(edge) for edge in edges)
            server.stop()
            for edge in edges:
                assert [edge.classify(KEYS["plain"]).status_code for _ in range(10)] == [200] * 10
                assert not shared(edge)
                assert edge.service.log.read_text().count("each replica counts alone") == 1
            server.start()
            for edge in edges:
                eventually(lambda edge=edge: shared(edge), "counting together again", 10.0)  # type: ignore[misc]
            assert [edge.service.terminate() for edge in edges] == [0, 0]


@pytest.mark.slow
def test_a_key_taken_out_of_the_file_is_refused_without_a_restart(tmp_path: Path, bundles: Path) -> None:
    """On the large-model service, whose variables have their own names."""
    path = tmp_path / "keys.json"

    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "service.cli", "keys", *arguments, "--file", str(path)]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    small = str(bundles / "clinc150-small")  # quick to start
    first, second = keys("new", "first"), keys("new", "second")
    service = spawn("serve-large", tmp_path / "large.log", LARGE_API_KEYS_FILE=str(path), LARGE_BUNDLE=small)
    with stopping(service):
        service.wait_ready()
        guarded = Guarded(service)
        assert guarded.classify(first).status_code == 200
        keys("remove", "first")
        eventually(lambda: guarded.classify(first).status_code == 401, "refused")
        assert guarded.classify(second).status_code == 200
        third = keys("new", "third", "--limit", "2/hour")
        eventually(lambda: guarded.classify(third).status_code == 200, "let in")
        assert guarded.classify(third, [EASY, EASY]).status_code == 429
        path.write_text("{")
        eventually(lambda: "the old ones stay" in service.log.read_text(), "told")
        assert guarded.classify(second).status_code == 200


def test_bad_keys_stop_the_start_in_one_line(tmp_path: Path, large: Service) -> None:
    for variable, value, says in (
        ("API_KEYS", "{}", "GATEKEEPER_API_KEYS"),
        ("API_KEYS", KEYS["plain"], "only its hash belongs here"),
        ("API_KEYS_FILE", str(tmp_path / "none.json"), "cannot be read"),
    ):
        service = spawn_edge(tmp_path, large.url, **{variable: value})
        with stopping(service):
            assert service.process.wait(40) == 2
        log = service.log.read_text()
        line = log.strip().splitlines()[-1]
        assert line.startswith("gatekeeper: ")
        assert says in line
        assert "Traceback" not in log
        assert KEYS["plain"] not in log
        service.log.unlink()


@pytest.mark.slow
def test_up_guards_the_edge_alone(tmp_path: Path, bundles: Path) -> None:
    variables = {"API_KEYS": entry("plain"), "LARGE_BUNDLE": str(bundles / "clinc150-small")}
    port, large_port, output = free_port(), free_port(), tmp_path / "up.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--large-port", str(large_port)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            | {f"GATEKEEPER_{name}": value for name, value in variables.items()},
            stdout=stream,
            stderr=stream,
        )
    service = Service(process, port, output)
    try:
        eventually(lambda: "Ctrl-C stops both." in output.read_text() or process.poll() is not None, "ready", 60.0)
        guarded = Guarded(service)
        assert guarded.classify(None).status_code == 401
        answer = guarded.classify(KEYS["plain"], "asdf qwer zxcv").json()
        assert answer["outputs"][0]["answered_by"] == "large"
        assert httpx.get(f"http://127.0.0.1:{large_port}/v1/models").status_code == 200
        assert "$KEY" in output.read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0
