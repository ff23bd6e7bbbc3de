"""The load test and the benchmark, run as commands against real servers. Locust patches what it is loaded into: it
stays in child processes."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes import ROOT, Service, free_port, spawn_edge, stopping

from loadtests.common.answers import ContractBroken, read_answer, read_refusal

NOBODY = "http://127.0.0.1:9"
SUMMARY = re.compile(
    r"^deferral ratio ([\d.]+|unknown) \(([\d,]+) of ([\d,]+) items\), degraded ([\d,]*\d)", re.MULTILINE
)
OUTPUT = {
    "label": "balance",
    "score": 0.9,
    "confidence": 0.9,
    "decision": "accepted",
    "answered_by": "small",
    "reason": None,
    "small": {"label": "balance", "score": 0.9},
}
ANSWER = {"id": "a", "model": "m", "policy_version": 1, "threshold": 0.5, "outputs": [OUTPUT]}
PROBLEM = {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "no"}
DEFERRED = {"decision": "deferred", "answered_by": "large", "reason": "below_threshold"}
DEGRADED = {"decision": "degraded", "reason": "remote_timeout"}


@pytest.fixture(scope="module")
def lone_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An edge without a large model: whatever the gate defers is answered degraded."""
    edge = spawn_edge(tmp_path_factory.mktemp("lone-edge"), NOBODY)
    with stopping(edge):
        edge.wait_ready()
        yield edge


class Liar(BaseHTTPRequestHandler):
    """Ready, and its every answer is a 200 without a decision."""

    protocol_version = "HTTP/1.1"
    output: ClassVar = {name: value for name, value in OUTPUT.items() if name != "decision"}

    def do_GET(self) -> None:
        self._send(b"ready\n")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(json.dumps(ANSWER | {"outputs": [self.output]}).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def liar() -> Iterator[str]:
    with serving(Liar) as url:
        yield url


def start(*command: str, timeout_s: float = 50, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def counted(edge: Service) -> tuple[int, int, int]:
    """(items, of them chosen for deferral, of them degraded) without an override, by the edge's own count."""
    items = chosen = degraded = 0.0
    for family in text_string_to_metric_families(httpx.get(f"{edge.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "gatekeeper_items_total" and sample.labels["override"] == "none":
                items += sample.value
                chosen += sample.value * (sample.labels["decision"] in ("deferred", "degraded", "failed"))
                degraded += sample.value * (sample.labels["decision"] == "degraded")
    return int(items), int(chosen), int(degraded)


def processes_that_mention(path: Path) -> list[str]:
    """Those whose environment holds the path: the children of a command that was given it (Linux; elsewhere none)."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if str(path).encode() in environment.read_bytes():
                found.append(environment.parent.name)
    return found


@pytest.mark.slow
def test_a_run_reports_the_deferral_ratio_that_the_edge_counted(lone_edge: Service, tmp_path: Path) -> None:
    before = counted(lone_edge)
    run = start(
        *("loadtests.users.run", "--url", lone_edge.url, "--users", "2", "--duration", "3", "--output", str(tmp_path))
    )
    assert run.returncode == 0, run.stdout + run.stderr
    items, chosen, degraded = (now - then for now, then in zip(counted(lone_edge), before, strict=True))
    assert items > chosen > 0
    said = SUMMARY.search(run.stdout)
    assert said is not None, run.stdout
    assert said.groups() == (f"{chosen / items:.2f}", f"{chosen:,}", f"{items:,}", f"{degraded:,}")
    assert "Aggregated" in run.stderr, "Locust's own summary"
    with (tmp_path / "loadtest_gatekeeper.csv").open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert rows.keys() == {"easy", "hard", "odd", "list", "all"}
    assert int(rows["all"]["items"]) == items
    assert float(rows["all"]["deferral_ratio"]) == pytest.approx(chosen / items, abs=1e-6)
    assert float(rows["easy"]["deferral_ratio"]) < 0.5 < float(rows["odd"]["deferral_ratio"])


@pytest.mark.slow
def test_with_workers_the_ratio_is_over_the_items_of_all_of_them(lone_edge: Service, tmp_path: Path) -> None:
    port = str(free_port())
    run = start(
        *("locust", "--locustfile", "loadtests/locustfile.py", "--headless", "--host", lone_edge.url),
        *("--processes", "2", "--users", "2", "--spawn-rate", "2", "--run-time", "2s", "--stop-timeout", "5"),
        *("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port),
        *("--only-summary", "--csv", str(tmp_path / "two"), "--json-file", str(tmp_path / "two")),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(SUMMARY.findall(run.stdout)) == 1, "the workers leave it to the master"
    with (tmp_path / "two_gatekeeper.csv").open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    requests = {entry["name"]: entry["num_requests"] for entry in json.loads((tmp_path / "two.json").read_text())}
    # A worker's last report may come too late, for Locust's own numbers as for ours: they are in it together.
    for kind in ("easy", "hard", "odd"):
        assert int(rows[kind]["items"]) == requests[f"/v1/classify ({kind})"] > 0


def test_a_url_where_nothing_answers_is_one_clear_line_and_exit_code_2() -> None:
    run = start("loadtests.users.run", "--url", f"http://127.0.0.1:{free_port()}")
    assert run.returncode == 2
    assert run.stdout == ""
    assert re.fullmatch(r"loadtest: nothing answers at http://127\.0\.0\.1:\d+: .*`make serve`\n", run.stderr)


@pytest.mark.slow
def test_answers_that_break_the_contract_fail_the_run(liar: str, tmp_path: Path) -> None:
    run = start("loadtests.users.run", "--url", liar, "--users", "4", "--duration", "3", "--output", str(tmp_path))
    assert run.returncode == 1, run.stdout + run.stderr
    assert "outputs.*.decision: Field required" in run.stderr
    assert "a malformed request was answered with 200" in run.stderr
    said = SUMMARY.search(run.stdout)
    assert said is not None
    assert said.groups() == ("unknown", "0", "0", "0")


def test_the_bench_without_wrk_names_it_and_exits_with_2(tmp_path: Path) -> None:
    run = start("loadtests.compare.bench", PATH=str(tmp_path))
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "wrk is not installed" in run.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_bench_measures_both_paths_and_leaves_no_server_behind(tmp_path: Path) -> None:
    run = start(
        *("loadtests.compare.bench", "--skip-peers", "--rounds", "1", "--seconds", "1", "--output", str(tmp_path)),
        *("--markdown", str(tmp_path / "tables.md"), "--plot", str(tmp_path / "plot.png")),
        timeout_s=110,
        TMPDIR=str(tmp_path),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not processes_that_mention(tmp_path)
    (path,) = tmp_path.glob("bench-*.json")
    paths = {one["path"]: one for one in json.loads(path.read_text())["paths"]}
    servers = {"accept": ("bare", "gatekeeper"), "defer": ("direct", "gatekeeper")}
    for name, pair in servers.items():
        measured = paths[name]["measurements"]
        assert [(one["connections"], one["server"]) for one in measured] == [
            (connections, server) for connections in (1, 32, 128) for server in pair
        ]
        assert all(one["requests"] > 0 and one["memory_mib"] > 1 and one["cpu_s_per_1000"] >= 0 for one in measured)
        assert paths[name]["missing"] == {}
    assert "of the bare route at 32 connections" in run.stdout
    assert "ms added at 1 connection" in run.stdout
    assert "| 32 | bare |" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("output", [{}, DEFERRED, DEGRADED, {"top": [], "truncated": True}, {"small": None}])
def test_an_answer_as_promised_is_read(output: dict[str, Any]) -> None:
    body = json.dumps(ANSWER | {"outputs": [OUTPUT, OUTPUT | output]}).encode()
    assert read_answer(body, 2).outputs[1].decision == output.get("decision", "accepted")


@pytest.mark.parametrize(
    "output",
    [
        *({name: ...} for name in OUTPUT),  # missing
        {"score": 1.5},
        {"score": "0.9"},
        {"confidence": None},
        {"confidence": True},
        {"decision": "failed"},
        {"answered_by": "nobody"},
        DEFERRED | {"answered_by": "small"},
        DEGRADED | {"answered_by": "large"},
        DEGRADED | {"reason": None},
        {"small": {"label": "balance"}},
        {"label": ""},
    ],
    ids=str,
)
def test_an_output_that_breaks_the_contract_is_named(output: dict[str, Any]) -> None:
    broken = {name: value for name, value in (OUTPUT | output).items() if value is not ...}
    with pytest.raises(ContractBroken, match=r"^outputs\.\*"):
        read_answer(json.dumps(ANSWER | {"outputs": [broken]}).encode(), 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *(
            (json.dumps({key: ANSWER[key] for key in ANSWER if key != name}), f"{name}: Field required")
            for name in ANSWER
        ),
        (json.dumps(ANSWER | {"outputs": []}), "the number of outputs"),
        (json.dumps(ANSWER | {"outputs": [OUTPUT, OUTPUT]}), "the number of outputs"),
        ("[]", "the body: "),
        ("<html>", "the body is not JSON"),
        ("", "the body is not JSON"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_told(body: str, message: str) -> None:
    with pytest.raises(ContractBroken, match=f"^{message}"):
        read_answer(body.encode(), 1)


def test_a_refusal_is_a_4xx_with_a_problem_document() -> None:
    body, media_type = json.dumps(PROBLEM).encode(), "application/problem+json; charset=utf-8"
    assert read_refusal(400, media_type, body).detail == "no"
    for status, kind, content in (
        (200, media_type, body),
        (500, media_type, body),
        (422, media_type, body),
        (400, "application/json", body),
        (400, None, body),
        (400, media_type, b"{}"),
        (400, media_type, None),
    ):
        with pytest.raises(ContractBroken):
            read_refusal(status, kind, content)


def test_loadtests_import_nothing_of_ours() -> None:
    """They speak HTTP: what they find out holds for whatever serves the contract.

    The exception is what runs in the processes of other servers: they are to serve the same bundle, so they load it.
    """
    paths = sorted((ROOT / "loadtests").rglob("*.py"))
    assert paths
    for path in paths:
        forbidden = {"service"} if path.parent.name == "peers" else {"service", "models"}
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
                names = [node.module or ""]
            ours = [name for name in names if name.partition(".")[0] in forbidden]
            assert not ours, f"{path.name}:{node.lineno} imports {ours[0]}"
