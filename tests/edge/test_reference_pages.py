"""/docs, /redoc and / in a real Chromium that reaches this machine alone, also behind a proxy that strips a prefix."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from support.answers import problem
from support.processes import Service, free_port, spawn_edge, stopping

from docs.browser import chromium, find_chromium
from service.api.docs import PAGES

PROGRAM = find_chromium()
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed")
PATHS = {"/docs": "#swagger .opblock", "/redoc": "#redoc [role=menuitem]"}
LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WATCH = (
    "document.addEventListener('securitypolicyviolation', (e) => console.error('violation of ' + e.violatedDirective))"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with chromium(PROGRAM, LOOPBACK) as browser:
        yield browser


class Visitor:
    """Somebody with a browser; `faults` has what the page complained of, `asked` what it asked for."""

    def __init__(self, browser: Browser) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_context().new_page()
        self.page.add_init_script(WATCH)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        self.page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    visitor = Visitor(browser)
    yield visitor
    visitor.page.context.close()
    assert visitor.faults == []


class Stripping(BaseHTTPRequestHandler):
    """A proxy for what lies below /gate, which the service behind it does not hear of."""

    protocol_version = "HTTP/1.1"
    behind = ""

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["content-length"])))

    def _pass_on(self, body: bytes) -> None:
        if not self.path.startswith("/gate/"):
            answer = httpx.Response(404)
        else:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
            address = self.behind + self.path.removeprefix("/gate")
            answer = httpx.request(self.command, address, content=body, headers=headers, trust_env=False)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def proxy(edge: Service) -> Iterator[str]:
    handler = type("ToEdge", (Stripping,), {"behind": edge.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/gate"
        server.shutdown()


def shows_its_operations(visitor: Visitor, base: str, path: str) -> None:
    visitor.page.goto(base + path)
    expect(visitor.page.locator(PATHS[path]).first).to_be_visible(timeout=20_000)
    expect(visitor.page.locator("main")).to_contain_text("GET")
    visitor.page.wait_for_load_state("networkidle")  # what comes late, such as a logo, is asked for too
    assert [url for url in visitor.asked if not url.startswith((f"{base}/", "data:"))] == []


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("path", PATHS)
def test_the_pages_need_nobody_else(edge: Service, large: Service, visitor: Visitor, path: str) -> None:
    for service in (edge, large):
        visitor.asked.clear()
        shows_its_operations(visitor, service.url, path)


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("path", PATHS)
def test_the_pages_work_behind_a_prefix(proxy: str, visitor: Visitor, path: str) -> None:
    shows_its_operations(visitor, proxy, path)


@pytest.mark.slow
@needs_chromium
def test_a_request_can_be_tried_behind_a_prefix(proxy: str, visitor: Visitor) -> None:
    """Swagger UI sends it to where the page came from, prefix and all."""
    shows_its_operations(visitor, proxy, "/docs")
    operation = visitor.page.locator(".opblock", has_text="/livez")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_have_text(re.compile("200"))
    assert visitor.asked[-1] == f"{proxy}/livez"


@needs_chromium
def test_the_front_door_leads_to_the_console_behind_a_prefix_too(edge: Service, proxy: str, visitor: Visitor) -> None:
    for base in (edge.url, proxy):
        visitor.page.goto(f"{base}/")
        expect(visitor.page).to_have_url(f"{base}/console")
        expect(visitor.page.locator("#version")).to_have_text(re.compile(r"version \d+"))


def test_the_front_door_of_a_large_model_leads_to_its_api(large: Service) -> None:
    answer = httpx.get(f"{large.url}/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


def test_each_port_has_its_front_door(tmp_path: Path, large: Service) -> None:
    """The console is on the admin port alone and the pages of the API on the main port alone, as before."""
    edge = spawn_edge(tmp_path, large.url, ADMIN_PORT=str(admin_port := free_port()))
    with stopping(edge):
        edge.wait_ready()
        private = f"http://127.0.0.1:{admin_port}"
        assert httpx.get(f"{edge.url}/").headers["location"] == "docs"
        assert httpx.get(f"{private}/").headers["location"] == "console"
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/files/page.js"):
            assert httpx.get(edge.url + path).status_code == 200
            assert httpx.get(private + path).status_code == 404


@pytest.mark.parametrize("path", PATHS)
def test_the_policy_of_the_pages_is_the_consoles(edge: Service, path: str) -> None:
    """No inline script, nothing from elsewhere; of the console's rules only Trusted Types are missing."""
    policies = []
    for page in (path, "/console"):
        answer = httpx.get(edge.url + page)
        rules = answer.headers["content-security-policy"].split(";")
        policies.append(dict(part.strip().partition(" ")[::2] for part in rules))
        assert not re.search(r"<style|style=| on\w+=|<script(?! src=\")|(src|href)=\"(/|https?:)", answer.text)
        assert "unsafe" not in answer.headers["content-security-policy"]
    ours, console = policies
    hashes = re.sub(r" 'sha256-[^']*'", "", ours.pop("style-src"))
    assert console.pop("style-src") == hashes
    assert console | ours == console
    assert set(console) - set(ours) == {"require-trusted-types-for", "trusted-types"}


def test_a_browser_that_has_the_files_is_not_sent_them_again(edge: Service) -> None:
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "page.js", "page.css"):
        first = httpx.get(f"{edge.url}/docs/files/{name}")
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        again = httpx.get(f"{edge.url}/docs/files/{name}", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "../api/docs.py", "%2e%2e/settings.py", "..%2f__init__.py", "a" * 3000]
)
def test_nothing_else_is_found_there(edge: Service, name: str) -> None:
    answer = httpx.get(f"{edge.url}/docs/files/{name}")
    problem(answer, 404)


def test_no_page_of_ours_refers_to_another_host() -> None:
    """But for names that are no addresses: those of XML namespaces."""
    folders = (PAGES, PAGES.parent / "console")
    files = [path for folder in folders for path in folder.iterdir()]
    assert len(files) > 6
    for path in files:
        assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text())) <= {"http://www.w3.org"}, path.name
