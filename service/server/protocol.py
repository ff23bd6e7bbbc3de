"""uvicorn's HTTP/1.1 protocol on httptools, with three mends for what uvicorn 0.54 leaves open.

- Trailers are dropped. uvicorn adds them to the headers, where one that a proxy has never looked at could pass for
  `authorization` or `x-gatekeeper-hops` (RFC 9110, 6.5.1).
- An offer to upgrade is ignored, and the request served as if it had not been made (RFC 9110, 7.8). httptools loses
  the body, and Java's own client makes that offer with every request (Kludex/uvicorn#2722).
- A request with `expect: 100-continue` that is answered instead of continued ends its connection. Its client may leave
  out the body (RFC 9110, 10.1.1), and the next request would be taken for it.
"""

from typing import Any

import httptools
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

FRAMING = (b"content-length", b"transfer-encoding")


class MendedProtocol(HttpToolsProtocol):
    """One connection. Runs without WebSockets: `ws="none"` in the uvicorn.Config that names it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._replaying = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._decline_upgrade()
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
                return
            else:
                return

    def on_message_begin(self) -> None:
        if not self._replaying:
            super().on_message_begin()

    def on_headers_complete(self) -> None:
        if not self._replaying:
            super().on_headers_complete()
            self.headers = []  # the scope has the list with the headers; trailers end in this one
            if self.expect_100_continue:
                _close_unless_continued(self.cycle)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # httptools thinks so because it has skipped the body
        super().on_message_complete()

    def _decline_upgrade(self) -> None:
        """A new parser, brought to where this one should be: behind a head that offers nothing."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        framing = [name + b": " + value for name, value in self.scope["headers"] if name in FRAMING]
        self._replaying = True
        try:
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", b""]))
        finally:
            self._replaying = False


def _close_unless_continued(cycle: RequestResponseCycle) -> None:
    keep_alive, cycle.keep_alive = cycle.keep_alive, False
    receive = cycle.receive

    async def continued() -> ASGIReceiveEvent:
        if cycle.waiting_for_100_continue:
            cycle.keep_alive = keep_alive
        return await receive()

    cycle.receive = continued  # type: ignore[method-assign]
