"""What the measuring commands make of what they see: a wrong answer is found, a leak is seen, a verdict is earned."""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.processes import ROOT, eventually

from loadtests.common.client import Reply
from loadtests.stress import soak
from loadtests.stress.batching import batches, read_wait
from loadtests.stress.books import memory_growth
from loadtests.stress.cases import DECK_KINDS, Case, Known, deck, what_is_wrong
from loadtests.stress.flapping import MODES, SLOW_S, FlappingModel, large_label
from loadtests.stress.overload import Step, summary_of, verdict_of
from loadtests.stress.watch import Sight, look

TEXT, OTHER = "what is my balance", "asdf qwer zxcv"
KNOWN = {TEXT: Known("balance", 0.95), OTHER: Known("spelling", 0.2)}
CASE = Case("list", b"", b"", (TEXT, OTHER))
SURE = {
    "label": "balance",
    "confidence": 0.95,
    "decision": "accepted",
    "reason": None,
    "small": {"label": "balance"},
}
DEFERRED = {
    "label": large_label(OTHER),
    "confidence": 0.2,
    "decision": "deferred",
    "reason": "below_threshold",
    "small": {"label": "spelling"},
}
DEGRADED = DEFERRED | {"label": "spelling", "decision": "degraded", "reason": "breaker_open"}


def answer(*outputs: Mapping[str, Any], request_id: str = "s1", status: int = 200, **fields: Any) -> Reply:
    body = {"id": request_id, "policy_version": 3, "threshold": 0.7, "outputs": list(outputs)} | fields
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nx-request-id: {request_id}\r\n\r\n".encode()
    return Reply(status, head, json.dumps(body).encode())


def judged(reply: Reply, case: Case = CASE, thresholds: Mapping[int, float] | None = None) -> str | None:
    return what_is_wrong(case, "s1", reply, KNOWN, {3: 0.7} if thresholds is None else thresholds)


@pytest.mark.parametrize(
    "second", [DEFERRED, DEGRADED, SURE | DEGRADED | {"reason": "deferral_off", "decision": "accepted"}]
)
def test_a_right_answer_is_right(second: dict[str, Any]) -> None:
    assert judged(answer(SURE, second)) is None


@pytest.mark.parametrize(
    "reply",
    [
        answer(DEFERRED, SURE),  # the order of two answers is swapped
        answer(SURE),
        answer(SURE, SURE),
        answer(SURE, DEFERRED | {"label": large_label(TEXT)}),
        answer(SURE, DEFERRED | {"decision": "accepted", "label": "spelling", "reason": None}),
        answer(SURE | {"decision": "degraded"}, DEFERRED),
        answer(SURE | {"confidence": 0.9}, DEFERRED),
        answer(SURE, DEGRADED | {"label": large_label(OTHER)}),
        answer(SURE, DEFERRED, request_id="s2"),
        answer(SURE, DEFERRED, threshold=0.6),
        answer(SURE, DEFERRED, status=500),
        answer(SURE, DEFERRED, status=429),
    ],
    ids=range(12),
)
def test_a_wrong_answer_is_found(reply: Reply) -> None:
    assert judged(reply) is not None


def test_a_malformed_request_must_be_refused_as_it_deserves() -> None:
    case = Case("malformed", b"", b"", status=422)
    problem = json.dumps({"status": 422, "request_id": "s1"}).encode()
    good = Reply(422, b"HTTP/1.1 422 x\r\ncontent-type: application/problem+json\r\n\r\n", problem)
    assert judged(good, case) is None
    for wrong in (
        good._replace(status=400),
        good._replace(status=200),
        good._replace(head=b"HTTP/1.1 422 x\r\ncontent-type: text/plain\r\n\r\n"),
        good._replace(body=problem.replace(b"s1", b"s2")),
    ):
        assert judged(wrong, case) is not None


def test_the_deck_has_one_percent_cut_off_and_one_percent_malformed() -> None:
    cases = deck(4_000, seed=0)
    kinds = [case.kind for case in cases]
    assert (kinds.count("cancelled"), kinds.count("malformed")) == (40, 40)
    assert set(kinds) == DECK_KINDS
    assert {case.cut for case in cases} == {"no", "in the head", "in the body", "after the body"}
    assert len({case.status for case in cases}) > 5
    assert deck(4_000, seed=0) == cases != deck(4_000, seed=1)


def sights(*memory_mib: float) -> list[tuple[float, int, Sight]]:
    """One each 1,000 requests."""
    return [(float(at), at * 1_000, Sight(memory, 1, 1, 0, 0)) for at, memory in enumerate(memory_mib)]


def test_memory_growth_is_that_after_the_warm_up() -> None:
    warming_up = [100.0 + at for at in range(10)]  # the first 10 % do not count
    assert memory_growth(sights(*warming_up, *[200.0] * 90), 100_000) == 0
    leak = [200.0 + at for at in range(90)]
    growth = memory_growth(sights(*warming_up, *leak), 100_000)
    assert growth == pytest.approx(80 / 204, abs=0.02)
    assert memory_growth(sights(100.0), 100_000) is None


def test_a_look_at_a_process_counts_its_descriptors_and_connections() -> None:
    pid = os.getpid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = look(pid)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with_both = look(pid)
        assert with_both.file_descriptors == before.file_descriptors + 2
        assert with_both.established == before.established + 2
        theirs.close()
        eventually(lambda: look(pid).close_wait == before.close_wait + 1, "a half-closed connection is seen")
        ours.close()
        after = look(pid)
    assert (after.file_descriptors, after.close_wait) == (before.file_descriptors, before.close_wait)
    assert after.memory_mib > 1


def step(factor: float, goodput: float, number: int = 1, **fields: Any) -> Step:
    figures = dict.fromkeys(("p50_ms", "p99_ms", "refusal_p50_ms", "refusal_p99_ms", "lag_p99_ms"))
    counts = dict.fromkeys(("refused", "late", "not_sent", "errors"), 0)
    whole = Step("edge", factor, number, 1, 1, goodput, **counts, **figures, peak_mib=100, server_core=1, load_core=1)
    return replace(whole, **fields)


def verdict(item_ms: float, *steps: Step) -> str:
    factors = sorted({one.factor for one in steps})
    summary = [summary_of(steps, factor) for factor in factors]
    found = {"name": "edge", "item_ms": item_ms, "summary": summary, "steps": [vars(one) for one in steps]}
    return "\n".join(verdict_of(found))


def test_the_verdict_on_a_model_bound_edge_is_that_of_its_worst_overload() -> None:
    calm = (step(0.5, 50), step(1, 100))
    assert "0.95 of its best, at 2x: met" in verdict(12, *calm, step(2, 95), step(10, 99))
    assert "0.50 of its best, at 10x: NOT met" in verdict(12, *calm, step(2, 95), step(10, 50))
    assert "p99 5.0 ms: met" in verdict(12, *calm, step(2, 95, refusal_p99_ms=5.0))
    assert "p99 50.0 ms: NOT met" in verdict(12, *calm, step(2, 95, refusal_p99_ms=50.0))
    assert "NOT met (bar 128 MiB)" in verdict(12, *calm, step(2, 95, peak_mib=400.0))
    assert "3 answers besides 200 and 429: NOT met" in verdict(12, *calm, step(2, 95, errors=3))


def test_the_verdict_on_an_edge_that_http_binds_is_that_at_one_and_a_half() -> None:
    assert "at 1.5x is 0.80 of its best: met" in verdict(0.1, step(1, 100), step(1.5, 80), step(10, 1))
    assert "at 1.5x is 0.60 of its best: NOT met" in verdict(0.1, step(1, 100), step(1.5, 60))


def test_goodput_is_compared_within_its_own_round() -> None:
    """A machine that is half as quick in the second round is no overload."""
    steps = [step(1, 100, 1), step(2, 90, 1), step(1, 50, 2), step(2, 45, 2)]
    assert summary_of(steps, 2)["shares"] == [0.9, 0.9]


def test_batches_by_size_come_from_cumulated_buckets() -> None:
    change = {
        f"gatekeeper_batch_size_bucket{{{bound}}}": count for bound, count in (("1.0", 3), ("2.0", 3), ("4.0", 5))
    }
    assert batches(change | {"gatekeeper_batch_size_bucket{+Inf}": 6}) == {"1": 3, "4": 2, "inf": 1}


def test_the_wait_in_the_queue_is_read_from_the_answer() -> None:
    waits: list[float] = []
    read = read_wait(waits)
    read(Reply(200, b"HTTP/1.1 200 OK\r\nserver-timing: queue;dur=1.250, small;dur=0.5\r\n\r\n", b""))
    read(Reply(429, b"HTTP/1.1 429 No\r\n\r\n", b""))
    assert waits == [1.25]


async def test_the_flapping_model_behaves_as_it_is_told() -> None:
    model = FlappingModel()
    await model.start()
    url = f"http://127.0.0.1:{model.port}/v1/classify"
    try:
        async with httpx.AsyncClient(timeout=2 * SLOW_S) as client:

            async def ask() -> str:
                try:
                    answered = await client.post(url, json={"inputs": [TEXT]}, headers={"x-request-id": "a"})
                    answered.raise_for_status()
                    return answered.json()["outputs"][0]["label"]
                except httpx.HTTPError as error:
                    return type(error).__name__

            seen = {}
            for mode in MODES:
                await model.change(mode)
                seen[mode] = await ask()
            await model.change("good")
            assert await ask() == large_label(TEXT), "on the same port after it was down"
    finally:
        await model.stop()
    assert seen.pop("cut") in ("RemoteProtocolError", "ReadError")
    assert seen == {
        "good": large_label(TEXT),
        "slow": large_label(TEXT),
        "late": "ReadTimeout",
        "error": "HTTPStatusError",
        "rubbish": 12,
        "down": "ConnectError",
    }


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_soak_accounts_for_every_request(tmp_path: Path) -> None:
    """The memory of so short a run says nothing: every other line of the verdict must be met."""
    ended = run(
        "loadtests.stress.soak", "--requests", "4000", "--flap-s", "0.5", "--policy-s", "0.4", "--output", str(tmp_path)
    )
    (path,) = tmp_path.glob("soak-*.json")
    report = json.loads(path.read_text())
    assert ended.returncode in (0, 1)
    unmet = [line for line in report["verdict"] if not line["met"] and "memory" not in line["what"]]
    assert unmet == [], report["wrong"]
    assert sum(count for _, _, count in report["outcomes"]) == 4_000
    assert report["decisions"].keys() == {"accepted", "deferred", "degraded"}


def test_an_interrupt_while_the_work_is_being_started_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the worst moment: Runner.run listens to SIGINT already, and forgets that it has seen one."""

    def work(arguments: argparse.Namespace, soaks: list[soak.Soak]) -> None:
        listen = signal.signal

        def interrupted(number: int, handler: Any) -> Any:
            before = listen(number, handler)
            if number == signal.SIGINT and isinstance(handler, partial):  # Runner's own
                signal.raise_signal(number)
            return before

        with asyncio.Runner() as runner, monkeypatch.context() as patch:
            patch.setattr(signal, "signal", interrupted)
            runner.run(asyncio.Event().wait())

    monkeypatch.setattr(soak, "_run", work)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert soak.main([]) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_soak_says_what_it_has_seen(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "loadtests.stress.soak", "--output", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        assert command.stdout is not None
        said = ""
        while "requests on" not in said:
            line = command.stdout.readline()
            assert line, f"ended with {command.wait()} before it began: {said}"
            said += line
        command.send_signal(signal.SIGINT)
        said += command.stdout.read()
        assert command.wait(30) == 130, said
    assert "interrupted; until then:" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_overload_measures_both_edges_and_draws_them(tmp_path: Path) -> None:
    ended = run(
        *(
            "loadtests.stress.overload",
            "--seconds",
            "1",
            "--rounds",
            "1",
            "--factors",
            "0.5",
            "2",
            "--output",
            str(tmp_path),
        ),
        *("--picture", str(tmp_path / "there" / "overload.png")),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = tmp_path.glob("overload-*.json")
    report = json.loads(path.read_text())
    assert [found["name"] for found in report["targets"]] == ["default", "model-bound"]
    assert all(found["summary"][0]["goodput_per_s"] > 0 for found in report["targets"])
    assert (tmp_path / "there" / "overload.png").stat().st_size == path.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_batching_measures_both_runners_and_draws_them(tmp_path: Path) -> None:
    ended = run("loadtests.stress.batching", "--seconds", "1", "--output", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = tmp_path.glob("batching-*.json")
    found = {target["name"]: target for target in json.loads(path.read_text())["targets"]}
    assert {name: target["runner"] for name, target in found.items()} == {"inline": "inline", "thread": "thread"}
    alone = next(row for row in found["inline"]["rows"] if row["connections"] == 1)
    assert alone["batch_mean"] == 1
    assert alone["queue_mean_ms"] is not None
    assert path.with_suffix(".png").stat().st_size > 10_000
