"""Refuses requests under overload at the least cost: from the bytes of a request to the bytes of its answer.

Time that goes into refusals is lost for answers. A refusal that passes the parser, a task and the app takes half as
long as an accepted request; here it takes a few searches. This file handles the plain case alone; the app refuses
every other request.
"""

import os
import re

from service.errors import Overloaded

CLASSIFY = b"POST /v1/classify HTTP/1.1\r\n"
TOO_LONG = "the queue is too long: try again"
# Headers that change how a message is read, or what happens to its connection afterwards.
_UNUSUAL = re.compile(rb"\r\n(?:transfer-encoding|expect|upgrade|connection: *close|content-encoding):?")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})\r\n")
_ID = re.compile(rb"\r\nx-request-id: *([A-Za-z0-9._-]{1,128})\r\n", re.IGNORECASE)
_BODY = b'{"type":"urn:gatekeeper:problem:%b","title":"%b","status":%d,"detail":"%b","request_id":"%%b"}' % (
    Overloaded.kind.encode(),
    Overloaded.title.encode(),
    Overloaded.status,
    TOO_LONG.encode(),
)
_ANSWER = (
    b"HTTP/1.1 429 Too Many Requests\r\n"
    b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\nx-frame-options: DENY\r\n"
    b"cache-control: no-store\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nretry-after: %d\r\nx-request-id: %b\r\n\r\n%b"
)


def shed(data: bytes, retry_after_s: int) -> bytes | None:
    """The answer to a packet that is one whole, plain classify request; None for any other."""
    if not data.startswith(CLASSIFY):
        return None
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[: end + 2].lower()
    length = _LENGTH.search(head)
    if length is None or end + 4 + int(length[1]) != len(data) or _UNUSUAL.search(head):
        return None
    given = _ID.search(data, 0, end + 2)
    request_id = os.urandom(8).hex().encode() if given is None else given[1]
    body = _BODY % request_id
    return _ANSWER % (len(body), retry_after_s, request_id, body)
