"""Steady requests to a running edge, from threads of the test."""

import threading
from collections import Counter
from typing import Any, Self

import httpx

EASY = "what is my checking account balance"
ODD = "asdf qwer zxcv"


def output(client: httpx.Client, text: str = ODD) -> dict[str, Any]:
    first: dict[str, Any] = client.post("/v1/classify", json={"inputs": text}).json()["outputs"][0]
    return first


class Load:
    """Requests from a few threads until told to stop; every answer is kept."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.statuses: Counter[int] = Counter()
        self.decisions: Counter[str] = Counter()
        self.bodies: list[httpx.Response] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=30.0) as client:
            while not self._stop.is_set():
                response = client.post("/v1/classify", json={"inputs": [EASY, ODD]})
                self.statuses[response.status_code] += 1
                if response.status_code == 200:
                    self.decisions.update(entry["decision"] for entry in response.json()["outputs"])
                else:
                    self.bodies.append(response)
