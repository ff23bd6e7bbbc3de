"""A new bundle rolls over two edges on one Redis under load, and back, as docs/operations.md says to do it."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from support import faults
from support.load import EASY, ODD
from support.processes import Service, admin, eventually, spawn_edge, stopping
from support.redis_server import RedisServer

from models.bundle import copy_bundle, load_bundle, rewrite_bundle

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]
THREADS = 2
PAUSE_S = 0.005  # the load leaves the machine to those who start
OLD, NEW = 0.42, 0.55  # thresholds that operators have set for the old and the new gate
NEW_DEFAULT = 0.61


class Balancer:
    """What stands in front of the edges: asks their readiness and sends requests to those that are ready, in turn."""

    def __init__(self, ports: list[int]) -> None:
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._ready: list[str] = []
        self._turn = itertools.count()
        self._stop = threading.Event()
        self.statuses: Counter[int | str] = Counter()
        # (confidence of the odd text, threshold, policy version): the first tells which gate has decided
        self.decided: set[tuple[float, float, int]] = set()
        self._threads = [
            threading.Thread(target=self._look),
            *(threading.Thread(target=self._ask) for _ in range(THREADS)),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        with httpx.Client(timeout=2.0) as client:
            while not self._stop.wait(0.05):
                ready = []
                for url in self._urls:
                    with suppress(httpx.TransportError):
                        if client.get(f"{url}/readyz").status_code == 200:
                            ready.append(url)
                self._ready = ready

    def _ask(self) -> None:
        with httpx.Client(timeout=20.0) as client:
            while not self._stop.is_set():
                ready = self._ready
                if not ready:
                    self._stop.wait(0.01)
                    continue
                self._stop.wait(PAUSE_S)
                url = ready[next(self._turn) % len(ready)]
                try:
                    response = client.post(f"{url}/v1/classify", json={"inputs": [EASY, ODD]})
                except httpx.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[response.status_code] += 1
                if response.status_code == 200:
                    answer = response.json()
                    odd = round(answer["outputs"][1]["confidence"], 6)
                    self.decided.add((odd, answer["threshold"], answer["policy_version"]))


@pytest.fixture
def new_bundle(bundles: Path, tmp_path: Path) -> Path:
    """The packaged one with another temperature: other confidences, and so another gate digest."""
    copied = copy_bundle(load_bundle(bundles / "clinc150-small"), tmp_path / "tuned-again")
    changes = {"temperature": 1.0, "default_threshold": NEW_DEFAULT}
    changed = rewrite_bundle(copied, changes, lambda _: None)
    assert changed.gate_digest != copied.gate_digest
    assert changed.manifest.name == copied.manifest.name
    return changed.directory


class Edges:
    """Two edges on one Redis, replaced one after the other as a rolling update does."""

    def __init__(self, directory: Path, large: Service, redis: RedisServer, bundle: Path) -> None:
        self._directory = directory
        self._large = large
        self._redis = redis
        self.running = [self._start(number, bundle, None) for number in range(2)]
        for edge in self.running:
            edge.wait_ready(60.0)

    def roll_over(self, bundle: Path) -> None:
        """SIGTERM, exit code 0, start with the other bundle, ready; then the next."""
        for number, edge in enumerate(self.running):
            assert edge.terminate() == 0
            self.running[number] = self._start(number, bundle, edge.port)
            self.running[number].wait_ready(60.0)

    def policies(self) -> list[dict[str, Any]]:
        found = []
        for edge in self.running:
            with httpx.Client(base_url=edge.url, timeout=10.0) as client:
                found.append(admin(client, "GET", "policy").json())
        return found

    def patch(self, **fields: Any) -> dict[str, Any]:
        """A change through the first; both have it."""
        with httpx.Client(base_url=self.running[0].url, timeout=10.0) as client:
            changed: dict[str, Any] = admin(client, "PATCH", "policy", json=fields).json()
        eventually(lambda: self.policies() == [changed, changed], "both follow")
        return changed

    def _start(self, number: int, bundle: Path, port: int | None) -> Service:
        directory = self._directory / f"edge-{number}"
        directory.mkdir(exist_ok=True)
        environment = {"REDIS_URL": self._redis.url, "BUNDLE": str(bundle), "DRAIN_S": "1"}
        return spawn_edge(directory, self._large.url, port, **environment)


@pytest.fixture
def edges(tmp_path: Path, large: Service, bundles: Path) -> Iterator[Edges]:
    with RedisServer() as redis:
        edges = Edges(tmp_path, large, redis, bundles / "clinc150-small")
        try:
            yield edges
        finally:
            with stopping(*edges.running):
                pass


def test_a_new_gate_rolls_over_and_back(edges: Edges, new_bundle: Path, bundles: Path, fault: faults.Row) -> None:
    """Not one request fails; a threshold decides for its own gate alone; rolling back brings the old policy back."""
    old = edges.patch(threshold=OLD, remote_timeout_s=7.5, note="for the old gate")
    with Balancer([edge.port for edge in edges.running]) as balancer:
        eventually(lambda: balancer.statuses[200] > 50, "requests are answered")

        edges.roll_over(new_bundle)
        first, second = edges.policies()
        assert first == second
        assert first["gate_digest"] != old["gate_digest"]
        assert first["version"] > old["version"]
        assert (first["threshold"], first["remote_timeout_s"]) == (NEW_DEFAULT, 7.5), "all but the threshold is kept"
        new = edges.patch(threshold=NEW, note="for the new gate")

        edges.roll_over(bundles / "clinc150-small")
        assert edges.policies() == [old, old]

        edges.roll_over(new_bundle)
        assert edges.policies() == [new, new]
        served = balancer.statuses[200]
        eventually(lambda: balancer.statuses[200] > served + 50, "requests are answered")

    assert set(balancer.statuses) == {200}, balancer.statuses
    by_gate: dict[float, set[float]] = {}
    for confidence, threshold, _ in balancer.decided:
        by_gate.setdefault(confidence, set()).add(threshold)
    assert sorted(map(sorted, by_gate.values())) == [[OLD], [NEW, NEW_DEFAULT]]
    fault.count(balancer.statuses.total())
    fault.tell("a new gate digest: two edges on one Redis rolled over, back, and over again, under load", "nothing")
