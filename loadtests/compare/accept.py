"""The accept path: the edge, a bare FastAPI route, and other model servers with the same bundle."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from loadtests.common.answers import ContractBroken, read_answer
from loadtests.common.edge import check_decided, running_edge
from loadtests.common.servers import BenchFailed, Cores, Server, free_port, running
from loadtests.compare.contest import Contestant, Plan, alternate, invite
from loadtests.compare.peer import Peer
from loadtests.compare.report import PathReport, path_report

PATH = "/v1/classify"
SENTENCE = "what is my checking account balance"
REQUEST = json.dumps({"inputs": SENTENCE})
TOLERANCE = 1e-5  # of a score: another batch, another order of summation


def _bentoml_environment(directory: Path) -> Mapping[str, str]:
    return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(directory / "bentoml")}


def _ray_environment(directory: Path) -> Mapping[str, str]:
    # Short names: HAProxy puts 57 characters before each, and its sockets' paths end at 97.
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else it writes one into the home directory
        "RAY_TMPDIR": str(directory),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


RAY = Peer(
    name="ray",
    package="ray",
    command=("loadtests.compare.peers.ray_app",),
    ready=PATH,
    path=PATH,
    body=REQUEST,
    environment=_ray_environment,
)
PEERS = (
    Peer("litserve", "litserve", ("loadtests.compare.peers.litserve_app",), "/health", PATH, REQUEST),
    Peer(
        name="bentoml",
        package="bentoml",
        command=("bentoml", "serve", "loadtests.compare.peers.bento_app:Classify"),
        ready="/readyz",
        path=PATH,
        body=json.dumps({"inputs": [SENTENCE]}),  # a batchable route takes a list
        environment=_bentoml_environment,
    ),
    RAY,
    replace(RAY, name="ray-all-cores", pinned=False),  # half a dozen processes: the same on every core
)


def measure_accept(plan: Plan, peers: Sequence[Peer], directory: Path, cores: Cores) -> PathReport:
    """Raises BenchFailed when the edge or the bare route cannot be measured; of a peer the report says why."""
    with ExitStack() as stack:
        print("accept path: starting the edge, the bare route and other servers ...", flush=True)
        edge = stack.enter_context(running_edge(directory, cores))
        ours = Contestant(edge, PATH, REQUEST, _check_accepted, "bare", essential=True)
        answer = ours.ask()
        route = stack.enter_context(running_bare(directory, cores, answer))
        bare = Contestant(route, PATH, REQUEST, _same(answer), None, essential=True)
        for server in (edge, route):
            server.tree.pause()
        invited, missing = invite(stack, peers, _same_prediction(answer), route.name, directory, cores)
        contestants = [bare, ours, *invited]
        outcome = alternate(contestants, plan, directory, cores)
        with edge.awake():
            check_decided(edge, ("accepted", "none"), outcome.requests(edge.name))
    versions = {peer.name: peer.version() for peer in peers}
    return path_report("accept", contestants, outcome, missing, len(answer), versions)


def running_bare(directory: Path, cores: Cores, answer: bytes) -> AbstractContextManager[Server]:
    """The reference, which gives the edge's own answer to everything."""
    return running(
        "bare",
        ["uvicorn", "loadtests.compare.bare:app", "--no-access-log", "--no-server-header", "--log-level", "warning"],
        port=free_port(),
        ready="/openapi.json",
        environment={"BARE_ANSWER": answer.decode()},
        directory=directory,
        core=cores.servers,
    )


def _check_accepted(body: bytes) -> None:
    """The edge's answer to the sentence is one of the accept path."""
    try:
        answer = read_answer(body, 1)
    except ContractBroken as broken:
        raise BenchFailed(f"the edge does not answer as promised: {broken}") from None
    output = answer.outputs[0]
    if output.decision != "accepted" or output.reason is not None:
        raise BenchFailed(
            f"`{SENTENCE}` was {output.decision} (confidence {output.confidence:.3f}, threshold {answer.threshold}), "
            "and this bench needs a sentence that the gate accepts"
        )


def _same(answer: bytes) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        if body != answer:
            raise BenchFailed("the bare route does not answer what it was given")

    return check


def _same_prediction(answer: bytes) -> Callable[[bytes], None]:
    """A check that the label, score and confidence are those of the edge's answer."""
    wanted = json.loads(answer)["outputs"][0]

    def check(body: bytes) -> None:
        try:
            found = json.loads(body)
            output = (found[0] if isinstance(found, list) else found)["outputs"][0]
            gaps = [abs(output[name] - wanted[name]) for name in ("score", "confidence")]
            same = output["label"] == wanted["label"] and max(gaps) <= TOLERANCE
        except (ValueError, LookupError, TypeError):
            raise BenchFailed(f"not an answer: {body[:200]!r}") from None
        if not same:
            raise BenchFailed(f"another answer than the edge's: {body[:200]!r}")

    return check
