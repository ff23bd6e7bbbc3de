"""The stub upstreams of the defer path: a large model that answers at once, always the same. Run on the load's core.

    python -m loadtests.compare.stub --host 127.0.0.1 --port 8001

POST /v1/classify speaks the contract of the large-model service, POST /v1/chat/completions that of OpenAI; both with an
answer of about the same size. No framework: it has to be many times quicker than what is measured in front of it.
GET /calls counts what was asked of it, so that a cascade can be shown to have asked.
"""

import argparse
import asyncio
import json
from functools import cache
from typing import Any

import httptools
import uvloop

LABEL = "balance"  # of the bench's sentence
_OUTPUT = {
    "label": LABEL,
    "score": 0.9731,
    "confidence": 0.9731,
    "decision": "accepted",
    "answered_by": "large",
    "reason": None,
    "small": None,
}
COMPLETED = {
    "id": "chatcmpl-stub",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "stub-large",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": LABEL}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}


def response(status: str, body: dict[str, Any]) -> bytes:
    """A whole HTTP/1.1 response."""
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


@cache
def classified(items: int) -> bytes:
    """The contract's answer to so many items: the edge may ask for several requests' at once."""
    answer = {"id": "stub", "model": "stub-large", "policy_version": 1, "threshold": 0.5, "outputs": [_OUTPUT] * items}
    return response("200 OK", answer)


ANSWERS = {
    b"/v1/chat/completions": response("200 OK", COMPLETED),
    b"/readyz": response("200 OK", {}),
}
NOT_FOUND = response("404 Not Found", {"detail": "a stub"})
CLASSIFY = b"/v1/classify"
_calls = dict.fromkeys((path.decode() for path in (CLASSIFY, *ANSWERS)), 0)


class StubProtocol(asyncio.Protocol):
    """One connection; requests are read to their end and answered in order."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._path == b"/calls":
            self._transport.write(response("200 OK", _calls))
        elif self._path == CLASSIFY:
            _calls["/v1/classify"] += 1
            inputs = json.loads(self._body)["inputs"]
            self._transport.write(classified(len(inputs) if isinstance(inputs, list) else 1))
        elif self._path in ANSWERS:
            _calls[self._path.decode()] += 1
            self._transport.write(ANSWERS[self._path])
        else:
            self._transport.write(NOT_FOUND)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def _serve(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(StubProtocol, host, port, backlog=1_024)
    await server.serve_forever()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser("loadtests.compare.stub", description="A large model that answers at once.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
