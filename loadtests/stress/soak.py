"""A million requests at one edge while its large model flaps: nothing may be lost, be wrong, or leak. `make soak`, or

    python -m loadtests.stress.soak --requests 1000000

The edge is started for it. Of the requests 1 % are cut off by their client, 1 % are malformed, some are deferred,
lists, with options or deadlines (cases.py); the large model (flapping.py) is good, slow, hanging, failing or down, for
a few seconds each; the policy changes through the admin API. Every answer is held against what it must be, and every
request is accounted for. The edge is watched once a second from outside.
Exit code 0: all as it must be; 1: not; 130: interrupted, with what was seen until then.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from loadtests.common.client import Pool, Reply, request_bytes
from loadtests.common.options import RESULTS, between
from loadtests.common.sentences import EASY, ODD
from loadtests.common.servers import BenchFailed, Server, choose_cores, free_port, running
from loadtests.stress.arrivals import new_event_loop
from loadtests.stress.books import Books, met, report, shown
from loadtests.stress.cases import Case, Known, deck, what_is_wrong
from loadtests.stress.flapping import MODES, FlappingModel
from loadtests.stress.targets import pool as pool_of
from loadtests.stress.watch import Sight, look

DECK = 4_000  # so that each share of cases.PER_MILLE is a whole number
REMOTE_TIMEOUT_S = 0.5
IDLE_WITHIN_S = 30.0
ANSWER_S = 30.0  # an answer that takes longer is lost
PROGRESS_S = 30.0
# What the policy becomes in turn; every field is always set, so that a change undoes the one before it.
POLICIES: tuple[dict[str, Any], ...] = tuple(
    {"threshold": threshold, "deferral": deferral, "on_remote_failure": failure, "remote_timeout_s": REMOTE_TIMEOUT_S}
    for threshold, deferral, failure in (
        (0.73, "on", "degrade"),
        (0.95, "on", "degrade"),
        (0.6, "on", "fail"),
        (0.8, "off", "degrade"),
        (0.9, "on", "degrade"),
    )
)


class Soak:
    """The edge, its flapping large model, and the clients. `token`: for the edge's admin API."""

    def __init__(self, edge: Server, model: FlappingModel, token: str, arguments: argparse.Namespace) -> None:
        self.books = Books()
        self._edge, self._model, self._arguments = edge, model, arguments
        self._authorization = {"authorization": f"Bearer {token}"}
        self._pool: Pool = pool_of(edge, arguments.connections)
        self._rng = random.Random(arguments.seed)
        self._deck = deck(DECK, arguments.seed)
        self._known: dict[str, Known] = {}
        self._thresholds: dict[int, float] = {}
        self._failing = False  # the policy `fail` is, or may be, in force
        self._failed_until = -1.0
        self._began = time.monotonic()
        self.start: Sight | None = None
        self.end: Sight | None = None
        self.seconds = 0.0

    async def run(self) -> None:
        """Send all, then wait until the edge is idle again."""
        await self._set_policy(POLICIES[0])
        await self._learn()
        self.start = await self._idle_sight()
        self._began = time.monotonic()
        others = [asyncio.create_task(one()) for one in (self._flap, self._change_policies, self._watch)]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._arguments.connections):
                    group.create_task(self._ask())
        finally:
            self.seconds = time.monotonic() - self._began
            for task in others:
                task.cancel()
            for outcome in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self.books.blame("the soak itself", repr(outcome))
        await self._model.change("good")
        self.end = await self._idle_sight()

    async def _learn(self) -> None:
        """Ask for the small model's answer to every text, each alone."""
        for text in {*EASY, *ODD}:
            body = json.dumps({"inputs": text, "parameters": {"route": "small"}}).encode()
            reply = await self._pool.ask(request_bytes("POST", "/v1/classify", body))
            if reply.status != 200:
                raise BenchFailed(f"the edge answers {reply.status}: {reply.body[:200].decode(errors='replace')}")
            output = json.loads(reply.body)["outputs"][0]
            self._known[text] = Known(output["small"]["label"], output["confidence"])

    async def _ask(self) -> None:
        """One client: a request after the other, until all have been sent."""
        books, total = self.books, self._arguments.requests
        while books.started < total:
            number = books.started
            books.started += 1
            case = self._deck[number % DECK]
            try:
                if case.cut == "no":
                    await self._exchange(case, f"s{number}")
                else:
                    await self._cut_off(case, f"s{number}")
                    books.close(case, "cut off")
            except OSError as error:
                books.close(case, "lost")
                books.blame(case.kind, f"no answer: {error or type(error).__name__}")

    async def _exchange(self, case: Case, request_id: str) -> None:
        sent = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_S):
                reply = await self._pool.ask(case.request(request_id))
        except TimeoutError as error:
            raise ConnectionError(f"none within {ANSWER_S:g} s") from error
        books = self.books
        if reply.status in (503, 504) and self._may_fail(case, reply, sent):
            books.close(case, str(reply.status))
            return
        try:
            wrong = what_is_wrong(case, request_id, reply, self._known, self._thresholds)
        except (KeyError, TypeError, ValueError) as error:
            wrong = f"an answer that is not the contract ({error!r}): {reply.body[:200].decode(errors='replace')}"
        if wrong is not None:
            books.close(case, "wrong")
            books.blame(case.kind, wrong)
            return
        books.close(case, str(reply.status))
        for decision in ("accepted", "deferred", "degraded"):
            books.decisions[decision] += reply.body.count(b'"decision":"%s"' % decision.encode())

    def _may_fail(self, case: Case, reply: Reply, sent: float) -> bool:
        """Whether 503 or 504 is right: under the policy `fail`, or past the request's own deadline."""
        if case.status != 200 or b"application/problem+json" not in reply.head:
            return False
        late = reply.status == 504 and case.has_deadline
        return late or ((self._failing or sent <= self._failed_until) and b"\nretry-after: " in reply.head)

    async def _cut_off(self, case: Case, request_id: str) -> None:
        connection = await self._pool.get()
        request = case.request(request_id)
        head = len(request) - len(case.body)
        until = {"in the head": head // 2, "in the body": head + len(case.body) // 2}.get(case.cut, len(request))
        connection.write(request[:until])
        await asyncio.sleep(self._rng.choice((0, 0.001, 0.01)))
        if self._rng.random() < 0.5:
            connection.close()
        else:
            connection.abort()

    async def _flap(self) -> None:
        while True:
            for mode in self._rng.sample(MODES, len(MODES)):
                await self._model.change(mode)
                self.books.others[f"large model {mode}"] += 1
                await asyncio.sleep(self._arguments.flap_s)

    async def _change_policies(self) -> None:
        while True:
            for policy in POLICIES:
                await asyncio.sleep(self._arguments.policy_s)
                await self._set_policy(policy)

    async def _set_policy(self, policy: dict[str, Any]) -> None:
        fails = policy["on_remote_failure"] == "fail"
        self._failing = self._failing or fails
        reply = await self._get("/admin/v1/policy", "PATCH", json.dumps({**policy, "note": "of a soak"}).encode())
        if reply is None:
            return
        self._thresholds[json.loads(reply.body)["version"]] = policy["threshold"]
        if self._failing and not fails:
            self._failing, self._failed_until = False, time.monotonic()
        self.books.others["policy changes"] += 1

    async def _get(self, path: str, method: str = "GET", body: bytes = b"") -> Reply | None:
        """An answer that must be a 200."""
        try:
            reply = await self._pool.ask(request_bytes(method, path, body, self._authorization))
        except OSError as error:
            self.books.blame(path, f"no answer: {error}")
            return None
        if reply.status != 200:
            self.books.blame(path, f"{reply.status}: {reply.body[:200].decode(errors='replace')}")
            return None
        return reply

    async def _watch(self) -> None:
        told = self._began
        while True:
            await asyncio.sleep(1.0)
            now, books = time.monotonic(), self.books
            books.sights.append((now - self._began, books.accounted, look(self._edge.process.pid)))
            for path in ("/livez", "/readyz", "/admin/v1/status", "/metrics"):
                if await self._get(path) is not None:
                    books.others["looks at health, status and metrics"] += 1
            if now - told > PROGRESS_S:
                told = now
                sight = books.sights[-1][2]
                print(
                    f"  {now - self._began:,.0f} s: {books.accounted:,} requests, {books.wrong_count} wrong, "
                    f"{sight.memory_mib:.1f} MiB, {sight.file_descriptors} file descriptors",
                    flush=True,
                )

    async def _idle_sight(self) -> Sight:
        """The edge once nobody is connected to it, nor it to anybody."""
        await self._pool.aclose()
        deadline = time.monotonic() + IDLE_WITHIN_S
        while True:
            sight = look(self._edge.process.pid)
            # What is kept alive to the large model goes within seconds; a policy store may keep what it has.
            quiet = not sight.close_wait and not sight.established
            floor = self.start.file_descriptors if self.start else sight.file_descriptors
            if (quiet and sight.file_descriptors <= floor) or time.monotonic() > deadline:
                return sight
            await asyncio.sleep(0.25)


def main(argv: list[str] | None = None) -> int:
    """Run, print the books and the verdict, write the JSON."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the edge
    if not Path("/proc/self/smaps_rollup").exists():
        print("soak: the edge is watched through /proc, which only Linux has", file=sys.stderr)
        return 1
    soaks: list[Soak] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs deaf to it
    try:
        _run(arguments, soaks)
    except BenchFailed as reason:
        print(f"soak: {reason}", file=sys.stderr)
        return 1
    # A SIGINT while Runner.run still sets up its own handling cancels the work, and Runner tells of that alone.
    except (KeyboardInterrupt, asyncio.CancelledError):
        if soaks:
            print("\n".join(["", "interrupted; until then:", *shown(soaks[0].books, soaks[0].seconds)]))
        return 130
    soak = soaks[0]
    assert soak.start is not None
    assert soak.end is not None
    found = report(soak.books, soak.start, soak.end, soak.seconds, arguments)
    print(
        "\n".join(
            ["", *shown(soak.books, soak.seconds), "", *(f"{line['what']}: {met(line)}" for line in found["verdict"])]
        )
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"soak-{found['at'].replace(':', '')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return int(not all(line["met"] for line in found["verdict"]))


def _run(arguments: argparse.Namespace, soaks: list[Soak]) -> None:
    cores, token = choose_cores(), secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="gatekeeper-soak-") as directory,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        model = FlappingModel()
        runner.run(model.start())
        environment = {
            "GATEKEEPER_LOG_FORMAT": "json",
            "GATEKEEPER_LOG_LEVEL": "error",
            "GATEKEEPER_POLICY_PATH": str(Path(directory) / "policy.db"),
            "GATEKEEPER_REMOTE_URL": f"http://127.0.0.1:{model.port}",
            "GATEKEEPER_REMOTE_FOREIGN_LABELS": "allow",  # those of FlappingModel, by which an answer is known
            "GATEKEEPER_BREAKER_OPEN_S": "0.5",
            "GATEKEEPER_ADMIN_TOKEN": token,
            "GATEKEEPER_DRAIN_S": "0",
        }
        with running(
            "edge",
            ["service.cli", "serve"],
            port=free_port(),
            ready="/readyz",
            environment=environment,
            directory=Path(directory),
            core=cores.servers,
        ) as edge:
            if cores.load is not None:
                os.sched_setaffinity(0, {cores.load})
            soak = Soak(edge, model, token, arguments)
            soaks.append(soak)
            gc.freeze()
            print(f"{arguments.requests:,} requests on {arguments.connections} connections; {cores}", flush=True)
            runner.run(soak.run())
            if edge.process.poll() is not None:
                raise BenchFailed(f"the edge has ended with exit code {edge.process.returncode}")
        with suppress(OSError):
            log = (Path(directory) / "edge.log").read_text(errors="replace", encoding="utf-8")
            for line in [line for line in log.splitlines() if '"level": "error"' in line][:3]:
                soak.books.blame("the edge's log", line[:500])
        runner.run(model.stop())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "loadtests.stress.soak", description="A million requests while the large model flaps."
    )
    add = parser.add_argument
    add("--requests", type=between(100, 1_000_000_000, int), default=1_000_000, help="default %(default)s")
    add("--connections", type=between(1, 10_000, int), default=96, help="default %(default)s")
    add("--flap-s", type=between(0.1, 3_600, float), default=3.0, help="between changes of the large model")
    add("--policy-s", type=between(0.1, 3_600, float), default=2.0, help="between changes of the policy")
    add("--seed", type=int, default=0, help="of cases and flaps; default %(default)s")
    add("--output", type=Path, default=RESULTS, help="for the JSON; default %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
