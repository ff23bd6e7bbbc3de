"""The large model killed, hanging and coming back, under load: what clients see; deferral resumes by itself."""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest
from support.answers import problem
from support.load import EASY, ODD, Load, output
from support.processes import Service, admin, eventually, free_port, spawn, spawn_edge, stopping

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture(scope="module")
def own_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, list[Service]]]:
    """An edge, and its large model in a list whose last entry may be killed and started again."""
    directory, port = tmp_path_factory.mktemp("pair"), free_port()
    large = spawn("serve-large", directory / "large.log", port)
    edge = spawn_edge(directory, large.url, BREAKER_OPEN_S="0.3")
    larges = [large]
    with stopping(edge):
        try:
            edge.wait_ready()
            large.wait_ready()
            yield edge, larges
        finally:
            with stopping(*larges):
                pass


def revive(larges: list[Service]) -> None:
    old = larges[-1]
    larges.append(spawn("serve-large", old.log, old.port))
    larges[-1].wait_ready()


def test_the_large_model_killed_under_load_fails_no_request_and_deferral_resumes(
    own_pair: tuple[Service, list[Service]],
) -> None:
    edge, larges = own_pair
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        with Load(edge.url) as load:
            eventually(lambda: load.decisions["deferred"] > 20, "deferred answers")
            larges[-1].kill()
            eventually(lambda: load.decisions["degraded"] > 20, "degraded answers")
            revive(larges)
            before = load.decisions["deferred"]
            eventually(lambda: load.decisions["deferred"] > before + 20, "deferral resumes by itself", 10.0)
        assert set(load.statuses) == {200}, load.bodies[0].text
        assert output(client)["decision"] == "deferred"
        metrics = client.get("/metrics").text
        assert 'decision="degraded"' in metrics
        assert "gatekeeper_remote_breaker_open 0.0" in metrics


def test_under_fail_each_affected_request_gets_503_and_the_others_are_answered(
    own_pair: tuple[Service, list[Service]],
) -> None:
    edge, larges = own_pair
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        assert admin(client, "PATCH", "policy", json={"on_remote_failure": "fail"}).status_code == 200
        larges[-1].kill()
        for _ in range(12):
            response = client.post("/v1/classify", json={"inputs": [EASY, ODD]})
            problem(response, 503)
            assert int(response.headers["retry-after"]) >= 1
            assert output(client, EASY)["decision"] == "accepted"
        metrics = client.get("/metrics").text
        assert 'decision="failed",model="clinc150-small",override="none",reason="breaker_open"' in metrics
        assert "gatekeeper_remote_breaker_open 1.0" in metrics
        admin(client, "PATCH", "policy", json={"on_remote_failure": "degrade"})
        assert output(client)["decision"] == "degraded"
        revive(larges)
        eventually(lambda: output(client)["decision"] == "deferred", "deferral resumes by itself", 10.0)


def test_a_large_model_that_hangs_costs_no_more_than_the_policy_allows(
    own_pair: tuple[Service, list[Service]],
) -> None:
    edge, larges = own_pair
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        admin(client, "PATCH", "policy", json={"remote_timeout_s": 0.2})
        os.kill(larges[-1].process.pid, signal.SIGSTOP)
        try:
            first = output(client)
            assert (first["decision"], first["reason"]) == ("degraded", "remote_timeout")
            hurried = client.post("/v1/classify", json={"inputs": ODD}, headers={"x-request-timeout-ms": "60"})
            assert hurried.json()["outputs"][0]["reason"] in {"deadline", "breaker_open"}
            eventually(lambda: output(client)["reason"] == "breaker_open", "an open breaker")
        finally:
            os.kill(larges[-1].process.pid, signal.SIGCONT)
            admin(client, "PATCH", "policy", json={"remote_timeout_s": 10.0})
        eventually(lambda: output(client)["decision"] == "deferred", "deferral resumes by itself", 10.0)
