"""Servers of a test that is not itself asynchronous: an event loop in a thread, and what runs on it."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from support.faulty_server import FaultyServer, Script, Turn, _converse
from support.redis_server import free_port

T = TypeVar("T")


class Background:
    """An event loop in a thread of its own, for as long as the context lasts."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="background")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; TimeoutError after 10 s."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(_end_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(5):  # closed transports take a few turns
        await asyncio.sleep(0)


async def healthy(turn: Turn) -> None:
    """What a large model answers: each text is its own label."""
    if turn.request_line.startswith("GET"):
        await turn.answer(404)
    else:
        await turn.classify()


class Upstream(Background):
    """A large model on one port, whose behaviour is swapped while it runs: `behave(script)`, `refuse()`, `accept()`."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = FaultyServer(self.url)
        self._script: Script = healthy
        self._listener: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    def behave(self, script: Script) -> None:
        """From the next request on."""
        self._script = script

    def refuse(self) -> None:
        """Nothing listens any more, and every connection is closed."""
        self.run(self._close())

    def accept(self) -> None:
        """Listen again, healthy."""
        self.behave(healthy)
        self.run(self._listen())

    def __enter__(self) -> Self:
        super().__enter__()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        super().__exit__(kind, error, traceback)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._converse, "127.0.0.1", self.port)

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        for conversation in (left := list(self._conversations)):
            conversation.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(_converse(self.server, self._turn, reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _turn(self, turn: Turn) -> None:
        await self._script(turn)


class Cable(Background):
    """A TCP proxy to a port of 127.0.0.1. Cut, it keeps its connections and accepts new ones, but nothing flows."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.port = free_port()
        self._target = target
        self._whole = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    def cut(self) -> None:
        self.loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """What was sent in the meantime arrives now."""
        self.loop.call_soon_threadsafe(self._whole.set)

    def __enter__(self) -> Self:
        super().__enter__()
        self.mend()
        self.run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self._close())
        super().__exit__(kind, error, traceback)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        for pump in (pumps := list(self._pumps)):
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._whole.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        ways = [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
