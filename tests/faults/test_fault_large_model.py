"""The large model's faults, under load: every request is answered, and deferral resumes by itself.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_large_model.py -k stopped

One file because every fault is put upon the same edge and the same pair, started once.
"""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support.background import Upstream, healthy
from support.faults import Load, Row
from support.faulty_server import Script, Turn, head, outputs
from support.load import EASY, ODD
from support.processes import Service, admin, eventually, free_port, spawn, spawn_edge, stopping

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

QUICK = {"BREAKER_OPEN_S": "0.3", "REMOTE_MAX_RESPONSE_BYTES": "65536"}
TIMEOUT_S = 0.4


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Service]:
    """An edge in front of a scripted large model."""
    edge = spawn_edge(tmp_path_factory.mktemp("edge"), upstream.url, **QUICK)
    with stopping(edge):
        edge.wait_ready()
        with httpx.Client(base_url=edge.url) as client:
            assert admin(client, "PATCH", "policy", json={"remote_timeout_s": TIMEOUT_S}).status_code == 200
        yield edge


@pytest.fixture
def healed(edge: Service, upstream: Upstream) -> Iterator[None]:
    """Whatever the test before did, this one begins with a large model that answers."""
    upstream.accept()
    with httpx.Client(base_url=edge.url, timeout=10.0) as client:
        eventually(lambda: decision(client) == "deferred", "a healthy pair", 15.0)
        yield
        admin(client, "PATCH", "policy", json={"on_remote_failure": "degrade"})


def decision(client: httpx.Client) -> str:
    found: str = client.post("/v1/classify", json={"inputs": ODD}).json()["outputs"][0]["decision"]
    return found


async def never_answering(turn: Turn) -> None:
    await asyncio.Event().wait()


async def dripping(turn: Turn) -> None:
    body = outputs(turn.texts)
    await turn.send(head(200, {"content-length": str(len(body))}))
    for position in range(len(body)):
        await turn.send(body[position : position + 1])
        await asyncio.sleep(1.0)


async def failing(turn: Turn) -> None:
    await turn.answer(500)


async def not_ready(turn: Turn) -> None:
    await turn.answer(503, headers={"retry-after": "1"})


async def limiting(turn: Turn) -> None:
    await turn.answer(429, headers={"retry-after": "1"})


async def truncating(turn: Turn) -> None:
    await turn.answer(200, outputs(turn.texts)[:-20])


async def breaking_off(turn: Turn) -> None:
    body = outputs(turn.texts)
    await turn.send(head(200, {"content-length": str(len(body))}) + body[:-20])
    turn.drop()


async def speaking_otherwise(turn: Turn) -> None:
    await turn.answer(200, b'{"predictions": [["positive", 0.9]]}')


async def counting_wrong(turn: Turn) -> None:
    await turn.answer(200, outputs([*turn.texts, "one too many"]))


async def never_ending(turn: Turn) -> None:
    await turn.send(head(200, {"transfer-encoding": "chunked"}))
    while True:
        await turn.send(b"1000\r\n" + b" " * 4096 + b"\r\n")


async def answering_much(turn: Turn) -> None:
    await turn.answer(200, b'{"outputs":[' + b"0," * 4_000_000 + b"0]}")


async def continuing(turn: Turn) -> None:
    while True:
        await turn.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000)


async def redirecting(turn: Turn) -> None:
    assert "elsewhere" not in turn.request_line
    await turn.answer(302, headers={"location": "/elsewhere"})


@dataclass(frozen=True)
class Fault:
    name: str
    script: Script
    reasons: frozenset[str]
    words: str


def bad(name: str, script: Script, reason: str, words: str) -> object:
    # Once the breaker is open nothing is asked, and answers say so.
    return pytest.param(Fault(name, script, frozenset({reason, "breaker_open"}), words), id=name)


@pytest.mark.usefixtures("healed")
@pytest.mark.parametrize(
    "wrong",
    [
        bad("never-answering", never_answering, "remote_timeout", "accepts, never answers"),
        bad("dripping", dripping, "remote_timeout", "one byte a second"),
        bad("500", failing, "remote_unavailable", "500s"),
        bad("429", limiting, "remote_limit", "429 with Retry-After: 1"),
        bad("truncated", truncating, "remote_bad_answer", "truncated JSON"),
        bad("broken-off", breaking_off, "remote_bad_answer", "closes in the middle of an answer"),
        bad("schema", speaking_otherwise, "remote_bad_answer", "another schema"),
        bad("count", counting_wrong, "remote_bad_answer", "the wrong number of outputs"),
        bad("endless", never_ending, "remote_bad_answer", "an endless body"),
        bad("values", answering_much, "remote_bad_answer", "4 million zeros in an answer of 8 MB"),
        bad("interim", continuing, "remote_bad_answer", "`100 Continue` without end"),
        bad("redirect", redirecting, "remote_bad_answer", "a redirect (not followed)"),
    ],
)
def test_wrong(wrong: Fault, edge: Service, upstream: Upstream, fault: Row) -> None:
    """A large model that answers wrongly, late or without end costs no request, and is used again when it is well."""
    with Load(edge.url) as load:
        load.more("deferred")
        upstream.behave(wrong.script)
        load.more("degraded", 20)
        during = set(load.reasons) - {"below_threshold"}
        upstream.behave(healthy)
        with fault.healing():
            load.more("deferred")
    assert during <= wrong.reasons
    assert during - {"breaker_open"}
    assert not any("elsewhere" in turn.request_line for turn in upstream.server.requests)
    fault.account(load)
    fault.tell(f"large model: {wrong.words}", f"degraded, {' or '.join(sorted(during))}")


@pytest.mark.usefixtures("healed")
def test_refusing(edge: Service, upstream: Upstream, fault: Row) -> None:
    """A port on which nothing listens."""
    with Load(edge.url) as load:
        load.more("deferred")
        upstream.refuse()
        load.more("degraded", 20)
        with fault.healing():
            upstream.accept()
            load.more("deferred")
    assert set(load.reasons) <= {"below_threshold", "remote_unavailable", "breaker_open"}
    fault.account(load)
    fault.tell("large model: refuses connections", "degraded, remote_unavailable, then breaker_open")


@pytest.mark.usefixtures("healed")
def test_slow_start(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Nothing listens, then it listens and says 503 until its model is loaded, then it answers."""
    upstream.refuse()
    with Load(edge.url) as load:
        load.more("degraded", 20)
        upstream.accept()
        upstream.behave(not_ready)
        load.more("degraded", 20)
        upstream.behave(healthy)
        with fault.healing():
            load.more("deferred")
    fault.account(load)
    fault.tell("large model: slow start (refuses, then 503, then answers)", "degraded until it answers")


@pytest.mark.usefixtures("healed")
def test_set_cookie(edge: Service, upstream: Upstream, fault: Row) -> None:
    """A cookie that the large model sets travels to no other call."""

    async def baking(turn: Turn) -> None:
        await turn.classify({"set-cookie": f"session={turn.number}; Path=/"})

    before = len(upstream.server.requests)
    upstream.behave(baking)
    with Load(edge.url) as load:
        load.more("deferred", 50)
    calls = upstream.server.requests[before:]
    assert len(calls) >= 10  # one call may carry several requests
    assert not any("cookie" in turn.headers for turn in calls)
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell("large model: Set-Cookie", "nothing; no call carries the cookie")


@pytest.mark.usefixtures("healed")
def test_closing_at_random(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Kept-alive connections closed after, and sometimes before, an answer: the calls are made again, unseen."""
    chance = random.Random(7)

    async def fickle(turn: Turn) -> None:
        if chance.random() < 0.3:
            turn.reset()
            return
        await turn.classify()
        if chance.random() < 0.5:
            turn.drop()

    upstream.behave(fickle)
    with Load(edge.url) as load:
        load.more("deferred", 200)
        upstream.behave(healthy)
        with fault.healing():
            load.more("deferred")
    fault.account(load)
    degraded = load.decisions["degraded"]
    # A call and its repetition may both meet a reset: 0.3 * 0.3 of them. Closing after an answer costs nothing.
    assert degraded < 0.25 * load.answered
    fault.tell(
        "large model: resets 30 % of the calls, closes half of the connections after an answer",
        f"nothing but for {100 * degraded / load.answered:.0f} % degraded, where the repetition was reset too",
    )


@pytest.mark.usefixtures("healed")
def test_closing_after_answers(edge: Service, upstream: Upstream, fault: Row) -> None:
    """Connections closed after an answer, with and without a word: no request notices."""
    chance = random.Random(7)

    async def closing(turn: Turn) -> None:
        await turn.classify()
        if chance.random() < 0.5:
            turn.drop()

    upstream.behave(closing)
    with Load(edge.url) as load:
        load.more("deferred", 200)
    assert set(load.decisions) == {"deferred"}
    fault.account(load)
    fault.tell("large model: closes kept-alive connections at random, after an answer", "nothing")


@pytest.mark.usefixtures("healed")
@pytest.mark.parametrize(("script", "status"), [(failing, 503), (never_answering, 504)], ids=["500", "never-answering"])
def test_under_fail(script: Script, status: int, edge: Service, upstream: Upstream, fault: Row) -> None:
    """Under the policy `fail` what needs the large model is refused, with a time to come back; the rest is answered."""
    with httpx.Client(base_url=edge.url, timeout=10.0) as client:
        assert admin(client, "PATCH", "policy", json={"on_remote_failure": "fail"}).status_code == 200
        upstream.behave(script)
        seen = []
        for _ in range(15):
            assert client.post("/v1/classify", json={"inputs": EASY}).status_code == 200
            refused = client.post("/v1/classify", json={"inputs": [EASY, ODD]})
            assert int(refused.headers["retry-after"]) >= 1
            seen.append(refused.status_code)
        assert seen[0] == status
        assert set(seen) <= {status, 503}
        upstream.behave(healthy)
        with fault.healing():
            eventually(lambda: client.post("/v1/classify", json={"inputs": ODD}).status_code == 200, "answers", 10.0)
    fault.count(30)
    words = "500s" if status == 503 else "never answers"
    fault.tell(f"large model: {words}; policy `fail`", f"{status} with Retry-After, then 503 (breaker); accepted: 200")


# From here on a real large model.


@pytest.fixture(scope="module")
def real_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, "Real"]]:
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def own_pair(tmp_path: Path) -> Iterator[tuple[Service, "Real"]]:
    """For what an edge tells once a minute: another test's outage would keep it silent."""
    with running_pair(tmp_path) as pair:
        yield pair


@contextmanager
def running_pair(directory: Path) -> Iterator[tuple[Service, "Real"]]:
    real = Real(directory / "large.log")
    edge = spawn_edge(directory, f"http://127.0.0.1:{real.port}", **QUICK)
    try:
        with stopping(edge):
            edge.wait_ready()
            with httpx.Client(base_url=edge.url) as client:
                assert admin(client, "PATCH", "policy", json={"remote_timeout_s": 2.0}).status_code == 200
            yield edge, real
    finally:
        real.stop()


class Real:
    """A large-model service that may be killed and started again on its port."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._runs: list[Service] = []

    def start(self) -> None:
        self._runs.append(spawn("serve-large", self._log, self.port))

    def up(self) -> None:
        """For a test that runs without those before it."""
        if not self._runs:
            self.start()
        self.ready()

    def ready(self) -> None:
        self._runs[-1].wait_ready(90.0)

    def kill(self) -> None:
        self._runs[-1].kill()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._runs[-1].process.pid, number)

    def stop(self) -> None:
        with stopping(*self._runs):
            pass


def test_not_there_yet(real_pair: tuple[Service, Real], fault: Row) -> None:
    """An edge that is up before its large model serves, and defers as soon as there is one."""
    edge, real = real_pair
    with Load(edge.url, threads=1) as load:
        load.more("degraded")
        real.start()
        real.ready()
        with fault.healing():
            load.more("deferred", 1)
    fault.account(load)
    fault.tell("large model (real): started after the edge", "degraded until it is ready")


def kill(real: Real) -> None:
    real.kill()


def start_again(real: Real) -> None:
    real.start()
    real.ready()


def stop(real: Real) -> None:
    real.signal(signal.SIGSTOP)


def go_on(real: Real) -> None:
    real.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("harm", "mend", "words"),
    [
        pytest.param(stop, go_on, "stopped (SIGSTOP), then SIGCONT", id="stopped"),
        pytest.param(kill, start_again, "killed (SIGKILL), then started (from ready on)", id="killed"),
    ],
)
def test_real(
    harm: Callable[[Real], None],
    mend: Callable[[Real], None],
    words: str,
    real_pair: tuple[Service, Real],
    fault: Row,
) -> None:
    """A large-model process stopped or killed under load costs no request, and is used again when it is back."""
    edge, real = real_pair
    real.up()
    with Load(edge.url, threads=1) as load:
        load.more("deferred")
        harm(real)
        load.more("degraded", 20)
        mend(real)
        with fault.healing():
            load.more("deferred", 1)
        load.more("deferred")
    assert set(load.reasons) <= {"below_threshold", "remote_unavailable", "remote_timeout", "breaker_open"}
    fault.account(load)
    reasons = sorted(str(reason) for reason in set(load.reasons) - {"below_threshold"})
    fault.tell(f"large model (real): {words}", f"degraded, {' or '.join(reasons)}")


def test_deadlines(own_pair: tuple[Service, Real], fault: Row) -> None:
    """A stopped large model, and clients that wait for half a second only: seen as an outage, over when it is over."""
    edge, real = own_pair
    real.up()
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:

        def degrading() -> object:
            return client.get("/console/state").json()["degrading"]

        def told(words: str) -> bool:
            return words in edge.log.read_text()

        with Load(edge.url, threads=2, deadline_ms=500) as load:
            load.more("deferred")
            assert not degrading()
            real.signal(signal.SIGSTOP)
            seen = eventually(degrading, "the state", 15.0)
            eventually(lambda: told("nearly all deferrals degrade"), "a line in the log", 15.0)
            metrics = client.get("/metrics").text
            real.signal(signal.SIGCONT)
            with fault.healing():
                load.more("deferred", 1)
            load.more("deferred")
            eventually(lambda: degrading() is None, "the end of the state", 15.0)
    assert set(seen["reasons"]) <= {"deadline", "breaker_open", "remote_limit"}
    assert 'gatekeeper_deferrals_degrading{model="clinc150-small"} 1.0' in metrics
    fault.account(load)
    words = "degraded, deadline or breaker_open; console, status, metric and log say so"
    fault.tell("large model (real): stopped (SIGSTOP), clients' deadlines of 0.5 s", words)


@pytest.mark.usefixtures("healed")
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["half", "all"])
def test_slow_for_deadlines(share: float, edge: Service, upstream: Upstream, fault: Row) -> None:
    """A large model that takes longer than its clients wait, for some texts or for all, and then does not."""
    chance = random.Random(7)

    async def slow(turn: Turn) -> None:
        if chance.random() < share:
            await asyncio.sleep(1.0)
        await turn.classify()

    with Load(edge.url, deadline_ms=300) as load:
        load.more("deferred")
        upstream.behave(slow)
        load.more("degraded", 20)
        upstream.behave(healthy)
        with fault.healing():
            load.more("deferred", 1)
        load.more("deferred")
    assert set(load.reasons) <= {"below_threshold", "deadline", "breaker_open"}
    fault.account(load)
    fault.tell(
        f"large model: {100 * share:.0f} % of the answers take 1 s, clients wait 0.3 s",
        "degraded, deadline or breaker_open",
    )


def test_foreign_labels(tmp_path: Path, upstream: Upstream, fault: Row) -> None:
    """A large model with other labels: no client is told one, and the log says what is wrong."""
    upstream.accept()
    edge = spawn_edge(tmp_path, upstream.url, REMOTE_FOREIGN_LABELS="refuse", **QUICK)
    with stopping(edge):
        edge.wait_ready()

        async def known(turn: Turn) -> None:
            await turn.answer(200, outputs(["balance"] * len(turn.texts)))

        with Load(edge.url) as load:
            load.more("degraded", 20)
            upstream.behave(known)
            with fault.healing():
                load.more("deferred", 1)
            load.more("deferred")
        log = edge.log.read_text()
    assert set(load.reasons) == {"below_threshold", "remote_bad_answer"}
    assert log.count("a bad answer of") == 1
    assert '"fault": "foreign-label"' in log
    fault.account(load)
    fault.tell("large model: answers labels that the bundle does not have", "degraded, remote_bad_answer")
