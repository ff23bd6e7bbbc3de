"""Servers that take turns under the same load, round after round."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtests.common.servers import BenchFailed, Cores, Server
from loadtests.compare.peer import Peer
from loadtests.compare.wrk import Measurement, Wrk, write_script

WARM_UP_S = 1
ASK_S = 60.0  # the first request of some servers takes seconds


@dataclass(frozen=True)
class Plan:
    """What is measured: each server at each number of connections, `rounds` times, for `seconds`."""

    binary: str
    rounds: int
    seconds: int
    connections: tuple[int, ...]


@dataclass(frozen=True)
class Contestant:
    """A server with the request that it is sent and what its answer must be.

    `check` raises BenchFailed for an answer that is not right. `reference`: the name of the server whose figures of the
    same round it is compared with. `essential`: without it there is no comparison. `pausable`: nobody else needs it.
    """

    server: Server
    path: str
    body: str
    check: Callable[[bytes], None]
    reference: str | None
    essential: bool = False
    pausable: bool = True

    @property
    def name(self) -> str:
        return self.server.name

    def ask(self) -> bytes:
        """Its answer, if that is right."""
        headers = {"content-type": "application/json"}
        url = f"{self.server.url}{self.path}"
        try:
            response = httpx.post(url, content=self.body, headers=headers, trust_env=False, timeout=ASK_S)
        except httpx.TransportError as error:
            raise BenchFailed(f"{self.name} does not answer: {error!r}") from None
        if response.status_code != 200:
            raise BenchFailed(f"{self.name} answered {response.status_code}: {response.text[:200]}")
        self.check(response.content)
        return response.content

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Nothing but this server and what it needs runs inside."""
        with self.server.awake() if self.pausable else nullcontext():
            yield


@dataclass
class Outcome:
    """What was measured, and who dropped out and why."""

    measurements: list[Measurement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def requests(self, name: str) -> int:
        """Counted ones, without the warm-ups."""
        return sum(one.requests for one in self.measurements if one.server == name)


def invite(
    stack: ExitStack,
    peers: Sequence[Peer],
    check: Callable[[bytes], None],
    reference: str,
    directory: Path,
    cores: Cores,
) -> tuple[list[Contestant], dict[str, str]]:
    """The peers that can be had, started and paused, and why each of the others cannot."""
    contestants, missing = [], {}
    for number, peer in enumerate(peers):
        own = directory / str(number)  # short: Ray puts long names behind it, and paths of sockets are limited
        try:
            contestants.append(stack.enter_context(_started(peer, check, reference, own, cores)))
        except BenchFailed as reason:
            missing[peer.name] = str(reason)
            print(f"{peer.name} cannot be measured: {reason}", flush=True)
    return contestants, missing


@contextmanager
def _started(
    peer: Peer, check: Callable[[bytes], None], reference: str, directory: Path, cores: Cores
) -> Iterator[Contestant]:
    directory.mkdir()
    with peer.start(directory, cores) as server:
        one = Contestant(server, peer.path, peer.body, check, reference)
        one.ask()
        server.tree.pause()
        yield one


def alternate(contestants: Sequence[Contestant], plan: Plan, directory: Path, cores: Cores) -> Outcome:
    """Every round has each server once at each number of connections. Raises BenchFailed if an essential one fails."""
    outcome = Outcome()
    tools = {one.name: _tool(one, plan, directory, cores) for one in contestants}
    for number in range(1, plan.rounds + 1):
        for connections in plan.connections:
            measured = []
            for one in _in_turn(contestants, number):
                if one.name in outcome.failed:
                    continue
                try:
                    measured.append(_measure(one, tools[one.name], plan, connections, number))
                except BenchFailed as failure:
                    if one.essential:
                        raise
                    outcome.failed[one.name] = str(failure)
            rates = ", ".join(f"{one.server} {one.requests_per_s:,.0f}/s" for one in measured)
            print(f"round {number} of {plan.rounds}, connections {connections}: {rates}", flush=True)
            outcome.measurements += measured
    return outcome


def _in_turn(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    """Each is first in turn: what changes with time would else favour one of them."""
    first = (number - 1) % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def _measure(one: Contestant, wrk: Wrk, plan: Plan, connections: int, number: int) -> Measurement:
    with one.awake():
        wrk.warm_up(one.server, connections, WARM_UP_S, one.path)
        one.ask()  # right under load, and what wrk left in its queue is done
        measurement = wrk.measure(one.server, connections, number, plan.seconds, one.path)
        one.ask()
    return measurement


def _tool(one: Contestant, plan: Plan, directory: Path, cores: Cores) -> Wrk:
    wrk = Wrk(plan.binary, directory / f"{one.name}.lua", cores.load)
    write_script(wrk.script, one.body)
    return wrk
