"""Faults of Redis, under load: the last known policy goes on, writes are refused, and all heals by itself.

.venv/bin/python -m pytest -n0 -m fault tests/faults/test_fault_redis.py -k stopped

One file because every fault is put upon the same stage of edges and Redis, set once.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from support.background import Cable
from support.faults import Load, Row
from support.processes import Service, admin, eventually, spawn_edge, stopping
from support.redis_server import RedisServer, free_port

from service.policy.document import MAX_VERSION, Policy
from service.policy.redis import RedisPolicyStore

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

PASSWORD = "hunter2-secret"
DOWN = "writes 503 with Retry-After, the last policy goes on; policy_store_up 0"


@dataclass
class Stage:
    """A Redis with a password that keeps its data over a kill, a cable to it, and an edge at the other end."""

    redis: RedisServer
    cable: Cable
    edge: Service

    def admin(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with httpx.Client(base_url=self.edge.url, timeout=20.0) as client:
            return admin(client, method, path, **kwargs)

    @property
    def threshold(self) -> float:
        found: float = self.admin("GET", "policy").json()["threshold"]
        return found

    @property
    def store_up(self) -> bool:
        return "gatekeeper_policy_store_up 1.0" in httpx.get(f"{self.edge.url}/metrics", timeout=20.0).text

    def write(self, threshold: float) -> httpx.Response:
        return self.admin("PATCH", "policy", json={"threshold": threshold})

    def directly(self, password: str = PASSWORD) -> Redis:
        """The server itself, past the cable."""
        return Redis(port=self.redis.port, password=password, socket_timeout=5.0)

    @property
    def folder(self) -> Path:
        return Path(self.redis._folder.name)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    durable = ("--requirepass", PASSWORD, "--appendonly", "yes", "--appendfsync", "always")
    directory = tmp_path_factory.mktemp("edge")
    with RedisServer(None, *durable) as redis, Cable(redis.port) as cable:
        url = f"redis://:{PASSWORD}@127.0.0.1:{cable.port}/0"
        edge = spawn_edge(directory, "http://127.0.0.1:9", REDIS_URL=url, REDIS_TIMEOUT_S="1", POLICY_POLL_S="0.3")
        with stopping(edge):
            edge.wait_ready(90.0)
            yield Stage(redis, cable, edge)


@pytest.fixture
def threshold(stage: Stage) -> float:
    """Written before the fault, through a store that is well: what must be in force all the time."""
    value = round(0.9 + datetime.now(UTC).microsecond / 1e8, 8)
    eventually(lambda: stage.store_up and stage.write(value).status_code == 200, "a healthy store", 20.0)
    return value


def killed(stage: Stage) -> None:
    stage.redis.stop()


def started(stage: Stage) -> None:
    stage.redis.start()


def started_empty(stage: Stage) -> None:
    shutil.rmtree(stage.folder / "appendonlydir")
    stage.redis.start()


def stopped(stage: Stage) -> None:
    stage.redis.pause()


def resumed(stage: Stage) -> None:
    stage.redis.resume()


def cut_off(stage: Stage) -> None:
    stage.cable.cut()


def joined(stage: Stage) -> None:
    stage.cable.mend()


def configured(name: str, value: str) -> Callable[[Stage], None]:
    def configure(stage: Stage) -> None:
        with stage.directly() as redis:
            redis.config_set(name, value)

    return configure


def made_a_replica(stage: Stage) -> None:
    with stage.directly() as redis:
        redis.replicaof("127.0.0.1", str(free_port()))


def made_a_primary(stage: Stage) -> None:
    with stage.directly() as redis:
        redis.replicaof("NO", "ONE")


def given_another_password(stage: Stage) -> None:
    with stage.directly() as redis:
        redis.config_set("requirepass", "another")
    with stage.directly("another") as redis:  # those who have logged in would stay
        for kind in ("normal", "pubsub"):
            redis.client_kill_filter(_type=kind, skipme=True)


def given_its_password(stage: Stage) -> None:
    with stage.directly("another") as redis:
        redis.config_set("requirepass", PASSWORD)


@pytest.mark.parametrize(
    ("harm", "mend", "reads", "words"),
    [
        pytest.param(killed, started, False, "killed, then started with its data", id="killed"),
        pytest.param(killed, started_empty, False, "killed, then started empty", id="restarted-empty"),
        pytest.param(stopped, resumed, False, "stopped (SIGSTOP), then SIGCONT", id="stopped"),
        pytest.param(cut_off, joined, False, "cut off (connections open, nothing flows), then healed", id="cut-off"),
        pytest.param(given_another_password, given_its_password, False, "wrong password", id="wrong-password"),
        pytest.param(made_a_replica, made_a_primary, True, "read-only: a replica without its primary", id="replica"),
        pytest.param(
            configured("min-replicas-to-write", "1"),
            configured("min-replicas-to-write", "0"),
            True,
            "read-only: min-replicas-to-write",
            id="too-few-replicas",
        ),
        pytest.param(
            configured("maxmemory", "1"), configured("maxmemory", "0"), True, "full (maxmemory, noeviction)", id="full"
        ),
    ],
)
def test_store(
    harm: Callable[[Stage], None],
    mend: Callable[[Stage], None],
    reads: bool,
    words: str,
    stage: Stage,
    threshold: float,
    fault: Row,
) -> None:
    """No request is lost, none is answered under another policy, and writing works again by itself afterwards."""
    version = stage.admin("GET", "policy").json()["version"]
    with Load(stage.edge.url) as load:
        load.more("degraded")
        harm(stage)
        refused = eventually(lambda: (answer := stage.write(0.5)).status_code == 503 and answer, "a refused write")
        assert int(refused.headers["retry-after"]) >= 1
        if not reads:
            eventually(lambda: not stage.store_up, "policy_store_up 0")
        load.more("degraded", 20)
        assert stage.threshold == threshold
        assert httpx.get(f"{stage.edge.url}/readyz").status_code == 200
        mend(stage)
        with fault.healing():
            eventually(lambda: stage.store_up, "policy_store_up 1", 20.0)
            assert stage.threshold == threshold
            eventually(lambda: stage.write(threshold).status_code == 200, "a write", 20.0)
        load.more("degraded")
    after = stage.admin("GET", "policy").json()
    assert after["threshold"] == threshold
    assert after["version"] > version
    history = stage.admin("GET", "policy/history").json()
    kept = [entry["version"] for entry in history["versions"]]
    assert version in kept or mend is started_empty
    assert PASSWORD not in stage.edge.log.read_text()
    fault.account(load)
    lost = "; the history before is gone" if mend is started_empty else ""
    fault.tell(f"Redis: {words}", ("writes 503 with Retry-After, the policy goes on" if reads else DOWN) + lost)


def test_cut_off_catches_up(stage: Stage, threshold: float, fault: Row) -> None:
    """What others wrote while this edge was cut off is in force once it is back; nothing of it is overwritten."""

    async def write_elsewhere() -> Policy:
        store = RedisPolicyStore(f"redis://:{PASSWORD}@127.0.0.1:{stage.redis.port}/0", 5.0)
        old = stage.admin("GET", "policy").json()
        changes = {"version": old["version"] + 1, "threshold": 0.77, "updated_by": "another edge"}
        policy = Policy.model_validate(old | changes)
        await store.append("clinc150-small", policy, expected_version=old["version"])
        await store.close()
        return policy

    with Load(stage.edge.url) as load:
        stage.cable.cut()
        eventually(lambda: not stage.store_up, "policy_store_up 0")
        written = asyncio.run(write_elsewhere())
        load.more("degraded")
        assert stage.threshold == threshold
        stage.cable.mend()
        with fault.healing():
            eventually(lambda: stage.threshold == 0.77, "the policy of the others", 20.0)
    assert stage.admin("GET", "policy").json()["version"] == written.version
    fault.account(load)
    fault.tell("Redis: cut off from this edge alone, while another writes", "the policy of before, then the other's")


@pytest.mark.parametrize("kind", ["document", "type"])
def test_garbage(kind: str, stage: Stage, threshold: float, fault: Row) -> None:
    """Unreadable content under our keys is not taken up, and the next write goes past it."""
    policy = stage.admin("GET", "policy").json()
    gate = f"gatekeeper:policy:{{clinc150-small}}:{policy['gate_digest']}"
    with Load(stage.edge.url) as load, stage.directly() as redis:
        load.more("degraded")
        if kind == "type":
            redis.set(gate, "garbage")
        else:
            redis.zadd(gate, {b"\xff\x00 no policy": policy["version"] + 1})
        redis.publish("gatekeeper:policy:changes", "clinc150-small")
        eventually(lambda: "nreadable policy" in stage.edge.log.read_text(), "a line in the log")
        load.more("degraded", 20)
        assert stage.threshold == threshold
        with fault.healing():
            eventually(lambda: stage.write(0.7).status_code == 200, "a write", 20.0)
        assert stage.threshold == 0.7
        load.more("degraded")
    fault.account(load)
    what = "a key of another type" if kind == "type" else "a document that is no policy, of a higher version"
    fault.tell(f"Redis: garbage in our keys, {what}", "nothing; one line in the log")


def calls(redis: Redis, command: str) -> int:
    """How often the server was asked for that, by everybody."""
    found: int = redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)
    return found


def rounds_without_a_write(redis: Redis) -> None:
    """The edge asks on, and writes nothing: a policy that it wrote but cannot read would be written for ever."""
    asked, written = calls(redis, "zrevrangebyscore"), calls(redis, "zadd")
    eventually(lambda: calls(redis, "zrevrangebyscore") > asked + 10, "ten more rounds", 20.0)
    assert calls(redis, "zadd") == written


@pytest.fixture
def index(stage: Stage) -> Iterator[str]:
    """The key of the index; garbage that is left in it goes away."""
    key = "gatekeeper:policy:{clinc150-small}"
    yield key
    with stage.directly() as redis:
        redis.zrem(key, "garbage")


def test_garbage_of_the_highest_version(stage: Stage, threshold: float, index: str, fault: Row) -> None:
    """A running edge is given a store that has lost the newest policy as well; then one starts among the garbage."""
    policy = stage.admin("GET", "policy").json()
    gate = f"{index}:{policy['gate_digest']}"
    with Load(stage.edge.url) as load, stage.directly() as redis:
        load.more("degraded")
        with redis.pipeline() as transaction:
            transaction.zadd(index, {"garbage": MAX_VERSION})
            transaction.zadd(gate, {"garbage": MAX_VERSION})
            transaction.zremrangebyscore(gate, policy["version"], policy["version"])
            transaction.execute()
        with fault.healing():
            eventually(lambda: str(threshold) in str(redis.zrange(gate, 0, -1)), "the policy in force, given back")
        rounds_without_a_write(redis)
        assert stage.threshold == threshold
        written = stage.write(0.7)
        assert (written.status_code, written.json()["version"]) == (200, policy["version"] + 2)
        assert stage.admin("GET", "policy/history").status_code == 200
        assert stage.admin("POST", "policy/rollback", json={"version": MAX_VERSION}).status_code == 404
        load.more("degraded")
        fault.account(load)
        redis.delete(gate)  # nothing for a new edge to go by
        (directory := stage.edge.log.parent / "another").mkdir()
        url = f"redis://:{PASSWORD}@127.0.0.1:{stage.redis.port}/0"
        another = spawn_edge(directory, "http://127.0.0.1:9", REDIS_URL=url)
        with stopping(another):
            another.wait_ready(90.0)
            with httpx.Client(base_url=another.url, timeout=20.0) as client:
                assert admin(client, "PATCH", "policy", json={"threshold": 0.6}).status_code == 200
    fault.tell(
        "Redis: garbage of the highest version there is, and the newest policy lost; an edge starts among it",
        "nothing; one line in the log for each key",
    )


def test_thousands_of_unreadable_policies(stage: Stage, threshold: float, index: str, fault: Row) -> None:
    """They push no policy out, and are not read over and over."""
    policy = stage.admin("GET", "policy").json()
    gate = f"{index}:{policy['gate_digest']}"
    versions = [stage.write(threshold).json()["version"] for _ in range(10)]
    lines = stage.edge.log.read_text().count("nreadable polic")
    with Load(stage.edge.url) as load, stage.directly() as redis:
        load.more("degraded")
        redis.zadd(gate, {b"\xff no policy %d" % number: versions[-1] + number for number in range(1, 3_001)})
        with fault.healing():
            eventually(lambda: redis.zcard(gate) < 3_000, "all but the newest 100 of them gone")
        written = stage.write(threshold).json()["version"]
        rounds_without_a_write(redis)
        load.more("degraded", 20)
    history = [entry["version"] for entry in stage.admin("GET", "policy/history?limit=1000").json()["versions"]]
    assert history[:11] == [written, *versions[::-1]]
    assert stage.threshold == threshold
    assert stage.edge.log.read_text().count("nreadable polic") - lines <= 21
    fault.account(load)
    fault.tell("Redis: 3,000 unreadable policies of higher versions", "nothing; 21 lines in the log")


def test_several_writers_while_stopped(stage: Stage, threshold: float, fault: Row) -> None:
    """They are told together, not one after the other."""
    with Load(stage.edge.url) as load, ThreadPoolExecutor(12) as threads:
        stage.redis.pause()
        began = time.monotonic()
        answers = list(threads.map(stage.write, [0.5] * 12))
        last_s = time.monotonic() - began
        assert [answer.status_code for answer in answers] == [503] * 12
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        eventually(lambda: not stage.store_up, "policy_store_up 0")
        began = time.monotonic()
        assert stage.write(0.5).status_code == 503
        known_s = time.monotonic() - began
        load.more("degraded", 20)
        assert stage.threshold == threshold
        stage.redis.resume()
        with fault.healing():
            eventually(lambda: stage.write(threshold).status_code == 200, "a write", 20.0)
    fault.account(load)
    sees = f"503 with Retry-After, the last after {last_s:.1f} s; once it is known to be down after {known_s:.2f} s"
    fault.tell("Redis: stopped (SIGSTOP), 12 writes at once", sees)


def test_flood_of_messages(stage: Stage, threshold: float, fault: Row) -> None:
    """Messages on our channel are a reason to look, not one look each."""
    with Load(stage.edge.url) as load, stage.directly() as redis:
        load.more("degraded")
        asked = calls(redis, "zrevrangebyscore")
        for _ in range(100):
            with redis.pipeline() as pipeline:
                for _ in range(500):
                    pipeline.publish("gatekeeper:policy:changes", "clinc150-small")
                pipeline.execute()
        load.more("degraded", 20)
        with fault.healing():
            eventually(lambda: stage.write(0.7).status_code == 200, "a write", 20.0)
        assert calls(redis, "zrevrangebyscore") - asked < 500
        load.more("degraded")
    fault.account(load)
    fault.tell("Redis: 50,000 messages on our channel, as fast as it takes them", "nothing; one line in the log")


def test_down_at_start(stage: Stage, threshold: float, fault: Row) -> None:
    """An edge that starts while Redis is away is ready under its last good policy, and finds Redis by itself."""
    edge = stage.edge
    last_good = edge.log.parent / "last-good-clinc150-small.json"
    eventually(lambda: str(threshold) in last_good.read_text(), "the last good policy on the edge's own disk")
    stage.redis.stop()
    edge.kill()
    url = f"redis://:{PASSWORD}@127.0.0.1:{stage.cable.port}/0"
    quick = {"REDIS_URL": url, "REDIS_TIMEOUT_S": "1", "POLICY_POLL_S": "0.3"}
    stage.edge = spawn_edge(edge.log.parent, "http://127.0.0.1:9", edge.port, **quick)
    try:
        stage.edge.wait_ready(90.0)
        assert stage.threshold == threshold
        assert not stage.store_up
        with Load(stage.edge.url) as load:
            load.more("degraded")
            stage.redis.start()
            with fault.healing():
                eventually(lambda: stage.write(threshold).status_code == 200, "a write", 20.0)
            load.more("degraded")
    finally:
        with stopping(stage.edge):
            pass
    fault.account(load)
    fault.tell("Redis: away when an edge starts", "ready, the last good policy; writes 503")
