"""The shapes of the load test, run as commands against a real edge and a real large model. Both are of images, which
are ready sooner than those of texts; test_loadtests.py has these. No timing is asserted.

One file because all runs go to the same pair, started once, and must leave it as it was.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from playwright.sync_api import Route, expect
from support.processes import ROOT, TOKEN, Service, admin, eventually, free_port, spawn, spawn_edge, stopping
from test_loadtests import Liar, counted, serving, start

from docs.browser import chromium, find_chromium
from loadtests.common.sentences import EASY_LABELS, HARD_LABELS
from loadtests.users.phases import PhaseRow, shown_phase
from loadtests.users.run import main

BUNDLES = ROOT / "models" / "bundles"
NOTE = "as it was"
KEY = "gk_load_of-a-test"


class Pair(NamedTuple):
    edge: Service
    large: Service

    def policy(self) -> dict[str, Any]:
        with httpx.Client(base_url=self.edge.url) as client:
            found: dict[str, Any] = admin(client, "GET", "policy").json()
            return found

    def set_policy(self, **fields: Any) -> None:
        with httpx.Client(base_url=self.edge.url) as client:
            assert admin(client, "PATCH", "policy", json=fields).status_code == 200

    def large_runs(self) -> bool:
        return psutil.Process(self.large.process.pid).status() != psutil.STATUS_STOPPED


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    large = spawn("serve-large", directory / "large.log", LARGE_BUNDLE=str(BUNDLES / "fashion-mnist-large"))
    edge = spawn_edge(directory, large.url, BUNDLE=str(BUNDLES / "fashion-mnist-small"), MAX_QUEUE_WAIT_MS="60000")
    with stopping(edge, large):
        edge.wait_ready()
        large.wait_ready()
        yield Pair(edge, large)


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every run leaves threshold and large model as they were."""
    if "pair" not in request.fixturenames:
        yield
        return
    pair: Pair = request.getfixturevalue("pair")
    pair.set_policy(threshold=0.7, note=NOTE, remote_timeout_s=10.0)
    yield
    assert pair.large_runs()
    assert pair.policy()["threshold"] == 0.7


def run_shape(
    pair: Pair, output: Path, *arguments: str, seconds: str = "3", timeout_s: float = 50
) -> "subprocess.CompletedProcess[str]":
    return start(
        *(
            "loadtests.users.run",
            "--url",
            pair.edge.url,
            "--users",
            "3",
            "--duration",
            seconds,
            "--output",
            str(output),
        ),
        *arguments,
        timeout_s=timeout_s,
        GATEKEEPER_ADMIN_TOKEN=TOKEN,
        GATEKEEPER_DATA_DIR="",
    )


def rows_of(output: Path, name: str, column: str) -> dict[str, dict[str, str]]:
    with (output / f"loadtest_{name}.csv").open() as stream:
        return {row[column]: row for row in csv.DictReader(stream)}


def no_row(stdout: str) -> int:
    found = re.search(r"^([\d,]+) items are in no row", stdout, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


@pytest.mark.slow
def test_a_steady_run_of_images_counts_what_the_edge_counts(pair: Pair, tmp_path: Path) -> None:
    before = counted(pair.edge)
    run = run_shape(pair, tmp_path, "--shape", "steady", seconds="2")
    assert run.returncode == 0, run.stdout + run.stderr
    items, chosen, degraded = (now - then for now, then in zip(counted(pair.edge), before, strict=True))
    kinds = rows_of(tmp_path, "gatekeeper", "name")
    assert kinds.keys() == {"easy", "file", "odd", "list", "all"}
    assert int(kinds["all"]["items"]) == items > chosen > 0
    assert float(kinds["all"]["deferral_ratio"]) == pytest.approx(chosen / items, abs=1e-6)
    assert int(kinds["all"]["degraded"]) == degraded
    assert kinds["odd"]["joint_accuracy"] == ""
    assert 0.5 < float(kinds["easy"]["joint_accuracy"]) <= 1
    (row,) = rows_of(tmp_path, "phases", "phase").values()
    assert int(row["items"]) + no_row(run.stdout) == items


@pytest.mark.slow
def test_a_ramp_has_a_row_for_each_number_of_users(pair: Pair, tmp_path: Path) -> None:
    run = run_shape(pair, tmp_path, "--shape", "ramp", "--processes", "2", "--mix", "easy=3,malformed=1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    rows = rows_of(tmp_path, "phases", "phase")
    assert [row["users"] for row in rows.values()] == ["1", "2", "3"]
    assert all(int(row["requests"]) == int(row["items"]) > 0 and row["failures"] == "0" for row in rows.values())
    total = rows_of(tmp_path, "gatekeeper", "name")["all"]
    assert sum(int(row["items"]) for row in rows.values()) + no_row(run.stdout) == int(total["items"])


@pytest.mark.slow
def test_a_spike_has_a_row_for_each_phase(pair: Pair, tmp_path: Path) -> None:
    run = run_shape(pair, tmp_path, "--shape", "spike", "--mix", "list=1")
    assert run.returncode == 0, run.stdout + run.stderr
    spike = rows_of(tmp_path, "phases", "phase")
    assert [(name, row["users"]) for name, row in spike.items()] == [("before", "1"), ("spike", "3"), ("after", "1")]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_sweep_has_a_row_for_each_threshold_and_restores_the_policy(
    pair: Pair, tmp_path: Path, processes: str
) -> None:
    was = pair.policy()
    run = run_shape(
        *(pair, tmp_path, "--shape", "threshold-sweep", "--thresholds", "0,0.8,0.0001", "--processes", processes),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = rows_of(tmp_path, "phases", "threshold")
    assert list(rows) == ["0", "0.8", "0.0001"]
    # Nothing of the threshold between them is in the rows of the others, whichever process sent it.
    assert float(rows["0"]["deferral_ratio"]) == float(rows["0.0001"]["deferral_ratio"]) == 0
    assert float(rows["0"]["joint_accuracy"]) == float(rows["0"]["small_accuracy"])
    assert 0 < float(rows["0.8"]["deferral_ratio"]) < 1
    assert all(float(row["p50_ms"]) <= float(row["p95_ms"]) <= float(row["p99_ms"]) for row in rows.values())
    now = pair.policy()
    assert (now["threshold"], now["deferral"]) == (was["threshold"], was["deferral"])
    assert now["note"] == f"back to version {was['version']} after a threshold sweep"
    assert f"the policy is restored: threshold 0.7 (version {now['version']})" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("note", [{"note": "mine"}, {}], ids=["note", "silent"])
def test_a_sweep_gives_way_to_an_operator_who_changes_the_policy(
    pair: Pair, tmp_path: Path, note: dict[str, str]
) -> None:
    """Also to one who says nothing: the sweep's own note is not the change's."""
    with running(pair, tmp_path, "--shape", "threshold-sweep", "--thresholds", "0.2,0.3") as run:
        run.wait_for("threshold 0.2")
        pair.set_policy(threshold=0.7, **note)
        code, said = run.finish()
    assert code == 1
    assert "somebody else has changed the policy meanwhile" in said
    assert "left as somebody else has set it" in said
    assert pair.policy()["note"] == note.get("note", "")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_outage_is_in_its_own_phase_and_ends(pair: Pair, tmp_path: Path) -> None:
    """The large model is killed and another takes its place: then nothing depends on how long a call may hang."""
    port = free_port()
    environment = f"GATEKEEPER_LARGE_BUNDLE={BUNDLES / 'fashion-mnist-large'} GATEKEEPER_DRAIN_S=0"
    serve = f"{environment} {sys.executable} -m service.cli serve-large --port {port}"
    ready = f"until curl -sf http://127.0.0.1:{port}/readyz; do sleep 0.1; done"
    pid = tmp_path / "pid"
    back = f"({serve} > /dev/null 2>&1 & echo $! > {pid}); {ready} > /dev/null"
    subprocess.run(back, shell=True, check=True, cwd=ROOT, timeout=40)
    edge = spawn_edge(tmp_path, f"http://127.0.0.1:{port}", BUNDLE=str(BUNDLES / "fashion-mnist-small"))
    try:
        with stopping(edge):
            edge.wait_ready()
            run = run_shape(
                Pair(edge, pair.large),
                tmp_path,
                *("--shape", "large-model-outage", "--processes", "2"),
                *("--outage-command", f"kill -9 $(cat {pid})", "--recovery-command", back),
                timeout_s=120,
            )
            assert run.returncode == 0, run.stdout + run.stderr
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    rows = rows_of(tmp_path, "phases", "phase")
    assert list(rows) == ["before", "during", "after"]
    assert float(rows["before"]["deferral_ratio"]) > 0
    assert float(rows["before"]["degraded_share"]) == 0
    reasons = dict(part.split("=") for part in rows["during"]["degraded_by_reason"].split())
    assert reasons.keys() & {"remote_unavailable", "breaker_open"}
    # It may stay open for some time after the large model is back.
    assert set(re.findall(r"([a-z_]+)=", rows["after"]["degraded_by_reason"])) <= {"breaker_open"}
    assert all(float(row["joint_accuracy"]) > 0 for row in rows.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_an_outage_stops_the_process_on_the_large_models_port_and_lets_it_go_on(pair: Pair, tmp_path: Path) -> None:
    pair.set_policy(remote_timeout_s=0.5)
    arguments = ("--shape", "large-model-outage", "--large-port", str(pair.large.port))
    with running(pair, tmp_path, *arguments) as run:
        run.wait_for("is stopped")
        assert not pair.large_runs()
        code, said = run.finish()
    assert code == 0, said
    assert f"the large model goes on (process {pair.large.process.pid})" in said
    assert httpx.get(f"{pair.large.url}/readyz").status_code == 200
    during = rows_of(tmp_path, "phases", "phase")["during"]
    assert float(during["degraded_share"]) > 0
    assert "remote_timeout=" in during["degraded_by_reason"]


class Run:
    """A run that is under way, with its own process group."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process, self._log = process, log

    def wait_for(self, text: str) -> None:
        eventually(lambda: text in self._log.read_text(), f"{text!r} in {self._log.read_text()}", 20)

    def locust(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        return found

    def finish(self) -> tuple[int, str]:
        return self.process.wait(40), self._log.read_text()


@contextmanager
def running(pair: Pair, output: Path, *arguments: str) -> Iterator[Run]:
    log = output / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "loadtests.users.run",
                    "--url",
                    pair.edge.url,
                    "--users",
                    "2",
                    "--duration",
                    "6",
                ),
                *("--output", str(output), *arguments),
            ],
            cwd=ROOT,
            env=os.environ | {"GATEKEEPER_ADMIN_TOKEN": TOKEN, "GATEKEEPER_DATA_DIR": "", "PYTHONUNBUFFERED": "1"},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            text=True,
        )
    try:
        yield Run(process, log)
    finally:
        for left in (*psutil.Process(process.pid).children(recursive=True), process) if process.poll() is None else ():
            left.kill()
        process.wait(10)


def interrupt(run: Run) -> None:
    """Ctrl-C: the terminal sends it to all processes in front."""
    os.killpg(run.process.pid, signal.SIGINT)


def terminate(run: Run) -> None:
    run.process.terminate()


def kill(run: Run) -> None:
    """Nobody has the time to do anything."""
    locust = run.locust()
    run.process.kill()
    locust.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(
    ("shape", "end"),
    [
        pytest.param("threshold-sweep", interrupt, id="sweep-interrupt"),
        pytest.param("threshold-sweep", terminate, id="sweep-terminate", marks=pytest.mark.slow),
        pytest.param("threshold-sweep", kill, id="sweep-kill", marks=pytest.mark.slow),
        pytest.param("large-model-outage", interrupt, id="outage-interrupt", marks=pytest.mark.slow),
        pytest.param("large-model-outage", terminate, id="outage-terminate", marks=pytest.mark.slow),
        pytest.param("large-model-outage", kill, id="outage-kill"),
    ],
)
def test_a_run_that_is_cut_short_leaves_things_as_they_were(
    pair: Pair, tmp_path: Path, shape: str, end: Callable[[Run], None]
) -> None:
    options = {
        "threshold-sweep": ("--thresholds", "0.2,0.3"),
        "large-model-outage": ("--large-port", str(pair.large.port)),
    }
    with running(pair, tmp_path, "--shape", shape, *options[shape]) as run:
        run.wait_for({"threshold-sweep": "threshold 0.2,", "large-model-outage": "is stopped"}[shape])
        assert (pair.policy()["threshold"] == 0.2, pair.large_runs()) in ((True, True), (False, False))
        end(run)
        run.finish()
    eventually(lambda: pair.large_runs() and pair.policy()["threshold"] == 0.7, "as it was", 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mix", "nonsense"), "argument --mix: 'nonsense' .* is no kind=weight"),
        (("--shape", "pyramid"), "argument --shape: invalid choice: 'pyramid'"),
        (("--thresholds", "0.5"), "--thresholds is for --shape threshold-sweep"),
        (("--shape", "threshold-sweep", "--thresholds", "x"), "argument --thresholds: 'x' is no list of thresholds"),
        (("--images", "clinc150"), "argument --images: invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_are_nonsense_are_one_clear_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--url", "http://127.0.0.1:9", *arguments])
    assert raised.value.code == 2
    usage, complaint = capsys.readouterr().err.splitlines()
    assert usage == "usage: python -m loadtests.users.run [options]"
    assert re.search(f"error: {message}", complaint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (("--mix", "hard=1"), TOKEN, "the mix 'hard=1' names 'hard', and drawings of this project have"),
        (("--shape", "threshold-sweep"), "a-wrong-token", r"\S+ refuses the admin token"),
        (("--shape", "threshold-sweep"), "", "a threshold sweep needs the admin token"),
        (("--shape", "large-model-outage", "--large-port", "9"), TOKEN, "no large model answers at"),
        (("--shape", "large-model-outage", "--outage-command", "true"), TOKEN, ".* go together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_run_that_cannot_be_is_one_clear_line_and_exit_code_2(
    pair: Pair, tmp_path: Path, arguments: tuple[str, ...], token: str, message: str
) -> None:
    was = pair.policy()["version"]
    run = start(
        *("loadtests.users.run", "--url", pair.edge.url, "--output", str(tmp_path), *arguments),
        GATEKEEPER_ADMIN_TOKEN=token,
        GATEKEEPER_DATA_DIR="",
        GATEKEEPER_POLICY_PATH=str(tmp_path / "none" / "policy.db"),
    )
    assert run.returncode == 2, run.stdout + run.stderr
    assert re.fullmatch(f"loadtest: {message}.*\n", run.stderr)
    assert pair.policy()["version"] == was


def test_the_wrong_user_class_is_one_clear_line(pair: Pair) -> None:
    run = start(
        *("locust", "--locustfile", "loadtests/locustfile.py", "--headless", "--host", pair.edge.url),
        *("--users", "1", "--run-time", "2s", "--loglevel", "WARNING", "TextClient"),
    )
    assert run.returncode == 64
    assert re.fullmatch(r"loadtest: the model at \S+ is for image-classification: choose ImageClient.*\n", run.stderr)


class Keyed(Liar, BaseHTTPRequestHandler):
    """Asks for a key, and is right about one labelled item in three; the small model about one in six."""

    asked: Counter[str]

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.headers["authorization"] != f"Bearer {KEY}":
            self.send_error(401)
        else:
            self._send(json.dumps({"data": [{"task": "text-classification"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["authorization"] == f"Bearer {KEY}"
        self.asked["items"] += 1
        right = self.right_label(body["inputs"])
        label = right if self.asked["items"] % 3 == 0 else "something else"
        small = right if self.asked["items"] % 6 == 0 else "something else"
        self.asked["right"] += label == right
        self.asked["small_right"] += small == right
        large = {"decision": "deferred", "answered_by": "large", "reason": "below_threshold", "confidence": 0.1}
        output = {"label": label, "score": 0.9, "small": {"label": small, "score": 0.1}} | large
        document = {"id": "a", "model": "m", "policy_version": 1, "threshold": 0.5, "outputs": [output]}
        self._send(json.dumps(document).encode())

    def right_label(self, text: str) -> str:
        return (EASY_LABELS | HARD_LABELS)[text]


@pytest.mark.slow
def test_the_joint_accuracy_is_that_of_the_answers_and_a_key_is_sent(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    with serving(type("Counting", (Keyed,), {"asked": asked})) as url:
        command = ("loadtests.users.run", "--url", url, "--users", "1", "--duration", "2", "--output", str(tmp_path))
        run = start(*command, "--mix", "easy=2,hard=1", GATEKEEPER_LOAD_KEY="")
        assert run.returncode == 2
        assert re.search(r"^loadtest: \S+ asks for API keys: set GATEKEEPER_LOAD_KEY", run.stderr)
        run = start(*command, "--mix", "easy=2,hard=1", GATEKEEPER_LOAD_KEY=KEY)
    assert run.returncode == 0, run.stdout + run.stderr
    total = rows_of(tmp_path, "gatekeeper", "name")["all"]
    assert int(total["items"]) == int(total["labelled"]) == asked["items"] > 0
    assert float(total["joint_accuracy"]) == pytest.approx(asked["right"] / asked["items"], abs=1e-6)
    assert float(total["small_accuracy"]) == pytest.approx(asked["small_right"] / asked["items"], abs=1e-6)
    assert f"joint accuracy {asked['right'] / asked['items']:.4f}" in run.stdout


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_web_page_takes_shape_and_mix_and_shows_the_phases(pair: Pair, tmp_path: Path) -> None:
    port = free_port()
    files = "loadtests/locustfile.py,loadtests/shapes.py"
    marker = tmp_path / "marker"
    with (tmp_path / "log").open("w") as log:
        web = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "--locustfile", files, "--host", pair.edge.url),
                *("--web-host", "127.0.0.1", "--web-port", str(port)),
            ],
            cwd=ROOT,
            env=os.environ | {"GATEKEEPER_ADMIN_TOKEN": TOKEN, "GATEKEEPER_DATA_DIR": ""},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            eventually(lambda: up(client), "Locust's page", 20)
            form = {"user_count": "2", "spawn_rate": "2", "run_time": "2s", "host": pair.edge.url}
            refused = client.post("/swarm", data=form | {"mix": "nonsense"}).json()
            assert not refused["success"]
            assert "is no kind=weight" in refused["message"]
            elsewhere = client.post("/swarm", data=form | {"shape": "threshold-sweep", "host": pair.large.url}).json()
            assert "goes to" in elsewhere["message"], "the token is for the host of the command line"
            chosen = {"shape": "threshold-sweep", "thresholds": "0,0.8", "mix": "easy=1"}
            asked = client.post("/swarm", data=form | chosen | {"outage_command": f"touch {marker}"}).json()
            assert asked["success"], asked
            eventually(lambda: client.get("/stats/requests").json()["state"] == "stopped", "the end of the run", 20)
            found = client.get("/gatekeeper").json()
            assert [row["phase"] for row in found["phases"]] == ["0", "0.8"]
            assert found["phases"][0]["deferral_ratio"] == 0
            assert [row["name"] for row in found["rows"]] == ["easy", "all"]
            assert found["rows"][-1]["joint_accuracy"] > 0
            tables = {table["key"]: table["data"] for table in client.get("/stats/requests").json()["extended_stats"]}
            assert [row["phase"] for row in tables["phases"]] == ["0", "0.8"]
            assert tables["phases"][0]["latency"].count(" / ") == 2
            assert client.get("/gatekeeper/phases/csv").text.startswith("threshold,users,seconds,")
            check_tables_fit(str(client.base_url))
    finally:
        web.terminate()
        assert web.wait(20) == 0
    assert not marker.exists()


def check_tables_fit(address: str) -> None:
    """Both tables, with numbers as long as they get, where a browser is there to show them; no other host is asked."""
    program = find_chromium()
    if program is None:
        return
    reasons = "remote_unavailable=123456 breaker_open=123456 remote_bad_answer=12"
    phase = PhaseRow(
        "recovered", 1000, 3599.9, 12345678, 123456, 12345.678, 12345678, 0.5, 0.5, reasons, 0.9, 0.9, 9999, 9999, 9999
    )
    with chromium(program) as browser:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        def lengthen(route: Route) -> None:
            answer = route.fetch()
            stats = answer.json()
            for table in stats["extended_stats"]:
                if table["key"] == "phases":
                    table["data"] = [shown_phase(phase)] * 3
            route.fulfill(response=answer, json=stats)

        page.route("**/stats/requests", lengthen)
        page.goto(address)
        for name in ("Gatekeeper", "Phases"):
            page.get_by_role("tab", name=name).click()
            expect(page.locator("tbody tr").first).to_be_visible()
            if name == "Phases":
                expect(page.locator("tbody tr").first).to_contain_text("9999 / 9999 / 9999")
            width, room = page.evaluate(
                "(table => [table.scrollWidth, table.parentElement.clientWidth])(document.querySelector('table'))"
            )
            assert width <= room, name
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def up(client: httpx.Client) -> bool:
    try:
        return client.get("/stats/requests").status_code == 200
    except httpx.TransportError:
        return False
