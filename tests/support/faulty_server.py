"""A large model that misbehaves: raw HTTP/1.1 over asyncio sockets on 127.0.0.1, scripted by one coroutine function.

    async def script(turn: Turn) -> None:
        await turn.answer(503)

    async with serving(script) as server:
        ...  # server.url, server.requests

The script runs once per request. It may answer, write half an answer, `drop()` the connection or wait for ever; when
it returns, the connection is read for the next request.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from support.waiting import until

Script = Callable[["Turn"], Coroutine[None, None, None]]


class Turn:
    """One request and the means to answer it. `number` counts requests, `connection` connections, both from 1."""

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        number: int,
        connection: int,
        request_line: str,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        self.writer = writer
        self.number = number
        self.connection = connection
        self.request_line = request_line
        self.headers = headers
        self.body = body

    @property
    def texts(self) -> list[str]:
        texts: list[str] = json.loads(self.body)["inputs"]
        return texts

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """A whole response with a right content-length, unless `headers` say otherwise."""
        await self.send(head(status, {"content-length": str(len(body)), **(headers or {})}) + body)

    async def classify(self, headers: Mapping[str, str] | None = None) -> None:
        """The contract's answer: each text is its own label."""
        await self.answer(200, outputs(self.texts), headers)

    def drop(self) -> None:
        """Close the connection; what has been sent still arrives."""
        self.writer.close()

    def reset(self) -> None:
        """Abort the connection: the other side sees a reset."""
        self.writer.transport.abort()


class FaultyServer:
    """What a running server has seen."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Turn] = []
        self.connections = 0
        self.open_connections = 0
        self.running_scripts = 0  # scripts that have begun and not ended
        self._changed = asyncio.Condition()

    async def until(self, holds: Callable[["FaultyServer"], bool]) -> None:
        """Wait until the condition holds; TimeoutError after 5 s."""
        async with asyncio.timeout(5.0), self._changed:
            await self._changed.wait_for(lambda: holds(self))

    async def changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultyServer]:
    """Serve on a free port, https with `tls`; on leaving, every connection is closed and every script cancelled."""
    tasks: set[asyncio.Task[None]] = set()
    closing = False

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_converse(state, script, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort() if closing else writer.close())

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    state = FaultyServer(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield state
    finally:
        closing = True
        server.close()
        for task in (left := list(tasks)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        # Connections whose handshake failed never became a task, and wait_closed() does not wait for them.
        await until(lambda: not server._active_count)


async def _converse(
    state: FaultyServer, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    state.connections += 1
    state.open_connections += 1
    connection = state.connections
    early = b""
    try:
        # The other side leaves in the middle of many a test.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                line, headers, body = await _read_request(reader, early)
                turn = Turn(writer, len(state.requests) + 1, connection, line, headers, body)
                state.requests.append(turn)
                early = await _run(state, script(turn), reader)
    finally:
        state.open_connections -= 1
        if not writer.is_closing() and writer.transport.get_write_buffer_size():  # nobody may ever read it
            writer.transport.abort()
        writer.close()
        await state.changed()


async def _run(state: FaultyServer, script: Coroutine[None, None, None], reader: asyncio.StreamReader) -> bytes:
    """Run a script, or give it up when the client has gone; return what was read early of the next request."""
    state.running_scripts += 1
    await state.changed()
    answering = asyncio.create_task(script)
    listening = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait((answering, listening), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and listening.result() == b"":
            raise ConnectionResetError("the client has gone")
        await answering
        return listening.result() if listening.done() else b""
    finally:
        state.running_scripts -= 1
        answering.cancel()
        listening.cancel()
        await asyncio.gather(answering, listening, return_exceptions=True)


async def _read_request(reader: asyncio.StreamReader, early: bytes) -> tuple[str, dict[str, str], bytes]:
    lines = (early + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
    return lines[0], headers, await reader.readexactly(int(headers.get("content-length", "0")))


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The status line and headers of a response, blank line included."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def output(label: str, /, **changes: Any) -> dict[str, Any]:
    """One item of the classify contract, as the large-model service answers it."""
    answer = {"label": label, "score": 0.9, "confidence": 0.9, "decision": "accepted", "answered_by": "large"}
    return {**answer, "reason": None, "small": None, **changes}


def outputs(labels: Sequence[str], **changes: Any) -> bytes:
    """A whole body of the classify contract; `changes` go into each item."""
    items = [output(label, **changes) for label in labels]
    answer = {"id": "1", "model": "stub-large", "policy_version": 1, "threshold": 0.5, "outputs": items}
    return json.dumps(answer).encode()
