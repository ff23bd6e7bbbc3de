"""The defer path: the edge with everything deferred, and LLM gateways, each in front of the same stub upstream.

What a server adds is its time less that of the same question put to the stub directly, in the same round. The gateways
speak OpenAI's chat completions, the edge the contract of the large-model service: each has its own direct call.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from loadtests.common.answers import ContractBroken, Output, read_answer
from loadtests.common.edge import check_decided, running_edge, set_threshold
from loadtests.common.servers import BenchFailed, Cores, Server, free_port, running
from loadtests.compare.accept import PATH, REQUEST, SENTENCE
from loadtests.compare.contest import Contestant, Plan, alternate, invite
from loadtests.compare.peer import Peer
from loadtests.compare.report import PathReport, path_report
from loadtests.compare.stub import LABEL

EVERYTHING = 1.0  # a threshold that the sentence's confidence, 0.998, is below
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": SENTENCE}]
CHAT_REQUEST = json.dumps({"model": "stub-large", "messages": MESSAGES})
# The hint sends the question to its large model without a draft by its small one: one call upstream, as ours.
HINTED_REQUEST = json.dumps({"model": "stub-large", "messages": MESSAGES, "cascadeflow": {"complexity_hint": "hard"}})


def gateways(stub: str) -> tuple[Peer, ...]:
    """The peers in front of the stub at this URL."""

    def litellm(_: Path) -> Mapping[str, str]:
        return {
            "STUB_API_BASE": f"{stub}/v1",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network at its start
        }

    return (
        Peer(
            name="litellm",
            package="litellm",
            command=(
                *("litellm.proxy.proxy_cli", "--config", "loadtests/compare/peers/litellm.yaml"),
                *("--num_workers", "1", "--run_granian", "--telemetry", "False"),
            ),
            ready="/health/liveliness",
            path=CHAT,
            body=CHAT_REQUEST,
            environment=litellm,
        ),
        Peer(
            name="cascadeflow",
            package="cascadeflow",
            command=("cascadeflow.server", "--mode", "agent", "--config", "loadtests/compare/peers/cascadeflow.json"),
            ready="/health",
            path=CHAT,
            body=HINTED_REQUEST,
            environment=lambda _: {"VLLM_BASE_URL": f"{stub}/v1"},
        ),
    )


def measure_defer(plan: Plan, chosen: Sequence[str], directory: Path, cores: Cores) -> PathReport:
    """Raises BenchFailed when the edge or the stub cannot be measured; of a gateway the report says why."""
    with ExitStack() as stack:
        print("defer path: starting the stub upstream, the edge and the gateways ...", flush=True)
        stub = stack.enter_context(running_stub(directory, cores))
        edge = stack.enter_context(running_edge(directory, cores, stub.url))
        set_threshold(edge, EVERYTHING)
        direct = Contestant(stub, PATH, REQUEST, _check_contract, None, essential=True, pausable=False)
        ours = Contestant(edge, PATH, REQUEST, _check_deferred, direct.name, essential=True)
        answer = ours.ask()
        edge.tree.pause()
        contestants, missing = [direct, ours], dict[str, str]()
        peers = [peer for peer in gateways(stub.url) if peer.name in chosen]
        if peers:
            chat = Server("direct-openai", stub.process, stub.url)
            contestants.append(Contestant(chat, CHAT, CHAT_REQUEST, _check_chat, None, essential=True, pausable=False))
            invited, missing = invite(stack, peers, _check_chat, chat.name, directory, cores)
            contestants += invited
        outcome = alternate(contestants, plan, directory, cores)
        with edge.awake():
            check_decided(edge, ("deferred", "below_threshold"), outcome.requests(edge.name))
    versions = {peer.name: peer.version() for peer in peers}
    return path_report("defer", contestants, outcome, missing, len(answer), versions)


def running_stub(directory: Path, cores: Cores) -> AbstractContextManager[Server]:
    """On the load's core: what it costs is no part of what is measured in front of it."""
    return running(
        "direct",
        ["loadtests.compare.stub"],
        port=free_port(),
        ready="/readyz",
        environment={},
        directory=directory,
        core=cores.load,
    )


def _check_contract(body: bytes) -> None:
    if _read(body).label != LABEL:
        raise BenchFailed(f"the stub answered something else: {body[:200]!r}")


def _check_deferred(body: bytes) -> None:
    output = _read(body)
    said = (output.decision, output.answered_by, output.reason, output.label)
    if said != ("deferred", "large", "below_threshold", LABEL):
        raise BenchFailed(f"the edge did not defer: {', '.join(map(str, said))}")


def _check_chat(body: bytes) -> None:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise BenchFailed(f"not a chat completion: {body[:200]!r}") from None
    if content != LABEL:
        raise BenchFailed(f"another answer than the stub's: {content!r}")


def _read(body: bytes) -> Output:
    try:
        return read_answer(body, 1).outputs[0]
    except ContractBroken as broken:
        raise BenchFailed(f"not an answer as promised: {broken}") from None
