"""A large model that flaps: it answers well, slowly, too late, with 500, with rubbish or not at all, in turn.

It lives on the event loop of the load test, so that the test knows its answers: `large_label` of each text.
"""

import asyncio
import json
import zlib
from typing import Any, Literal, get_args

Mode = Literal["good", "slow", "late", "error", "rubbish", "cut", "down"]
MODES: tuple[Mode, ...] = get_args(Mode)
SLOW_S = 0.05


def large_label(text: str) -> str:
    """What this large model says of a text."""
    return f"large-{zlib.crc32(text.encode()):08x}"


class FlappingModel:
    """Speaks the contract of the large-model service on a port of its own, as its `mode` has it."""

    def __init__(self) -> None:
        self.mode: Mode = "good"
        self.port = 0
        self.calls = 0
        self.connections: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and reset those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in list(self.connections):
            transport.abort()

    async def change(self, mode: Mode) -> None:
        """Behave like that from now on."""
        if mode == "down":
            await self.stop()
        elif self._server is None:
            await self.start()
        self.mode = mode


class _Connection(asyncio.Protocol):
    def __init__(self, model: FlappingModel) -> None:
        self._model = model
        self._transport: Any = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._model.connections.add(self._transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  the protocol's signature
        self._model.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = 0
        request_id = b""
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"x-request-id":
                request_id = value.strip()
        if len(body) < length:
            return
        self._received = body[length:]
        if head.startswith(b"GET"):
            self._send(200, b'{"object": "list", "data": [{"labels": ["large"]}]}', request_id)
        else:
            self._model.calls += 1
            self._answer(json.loads(body[:length])["inputs"], request_id)

    def _answer(self, texts: list[str], request_id: bytes) -> None:
        mode = self._model.mode
        if mode == "error":
            self._send(500, b"{}", request_id)
        elif mode == "rubbish":
            self._send(200, b'{"outputs": [{"label": 12}]}', request_id)
        elif mode == "cut":
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
            self._transport.close()
        elif mode != "late":  # late: never, and the edge will not wait for it
            outputs = [
                {"label": large_label(text), "score": 0.75, "confidence": 0.75, "decision": "accepted"}
                | {"answered_by": "large", "reason": None, "small": None}
                for text in texts
            ]
            answer = {"id": "1", "model": "flapping", "policy_version": None, "threshold": None, "outputs": outputs}
            body = json.dumps(answer).encode()
            if mode == "slow":
                asyncio.get_running_loop().call_later(SLOW_S, self._send, 200, body, request_id)
            else:
                self._send(200, body, request_id)

    def _send(self, status: int, body: bytes, request_id: bytes) -> None:
        if not self._transport.is_closing():
            head = b"HTTP/1.1 %d Whatever\r\ncontent-type: application/json\r\n" % status
            self._transport.write(head + b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (request_id, len(body)))
            self._transport.write(body)
