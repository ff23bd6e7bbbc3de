"""The bundle behind BentoML. Run in BentoML's own environment:

    python -m bentoml serve loadtests.compare.peers.bento_app:Classify --host 127.0.0.1 --port 3000

Set up as its documentation says for speed:
- adaptive batching: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
- one worker a core (the default), concurrency as large as a batch:
  https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html and
  https://docs.bentoml.com/en/latest/guides/concurrency.html
- async, so that it runs in the event loop: the thread of a `def` halves its requests/s here
- no access log, no metrics: https://docs.bentoml.com/en/latest/reference/bentoml/configurations.html
- uvloop and httptools are installed: it takes them when it finds them (_bentoml_impl/worker/service.py, 1.4.39).

A batchable route takes a list and answers one: the request is {"inputs": ["text"]}.
"""

from typing import Any

import bentoml

from loadtests.compare.peers.bundle_answers import load_answers

MAX_BATCH_SIZE = 32  # the edge's own


@bentoml.service(
    workers=1,
    resources={"cpu": 1},
    traffic={"concurrency": MAX_BATCH_SIZE},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Classify:
    """POST /v1/classify {"inputs": ["text"]}."""

    def __init__(self) -> None:
        self.answers = load_answers()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000, route="/v1/classify")
    async def classify(self, inputs: list[str]) -> list[dict[str, Any]]:
        return self.answers(inputs)
