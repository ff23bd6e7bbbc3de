"""Faults end to end: a load that accounts for every request, and a row of docs/faults.md for every fault.

`make faults` runs them all and prints the table.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from support.load import EASY, ODD
from support.processes import eventually

HEADER = "| fault | what a client sees | requests, lost | heals in | test |\n| --- | --- | --- | --- | --- |"
PATIENCE_S = 20.0
PAUSE_S = 0.005  # the load leaves the machine to those who are mending something


class Load:
    """Requests from a few threads, each of an easy and an odd text; every answer is checked and counted.

    `lost` holds what went wrong, in words: no answer, another status than 200, an answer to something else.
    """

    def __init__(self, url: str, threads: int = 2, deadline_ms: int | None = None) -> None:
        self.answered = 0
        self._headers = {} if deadline_ms is None else {"x-request-timeout-ms": str(deadline_ms)}
        self.decisions: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.lost: list[str] = []
        self._numbers = itertools.count(1)
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for what is on its way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def more(self, decision: str, count: int = 10, within_s: float = PATIENCE_S) -> None:
        """Wait for that many more answers of a kind, or a first loss."""
        wanted = self.decisions[decision] + count
        eventually(lambda: self.lost or self.decisions[decision] >= wanted, f"{decision} answers", within_s)
        assert self.lost == [], self.lost[:3]

    def _run(self, url: str) -> None:
        with httpx.Client(base_url=url, headers=self._headers, timeout=30.0) as client:
            while not self._stopping.wait(PAUSE_S):
                problem = self._ask(client, f"{ODD} {next(self._numbers)}")
                if problem is not None:
                    with self._turn:
                        self.lost.append(problem)

    def _ask(self, client: httpx.Client, odd: str) -> str | None:
        try:
            response = client.post("/v1/classify", json={"inputs": [EASY, odd]})
        except httpx.TransportError as error:
            return repr(error)
        if response.status_code != 200:
            return f"{response.status_code} {response.text[:300]}"
        easy, other = response.json()["outputs"]
        with self._turn:
            self.answered += 1
            self.decisions[other["decision"]] += 1
            self.reasons[other["reason"]] += 1
        if (easy["label"], easy["decision"]) != ("balance", "accepted"):
            return f"the easy one got {easy}"
        if other["decision"] == "deferred" and other["label"].startswith(ODD) and other["label"] != odd:
            return f"{odd} got the answer to {other['label']}"
        return None


@dataclass
class Row:
    """What was seen of one fault."""

    record: Callable[[str, object], None]
    seen: dict[str, Any] = field(default_factory=dict)

    def tell(self, fault: str, client_sees: str) -> None:
        self.seen |= {"fault": fault, "sees": client_sees}
        self.record("fault", self.seen)

    def account(self, load: Load) -> None:
        """Nothing was lost."""
        assert load.lost == []
        self.count(load.answered)

    def count(self, requests: int) -> None:
        self.seen["requests"] = self.seen.get("requests", 0) + requests

    @contextmanager
    def healing(self) -> Iterator[None]:
        """From mending the fault to the first sign that it is over."""
        began = time.monotonic()
        yield
        self.seen["healed_s"] = round(time.monotonic() - began, 2)


def line(nodeid: str, seen: dict[str, Any]) -> str:
    """One row of the table."""
    name = nodeid.rsplit("::", maxsplit=1)[-1]
    requests = f"{seen['requests']:,}, 0" if "requests" in seen else "-"
    heals = f"{seen['healed_s']:.2f} s" if "healed_s" in seen else "-"
    return f"| {seen['fault']} | {seen['sees']} | {requests} | {heals} | `{name}` |"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """rows: by the test's node id. One table for each file."""
    files: dict[str, list[str]] = {}
    for nodeid, seen in rows.items():
        files.setdefault(nodeid.split("::")[0], []).append(line(nodeid, seen))
    return "\n\n".join(f"`{file}`\n\n{HEADER}\n" + "\n".join(lines) for file, lines in sorted(files.items()))
