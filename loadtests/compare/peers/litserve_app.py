"""The bundle behind LitServe. Run in LitServe's own environment:

    python -m loadtests.compare.peers.litserve_app --host 127.0.0.1 --port 8000

Set up as its documentation says for speed:
- batches (max_batch_size, batch_timeout): https://lightning.ai/docs/litserve/features/batching
- fast_queue, ZeroMQ instead of a multiprocessing queue above 100 requests/s; one worker a core; log_level "warning" and
  no client file in production: docstrings of litserve.LitServer and LitServer.run, 0.2.19
- uvloop and httptools are installed, so uvicorn takes them; no access log.
"""

import argparse
from typing import Any

import litserve

from loadtests.compare.peers.bundle_answers import Answer, load_answers

MAX_BATCH_SIZE = 32  # the edge's own
BATCH_TIMEOUT_S = 0.0  # its default: whatever waits is taken. 1 and 10 ms were tried: slower at one connection


class Classify(litserve.LitAPI):
    """POST /v1/classify {"inputs": "text"}."""

    def setup(self, device: str) -> None:  # noqa: ARG002  its own signature
        self.answers = load_answers()

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["inputs"])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> list[Answer]:
        return self.answers(texts)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Answer:
        return output


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    api = Classify(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/v1/classify")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(
        host=arguments.host,
        port=arguments.port,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
