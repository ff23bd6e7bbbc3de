"""The bundle behind Ray Serve. Run in Ray's own environment:

    python -m loadtests.compare.peers.ray_app --host 127.0.0.1 --port 8000

Set up as its documentation says for speed:
- @serve.batch: https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
- async methods, a larger max_ongoing_requests, RAY_SERVE_THROUGHPUT_OPTIMIZED=1 (one event loop, buffered logs, direct
  ingress: the replica itself speaks HTTP): https://docs.ray.io/en/latest/serve/advanced-guides/performance.html
- RAY_SERVE_ENABLE_HA_PROXY=1, HAProxy instead of the Python proxy:
  https://docs.ray.io/en/master/kuberay/user-guides/serve-high-throughput.html
- no access log: https://docs.ray.io/en/latest/serve/monitoring.html

The environment variables are set in accept.py.
"""

import argparse
import signal
import threading
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse

from loadtests.compare.peers.bundle_answers import Answer, load_answers

MAX_BATCH_SIZE = 32  # the edge's own
BATCH_WAIT_S = 0.0  # whatever waits is taken: work-conserving, as the edge's batcher is


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=1_000,
    ray_actor_options={"num_cpus": 1},
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
class Classify:
    """POST /v1/classify {"inputs": "text"}."""

    def __init__(self) -> None:
        self._answers = load_answers()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def answers(self, texts: list[str]) -> list[Answer]:
        """One answer a text."""
        return self._answers(texts)

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method == "GET":  # deployed, is what it says
            return JSONResponse({})
        body: dict[str, Any] = await request.json()
        return JSONResponse(await self.answers(body["inputs"]))


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    stopped = threading.Event()
    ray.init(
        _node_ip_address="127.0.0.1",  # else it listens on every interface
        num_cpus=2,  # what Ray may give away, not what it takes
        include_dashboard=False,
        object_store_memory=100 * 1024 * 1024,  # nothing here uses it
        log_to_driver=False,
    )
    serve.start(
        http_options={"host": arguments.host, "port": arguments.port},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    serve.run(Classify.bind(), route_prefix="/v1/classify")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
