"""Pages of other sites and names that are not the service's: what a browser can be tricked into is refused."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from support.processes import Service, eventually, spawn_edge, stopping

from docs.browser import chromium, find_chromium
from service.server.sites import Sites
from service.settings import EdgeSettings, allowed_hosts

PROGRAM = find_chromium()
EASY = {"inputs": "what is my checking account balance"}


@pytest.mark.parametrize(
    ("allowed", "host", "fine"),
    [
        *(
            (None, host, True)
            for host in ("127.0.0.1:8000", "[::1]:8000", "localhost", "edge:8000", "x", "a.localhost")
        ),
        *((None, host, True) for host in ("192.168.7.9", "LOCALHOST:1", "")),
        *((None, host, False) for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "a.b.")),
        *((None, host, False) for host in ("localhost.evil.example", "\xff.example", "1.2.3.4.5")),
        (("edge.example",), "edge.example:443", True),
        (("edge.example",), "EDGE.example.", True),
        (("edge.example",), "127.0.0.1", False),
        (("*",), "evil.example", True),
    ],
)
def test_a_name_is_ours_or_it_is_not(allowed: tuple[str, ...] | None, host: str, fine: bool) -> None:
    sites = Sites(allowed)
    for _ in range(2):
        refused = sites.refusal("GET", {b"host": host.encode("latin-1")})
        assert (refused is None) == fine
    assert sites.refusal("GET", {}) is None, "HTTP/1.0 needs no name"


def test_a_thousand_names_are_not_remembered() -> None:
    sites = Sites(("*",))
    for number in range(1_000):
        assert sites.refusal("GET", {b"host": b"%d" % number}) is None
    assert len(sites._known) <= 64


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://console.example"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8000"}, False),
        ({"sec-fetch-site": "nonsense"}, False),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "http://127.0.0.1:9000"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[bad"}, False),
        ({"origin": "https://proxy.example"}, True),
        ({"origin": "https://127.0.0.1:8000"}, True),
    ],
)
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], fine: bool) -> None:
    sites = Sites(("127.0.0.1", "proxy.example"))
    sent = {b"host": b"127.0.0.1:8000"} | {name.encode(): value.encode() for name, value in headers.items()}
    assert (sites.refusal("POST", sent) is None) == fine
    assert sites.refusal("GET", sent) is None


@pytest.mark.parametrize(
    ("host", "origin", "fine"),
    [
        ("gk.corp", "http://gk.corp:8080", True),
        ("gk.corp:80", "http://gk.corp", True),
        ("gk.corp:443", "https://gk.corp", True),
        ("gk.corp:8000", "http://gk.corp", False),
        ("gk.corp:8000", "http://gk.corp:9000", False),
        ("gk.corp", "http://other.corp", False),
        ("gk.corp", "http://gk.corp.evil.example", False),
    ],
)
def test_a_proxy_may_leave_out_the_port(host: str, origin: str, fine: bool) -> None:
    sites = Sites(("*",))
    assert (sites.refusal("POST", {b"host": host.encode(), b"origin": origin.encode()}) is None) == fine


def test_the_default_goes_by_the_address() -> None:
    def of(**values: str) -> tuple[str, ...] | None:
        return allowed_hosts(EdgeSettings(**values))  # type: ignore[arg-type]

    assert of() is None
    assert of(host="::1") is None
    assert of(host="0.0.0.0") == ("*",)
    assert of(host="0.0.0.0", allowed_hosts=" Edge.example, 10.0.0.7 ") == ("edge.example", "10.0.0.7")
    with pytest.raises(ValidationError, match="without scheme and port"):
        of(allowed_hosts="http://edge.example")


def test_a_foreign_name_is_told_what_to_do_and_health_is_for_whoever_asks(edge: Service) -> None:
    with httpx.Client(base_url=edge.url, headers={"host": "evil.example"}) as client:
        for path in ("/v1/models", "/metrics", "/console", "/console/state", "/docs", "/nothing"):
            refused = client.get(path)
            assert refused.status_code == 421
            assert refused.json()["type"] == "urn:gatekeeper:problem:foreign-host"
            assert "GATEKEEPER_ALLOWED_HOSTS" in refused.json()["detail"]
            assert "x-request-id" in refused.headers
        assert client.post("/v1/classify", json=EASY).status_code == 421
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_the_large_model_service_asks_the_same(large: Service) -> None:
    assert httpx.post(f"{large.url}/v1/classify", json=EASY, headers={"host": "a.evil.example"}).status_code == 421
    refused = httpx.post(f"{large.url}/v1/classify", json=EASY, headers={"origin": "http://evil.example"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:gatekeeper:problem:cross-site")


@contextmanager
def page_of_another_site(script: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<!doctype html><script>{script}</script>".encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed")
@pytest.mark.timeout(120)
def test_a_browser_on_another_page_spends_nothing_here(tmp_path: Path, large: Service) -> None:
    """Chromium itself: a text/plain POST without a preflight, and a name that leads to this machine."""
    edge = spawn_edge(tmp_path, large.url)
    assert PROGRAM is not None
    with stopping(edge), chromium(PROGRAM, "--host-resolver-rules=MAP *.example 127.0.0.1") as browser:
        edge.wait_ready()
        url = f"{edge.url}/v1/classify"
        script = f"fetch('{url}', {{method: 'POST', mode: 'no-cors', body: '{{\"inputs\": \"a\"}}'}})"
        with page_of_another_site(script) as elsewhere, httpx.Client(base_url=edge.url) as client:
            browser.new_page().goto(elsewhere)
            told = 'gatekeeper_rejected_total{reason="cross-site"} 1.0'
            eventually(lambda: told in client.get("/metrics").text, "the page's request is refused")
            answer = browser.new_page().goto(f"http://evil.example:{edge.port}/console")
            assert answer is not None
            assert answer.status == 421
            assert 'gatekeeper_items_total{decision="accepted",model="clinc150-small"' in client.get("/metrics").text
            assert 'gatekeeper_confidence_count{model="clinc150-small"} 0.0' in client.get("/metrics").text
            console = browser.new_page().goto(f"{edge.url}/console")
            assert console is not None
            assert console.status == 200
