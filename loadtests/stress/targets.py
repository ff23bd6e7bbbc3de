"""The edges that are put under load, each with the request that is sent to it, and their own figures.

- `default`: the packaged bundle with its defaults; what costs is HTTP.
- `inline`, `thread`: the same, with the model on the event loop, and in a thread of its own.
- `model-bound`: the packaged large model behind the edge's gate. Its request is a text of as many sentences as it takes
  for an item to cost at least 10 ms on this machine, so that the model is what is short.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from loadtests.common.client import Pool, request_bytes
from loadtests.common.servers import ROOT, BenchFailed, Cores, Server, free_port, running
from loadtests.stress.arrivals import OnReply, Outcomes, closed_loop, open_loop, run_load

SENTENCE = "what is my checking account balance"
LARGE_BUNDLE = ROOT / "models" / "bundles" / "clinc150-large"
MODEL_BOUND_S = 0.010  # an item
CAPACITY_CONNECTIONS, CAPACITY_S, CAPACITY_ATTEMPTS = 32, 3.0, 4  # of a closed loop
SENTENCES = (3, 5, 8, 12, 16, 20)  # the model reads 128 tokens
TARGETS = ("default", "inline", "thread", "model-bound")
ENVIRONMENT: dict[str, dict[str, str]] = {
    "default": {},
    "inline": {"GATEKEEPER_RUNNER": "inline"},
    "thread": {"GATEKEEPER_RUNNER": "thread"},
    "model-bound": {"GATEKEEPER_BUNDLE": str(LARGE_BUNDLE)},
}


@dataclass(frozen=True)
class Target:
    """A running edge and the request to send. `item_ms`: a single item's share of a batch, measured."""

    name: str
    server: Server
    request: bytes
    runner: str
    item_ms: float

    def capacity(self) -> Outcomes:
        """A closed loop at CAPACITY_CONNECTIONS, again where somebody else has held the machine up meanwhile.

        Raises BenchFailed where not all is answered with 200.
        """
        for _ in range(CAPACITY_ATTEMPTS):
            outcomes = self.closed(CAPACITY_CONNECTIONS, CAPACITY_S)
            if (outcomes.statuses == 200).all():
                return outcomes
        raise BenchFailed(f"{self.name} does not even answer {CAPACITY_CONNECTIONS} connections with 200")

    def closed(self, connections: int, seconds: float, on_reply: OnReply | None = None) -> Outcomes:
        """Ask on so many connections, on each as soon as the last one is answered."""
        return _closed(self.server, self.request, connections, seconds, on_reply)

    def opened(
        self,
        moments: NDArray[np.float64],
        deadline_s: float,
        *,
        connections: int,
        at_once: int,
        on_reply: OnReply | None = None,
    ) -> Outcomes:
        """Ask at each of the moments; `connections` at the most, of which `at_once` are there before the first."""

        async def ask() -> Outcomes:
            to_it = pool(self.server, connections)
            await to_it.fill(min(connections, at_once))
            outcomes = await open_loop(to_it, self.request, moments, deadline_s, on_reply)
            await to_it.aclose()
            return outcomes

        return run_load(ask())

    def metrics(self) -> dict[str, float]:
        """Its own figures now: sums and counts of histograms, buckets as `name_bucket{le}`, plain gauges."""
        return metrics(self.server)


@contextmanager
def target(name: str, directory: Path, cores: Cores, headers: Mapping[str, str], **more: str) -> Iterator[Target]:
    """Start the edge of that name, with `more` variables, and stop it; it defers nothing. Raises BenchFailed."""
    environment = {
        "GATEKEEPER_LOG_FORMAT": "json",
        "GATEKEEPER_POLICY_PATH": str(directory / f"{name}.db"),
        "GATEKEEPER_REMOTE_URL": "http://127.0.0.1:9",  # nobody
        "GATEKEEPER_ADMIN_TOKEN": "of-a-load-test",
        "GATEKEEPER_DRAIN_S": "0",
        **more,
    }
    with running(
        name,
        ["service.cli", "serve"],
        port=free_port(),
        ready="/readyz",
        environment=environment | ENVIRONMENT[name],
        directory=directory,
        core=cores.servers,
    ) as server:
        status = _get(server, "/admin/v1/status", {"authorization": "Bearer of-a-load-test"}).json()
        request, item_s = b"", 0.0
        for sentences in SENTENCES if name == "model-bound" else (1,):
            body = json.dumps({"inputs": " ".join([SENTENCE] * sentences)}).encode()
            request = request_bytes("POST", "/v1/classify", body, headers)
            _check_accepted(server, body)
            item_s = _item_s(server, request)
            if item_s >= MODEL_BOUND_S:
                break
        yield Target(name, server, request, status["runner"], item_s * 1000)


def pool(server: Server, limit: int) -> Pool:
    """Connections to a server."""
    url = httpx.URL(server.url)
    return Pool(url.host, url.port or 80, limit)


def metrics(server: Server) -> dict[str, float]:
    """The samples of /metrics that are told apart by `le` alone."""
    found = {}
    for family in text_string_to_metric_families(_get(server, "/metrics", {}).text):
        for sample in family.samples:
            if not sample.labels:
                found[sample.name] = sample.value
            elif sample.labels.keys() == {"le"}:
                found[f"{sample.name}{{{sample.labels['le']}}}"] = sample.value
    return found


def _closed(
    server: Server, request: bytes, connections: int, seconds: float, on_reply: OnReply | None = None
) -> Outcomes:
    async def ask() -> Outcomes:
        to_it = pool(server, connections)
        outcomes = await closed_loop(to_it, request, connections, seconds, on_reply)
        await to_it.aclose()
        return outcomes

    return run_load(ask())


def _item_s(server: Server, request: bytes) -> float:
    """What an item costs the model when 32 are asked at once."""
    before = metrics(server)
    _closed(server, request, 32, 1.0)
    after = metrics(server)
    seconds, items = (
        after[name] - before[name] for name in ("gatekeeper_small_seconds_sum", "gatekeeper_batch_size_sum")
    )
    return seconds / items if items else 0.0


def _check_accepted(server: Server, body: bytes) -> None:
    answered = httpx.post(
        f"{server.url}/v1/classify", content=body, headers={"content-type": "application/json"}, trust_env=False
    )
    if answered.status_code != 200:
        raise BenchFailed(f"{server.name} answered {answered.status_code}: {answered.text[:200]}")
    output = answered.json()["outputs"][0]
    if output["decision"] != "accepted":
        raise BenchFailed(
            f"{server.name}: the load must be answered by the edge itself, and its text was {output['decision']} "
            f"(confidence {output['confidence']:.3f})"
        )


def _get(server: Server, path: str, headers: dict[str, str]) -> httpx.Response:
    try:
        answered = httpx.get(f"{server.url}{path}", headers=headers, timeout=30.0, trust_env=False)
        return answered.raise_for_status()
    except httpx.HTTPError as error:
        raise BenchFailed(f"{server.name}: GET {path}: {error}") from None
