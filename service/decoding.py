"""Images are decoded before the model sees them: a classifier in front of the cascade, with a few threads of its own.

Decoding a photograph takes longer than a small model does; on the event loop, or on the model's thread, every other
request would wait for it. The queue behind holds images of the model's size, not photographs.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from service.cascade import Answer, Call, Classifier, Disconnected, unless_gone
from service.errors import Expired, Overloaded

Encoded = str | bytes  # an image as a request holds it: base64, or a file's bytes
SLICE_S = 0.02  # after so long a request's next images go behind those of the requests that came meanwhile


class Decoder:
    """`read` turns an encoded image into what the model takes, in one of `threads` threads; it gets a name for errors.

    As many images are unpacked at once as there are threads: what they need in memory is bounded by that.
    """

    def __init__(
        self,
        read: Callable[[Encoded, str], Any],
        *,
        threads: int,
        max_queue_items: int,
        max_queue_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._max_queue_items = max_queue_items
        self._max_queue_bytes = max_queue_bytes
        self._clock = clock
        self._items = 0
        self._bytes = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    @property
    def full(self) -> bool:
        """Not even a request of one image would be taken."""
        return self._items >= self._max_queue_items or self._bytes >= self._max_queue_bytes

    async def decode(self, images: Sequence[Encoded], deadline: float | None = None) -> list[Any]:
        """What `read` makes of each, in order; cancelled, it decodes no further.

        Raises what `read` raises on the first bad one, Overloaded, or Expired after `deadline`, on its clock.
        """
        items, size = len(images), sum(map(len, images))
        if self._items + items > self._max_queue_items or self._bytes + size > self._max_queue_bytes:
            raise Overloaded("too many images are waiting to be decoded: try again", retry_after_s=1)
        self._items += items
        self._bytes += size
        try:
            decoded: list[Any] = []
            while len(decoded) < items:
                # A slice that nobody waits for any more is taken out of the executor's queue.
                decoded += await asyncio.get_running_loop().run_in_executor(
                    self._executor, self._slice, images, len(decoded), deadline
                )
            return decoded
        finally:
            self._items -= items
            self._bytes -= size

    def _slice(self, images: Sequence[Encoded], start: int, deadline: float | None) -> list[Any]:
        """The images from `start` on, as many as fit into SLICE_S; at least one."""
        began = self._clock()
        if deadline is not None and began >= deadline:
            raise Expired("the request's own deadline passed before its images were decoded")
        decoded: list[Any] = []
        while start + len(decoded) < len(images) and self._clock() - began < SLICE_S:
            position = start + len(decoded)
            decoded.append(self._read(images[position], f"inputs.{position}"))
        return decoded

    async def aclose(self) -> None:
        """Let the images in the threads end; what waits is cancelled."""
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._executor.shutdown(cancel_futures=True))


class DecodingClassifier:
    """The classifier behind it, for calls whose items are still encoded."""

    def __init__(self, decoder: Decoder, classifier: Classifier) -> None:
        self._decoder = decoder
        self._classifier = classifier

    async def classify(self, call: Call, disconnected: Disconnected) -> Answer:
        """As the classifier behind it; raises also what Decoder.decode does, and ClientGone."""
        began = time.monotonic()
        items = await unless_gone(self._decoder.decode(call.items, call.deadline), disconnected)
        decode_s = time.monotonic() - began
        answer = await self._classifier.classify(replace(call, items=items), disconnected)
        answer.timings_s = {"decode": decode_s, **answer.timings_s}
        return answer
