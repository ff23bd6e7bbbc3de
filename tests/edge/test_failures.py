"""When things fail, with real processes: stores gone, kills and restarts, signals, damaged files, slow clients."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from support.load import EASY, ODD, Load, output
from support.processes import ROOT, Service, admin, eventually, free_port, spawn, spawn_edge, stopping
from support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


def test_the_policy_survives_a_restart_and_a_kill(tmp_path: Path, large: Service) -> None:
    """kill -9 in the middle of writes: whatever was acknowledged is there afterwards."""
    edge = spawn_edge(tmp_path, large.url)
    acknowledged = [0.0]
    with stopping(edge):
        edge.wait_ready()

        def write() -> None:
            with httpx.Client(base_url=edge.url, timeout=5.0) as client:
                for step in range(1, 10_000):
                    try:
                        answer = admin(client, "PATCH", "policy", json={"threshold": step / 10_000})
                    except httpx.TransportError:
                        return
                    assert answer.status_code == 200
                    acknowledged.append(answer.json()["threshold"])

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: len(acknowledged) > 20, "writes")
        edge.kill()
        writer.join()
    with sqlite3.connect(tmp_path / "policy.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again = spawn_edge(tmp_path, large.url)
    with stopping(again):
        again.wait_ready()
        with httpx.Client(base_url=again.url, timeout=5.0) as client:
            found = admin(client, "GET", "policy").json()["threshold"]
            # The last write may have been stored without its answer having come through.
            assert acknowledged[-1] <= found <= acknowledged[-1] + 1.5 / 10_000
        assert again.terminate() == 0


@pytest.mark.slow
def test_two_edges_share_one_policy_through_redis_and_outlive_it(tmp_path: Path, large: Service) -> None:
    port = free_port()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    redis_url = f"redis://127.0.0.1:{port}/0"
    with RedisServer(port) as redis:
        edges = [spawn_edge(tmp_path / name, large.url, REDIS_URL=redis_url) for name in ("a", "b")]
        with stopping(*edges):
            for edge in edges:
                edge.wait_ready()
            with (
                httpx.Client(base_url=edges[0].url, timeout=10.0) as one,
                httpx.Client(base_url=edges[1].url, timeout=10.0) as two,
            ):

                def policy(client: httpx.Client) -> tuple[int, float]:
                    document = admin(client, "GET", "policy").json()
                    return document["version"], document["threshold"]

                def store_up(client: httpx.Client) -> bool:
                    return "gatekeeper_policy_store_up 1.0" in client.get("/metrics").text

                assert admin(one, "PATCH", "policy", json={"threshold": 0.31}).status_code == 200
                eventually(lambda: policy(two) == policy(one), "the change in the other edge")
                assert policy(two)[1] == 0.31

                redis.stop()
                eventually(lambda: not store_up(one) and not store_up(two), "both notice")
                assert output(one, EASY)["decision"] == output(two, EASY)["decision"] == "accepted"
                refused = admin(two, "PATCH", "policy", json={"threshold": 0.5})
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert one.get("/readyz").status_code == two.get("/readyz").status_code == 200
                assert policy(one)[1] == policy(two)[1] == 0.31

                redis.start()  # empty
                eventually(lambda: store_up(one) and store_up(two), "both heal", 10.0)
                assert policy(one)[1] == policy(two)[1] == 0.31
                changed = eventually(
                    lambda: admin(two, "PATCH", "policy", json={"threshold": 0.62}).status_code == 200, "writes again"
                )
                assert changed
                eventually(lambda: policy(one) == policy(two), "they converge", 10.0)
                assert policy(one)[1] == 0.62


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(tmp_path: Path, large: Service) -> None:
    edge = spawn_edge(tmp_path, large.url, DRAIN_S="0.5")
    with stopping(edge):
        edge.wait_ready()
        with httpx.Client(base_url=edge.url, timeout=20.0) as client, Load(edge.url) as load:
            eventually(lambda: load.statuses[200] > 20, "answers")
            edge.process.terminate()
            eventually(lambda: client.get("/readyz").status_code == 503, "not ready first")
            assert client.post("/v1/classify", json={"inputs": [EASY, ODD]}).status_code == 200
            load.__exit__()
            assert edge.process.wait(20) == 0
    assert set(load.statuses) == {200}


def test_without_a_token_the_admin_api_is_not_there(tmp_path: Path) -> None:
    port, admin_port = free_port(), free_port()
    environment = {"POLICY_PATH": str(tmp_path / "policy.db"), "REMOTE_URL": "http://127.0.0.1:9"}
    edge = spawn("serve", tmp_path / "edge.log", port, ADMIN_PORT=str(admin_port), **environment)
    with stopping(edge):
        edge.wait_ready()
        private = f"http://127.0.0.1:{admin_port}"
        assert httpx.get(f"{private}/admin/v1/policy", headers={"authorization": "Bearer x"}).status_code == 404
        assert httpx.get(f"{private}/metrics").status_code == 200
        assert httpx.get(f"{edge.url}/metrics").status_code == 404
        assert httpx.get(f"{private}/readyz").status_code == 200
        assert httpx.get(f"{private}/console").status_code == httpx.get(f"{private}/console/state").status_code == 200
        assert httpx.get(f"{edge.url}/console").status_code == httpx.get(f"{edge.url}/console/state").status_code == 404
        assert httpx.post(f"{private}/v1/classify", json={"inputs": EASY}).status_code == 200, "for the console"
        assert httpx.get(f"{private}/docs").status_code == 404
        with httpx.Client(base_url=edge.url) as client:
            assert output(client, EASY)["decision"] == "accepted"
            assert (output(client)["decision"], output(client)["answered_by"]) == ("degraded", "small")
        log = [json.loads(line) for line in edge.log.read_text().splitlines()]
        assert {entry["service"] for entry in log} == {"edge"}
        assert EASY not in edge.log.read_text()


def refused_start(*arguments: str, **environment: str) -> str:
    """The one line that a start which fails prints."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "gatekeeper.json", "calibration.parquet"])
def test_a_damaged_bundle_stops_the_start_with_one_line(tmp_path: Path, bundles: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundles / "clinc150-small", broken)
    content = bytearray((broken / damage).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (broken / damage).write_bytes(content)
    line = refused_start("--bundle", str(broken), "--port", "0")
    assert str(broken / damage) in line


def test_a_taken_port_and_a_bad_setting_are_told_in_one_line(edge: Service) -> None:
    assert f"port {edge.port} on 127.0.0.1 is taken" in refused_start("--port", str(edge.port))
    assert "GATEKEEPER_MAX_ITEMS" in refused_start("--port", "0", GATEKEEPER_MAX_ITEMS="none")
    assert "REDIS_URL" in refused_start("--port", "0", REDIS_URL="nonsense")


@pytest.mark.slow
def test_beyond_its_queue_an_edge_refuses_and_goes_on(tmp_path: Path) -> None:
    """Far more than fits: each request is answered whole or refused with 429, and health stays responsive."""
    small_queue = {"MAX_ITEMS": "8", "MAX_QUEUE_ITEMS": "8", "MAX_BATCH_ITEMS": "1", "RUNNER": "thread"}
    edge = spawn_edge(tmp_path, "http://127.0.0.1:9", **small_queue)

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=edge.url, timeout=30.0, limits=limits) as client:
            body = {"inputs": [EASY] * 8}
            return await asyncio.gather(*(client.post("/v1/classify", json=body) for _ in range(256)))

    with stopping(edge):
        edge.wait_ready()
        responses = asyncio.run(flood())
        refused = [response for response in responses if response.status_code == 429]
        assert {response.status_code for response in responses} == {200, 429}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert all(len(r.json()["outputs"]) == 8 for r in responses if r.status_code == 200)
        assert httpx.get(f"{edge.url}/readyz").status_code == 200
        with httpx.Client(base_url=edge.url) as client:
            assert output(client, EASY)["decision"] == "accepted"
            metrics = client.get("/metrics").text
        assert f'gatekeeper_rejected_total{{reason="overloaded"}} {len(refused)}.0' in metrics
        assert "gatekeeper_queue_depth 0.0" in metrics


async def test_slow_and_broken_connections_do_not_hold_up_the_others(edge: Service) -> None:
    """Half a header, half a body, idle connections: the next request is answered."""
    connections = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(100)]
    for index, (_, writer) in enumerate(connections):
        if index % 3 == 0:
            writer.write(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n")
        elif index % 3 == 1:
            writer.write(b'POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"inputs": "')
    async with httpx.AsyncClient(base_url=edge.url) as client:
        response = await client.post("/v1/classify", json={"inputs": EASY})
    assert response.status_code == 200
    for _, writer in connections:
        writer.close()


@pytest.mark.slow
def test_behind_a_proxy_the_guard_of_connections_can_be_left_to_it(tmp_path: Path) -> None:
    """A half-sent head is not cut any more; answers, readiness and the drain stay."""
    edge = spawn_edge(tmp_path, "http://127.0.0.1:9", CONNECTION_GUARD="off", CLIENT_TIMEOUT_S="0.3", DRAIN_S="0.2")
    with stopping(edge):
        edge.wait_ready()
        with socket.create_connection(("127.0.0.1", edge.port), timeout=5.0) as client:
            client.sendall(b"GET /livez HTT")
            client.settimeout(1.0)
            with pytest.raises(TimeoutError):  # with the guard on, 408 comes after 0.3 s
                client.recv(100)
            client.settimeout(5.0)
            client.sendall(b"P/1.1\r\nhost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        answer = httpx.post(f"{edge.url}/v1/classify", json={"inputs": [EASY]}, timeout=10.0)
        assert answer.status_code == 200
        edge.process.send_signal(signal.SIGTERM)
        assert edge.process.wait(10.0) == 0
