"""The arithmetic of the benchmark: medians, ratios within a round, and what the tables say."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import eventually

from loadtests.common.process_tree import ProcessTree
from loadtests.compare.contest import Outcome
from loadtests.compare.report import PathReport
from loadtests.compare.summary import Spread, peak_memory, rows, spread
from loadtests.compare.table import cells, markdown, text, verdict
from loadtests.compare.wrk import Measurement


def measured(server: str, number: int, rate: float, *, connections: int = 32, **changes: float) -> Measurement:
    figures = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_s_per_1000": 1.0, "core_share": 1.0, "memory_mib": 100.0} | changes
    return Measurement(server, connections, number, requests=int(rate), requests_per_s=rate, **figures)


def report(path: str, measurements: list[Measurement], references: dict[str, str | None], **missing: str) -> PathReport:
    return PathReport(
        path=path,
        answer_bytes=290,
        references=references,
        requests={},
        versions={},
        missing=missing,
        failed=(),
        rows=rows(measurements, references, "gatekeeper"),
        peak_mib=peak_memory(measurements),
        measurements=measurements,
    )


def test_a_ratio_is_taken_within_each_round_before_the_median() -> None:
    """The machine was three times as fast in round 2, and the ratio there is the one of round 1."""
    measurements = [
        *(measured("bare", 1, 1_000), measured("gatekeeper", 1, 500)),
        *(measured("gatekeeper", 2, 1_500), measured("bare", 2, 3_000)),
        *(measured("bare", 3, 1_000), measured("gatekeeper", 3, 800)),
    ]
    bare, ours = rows(measurements, {"bare": None, "gatekeeper": "bare"}, "gatekeeper")
    assert ours.of_reference == Spread(0.5, 0.5, 0.8)
    assert ours.requests_per_s == Spread(800, 500, 1_500)
    assert bare.of_reference is None
    assert bare.ours_over == Spread(0.5, 0.5, 0.8)
    assert ours.ours_over is None


def test_the_time_added_is_the_difference_within_a_round() -> None:
    measurements = [
        *(measured("direct", 1, 10, p50_ms=1.0), measured("gatekeeper", 1, 10, p50_ms=1.5)),
        *(measured("direct", 2, 10, p50_ms=5.0), measured("gatekeeper", 2, 10, p50_ms=5.25)),
    ]
    _, ours = rows(measurements, {"direct": None, "gatekeeper": "direct"}, "gatekeeper")
    assert ours.p50_added_ms == Spread(0.375, 0.25, 0.5)


def test_the_cpu_ratio_is_the_reference_over_the_server() -> None:
    measurements = [measured("bare", 1, 10, cpu_s_per_1000=0.2), measured("gatekeeper", 1, 10, cpu_s_per_1000=0.4)]
    _, ours = rows(measurements, {"bare": None, "gatekeeper": "bare"}, "gatekeeper")
    assert ours.cpu_of_reference == Spread(0.5, 0.5, 0.5)


def test_a_round_that_one_of_the_two_missed_gives_no_ratio() -> None:
    measurements = [
        *(measured("gatekeeper", 1, 800), measured("ray", 1, 100)),
        measured("gatekeeper", 2, 800),
    ]
    _, ray = rows(measurements, {"gatekeeper": None, "ray": None}, "gatekeeper")
    assert (ray.rounds, ray.ours_over) == (1, Spread(8, 8, 8))


def test_figures_that_the_system_does_not_give_are_left_out() -> None:
    bare = measured("bare", 1, 10, cpu_s_per_1000=None, core_share=None, memory_mib=None)  # type: ignore[arg-type]
    found = report("accept", [bare], {"bare": None})
    assert (found.rows[0].cpu_s_per_1000, found.rows[0].core_share, found.peak_mib) == (None, None, {})
    assert cells(found)[0][5:7] == ("-", "-")


def test_memory_is_the_most_after_any_load() -> None:
    measurements = [measured("bare", 1, 10, memory_mib=40), measured("bare", 2, 10, memory_mib=30)]
    assert peak_memory(measurements) == {"bare": 40}


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None


def test_a_peer_without_figures_is_named_with_the_reason() -> None:
    measurements = [measured("bare", 1, 1_000), measured("gatekeeper", 1, 500)]
    found = report("accept", measurements, {"bare": None, "gatekeeper": "bare"}, ray="could not be installed: no wheel")
    for shown in (text(found), markdown(found)):
        assert "ray" in shown
        assert "none: could not be installed: no wheel" in shown


def test_the_accept_verdict_knows_the_bar_the_goal_and_the_peers() -> None:
    names: dict[str, str | None] = {"bare": None, "gatekeeper": "bare", "litserve": "bare", "bentoml": "bare"}
    for rate, words in ((390, "BELOW the bar"), (450, "above the bar"), (510, "the goal is met")):
        rates = dict(zip(names, (1_000, rate, 100, 100), strict=True))
        lines = verdict(report("accept", [measured(name, 1, rates[name]) for name in names], names))
        assert words in lines[0]
        assert lines[1].endswith("litserve at 32 connections: met (goal 4x)") == (rate >= 400)
        assert "bentoml at 32 connections: MISSED" in lines[2]


def test_a_core_that_others_ran_on_is_told() -> None:
    names: dict[str, str | None] = {"bare": None, "gatekeeper": "bare"}
    shared = [measured("bare", 1, 1_000), measured("gatekeeper", 1, 500, core_share=0.4, cpu_s_per_1000=2.5)]
    assert "only 40% of their core" in verdict(report("accept", shared, names))[-1]
    assert "CPU times, 0.40" in verdict(report("accept", shared, names))[-1]


def test_the_defer_verdict_compares_what_is_added() -> None:
    names: dict[str, str | None] = {
        "direct": None,
        "gatekeeper": "direct",
        "direct-openai": None,
        "litellm": "direct-openai",
    }
    p50s = dict(zip(names, (0.1, 0.9, 0.2, 10.2), strict=True))
    measurements = [
        measured(name, 1, 2_000, connections=connections, p50_ms=p50_ms)
        for name, p50_ms in p50s.items()
        for connections in (1, 32)
    ]
    assert verdict(report("defer", measurements, names)) == [
        "0.80 ms added at 1 connection: met (goal 1 ms)",
        "2,000 requests/s at 32 connections: met (goal 1,500)",
        "0.08 of what LiteLLM adds at 1 connection: met (goal 0.1)",
    ]


def test_only_counted_requests_of_one_server_are_counted() -> None:
    assert Outcome([measured("bare", 1, 10), measured("ray", 1, 7), measured("bare", 2, 5)]).requests("bare") == 15


CHILD = "import os; b'' if os.fork() else [sum(range(10**6)) for _ in iter(int, 1)]; os.wait()"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_tree_of_processes_is_measured_paused_and_ended_as_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stream:
        root = subprocess.Popen([sys.executable, "-c", CHILD], stdout=stream, stderr=stream)
    tree = ProcessTree(root.pid)
    try:
        eventually(lambda: len(tree.pids()) == 2, "a child")
        child = tree.pids()[1]
        eventually(lambda: (tree.cpu_s() or 0) > 0.2, "the child's CPU time counts")
        assert (tree.memory_mib() or 0) > 1
        tree.pause()
        eventually(lambda: state(child) == "T", "the child is paused")
        tree.resume()
        eventually(lambda: state(child) == "R", "the child goes on")
    finally:
        tree.kill()
        root.wait()
    eventually(lambda: state(child) in (None, "Z"), "the child has ended")


def state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_the_time_of_a_child_that_has_ended_stays_in_the_tree() -> None:
    script = "import os, sys; p = os.fork()\nif p: os.wait(); print('x', flush=True); sys.stdin.read()\n"
    script += "else: [sum(range(10**6)) for _ in range(30)]"
    root = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert root.stdout is not None
        assert root.stdout.readline() == b"x\n"
        assert (ProcessTree(root.pid).cpu_s() or 0) > 0.1
    finally:
        os.kill(root.pid, signal.SIGKILL)
        root.communicate()
