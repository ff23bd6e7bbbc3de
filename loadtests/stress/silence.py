"""The longest time that a server says nothing: GET /livez on one connection, again and again, until stdin is closed.

    python -m loadtests.stress.silence http://127.0.0.1:8000

A process of its own, so that what sends the load does not count. Prints one JSON object.
"""

import http.client
import json
import selectors
import sys
import time
from urllib.parse import urlsplit

PAUSE_S = 0.005
TIMEOUT_S = 120.0


def main(argv: list[str]) -> int:
    """Watch until told to stop."""
    host = urlsplit(argv[0]).netloc
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    watching = selectors.DefaultSelector()
    watching.register(sys.stdin, selectors.EVENT_READ)
    longest, asked, refused = 0.0, 0, 0
    while not watching.select(PAUSE_S):
        began = time.perf_counter()
        try:
            connection.request("GET", "/livez")
            refused += connection.getresponse().read() != b"alive\n"
        except (OSError, http.client.HTTPException):
            connection.close()
            refused += 1
        longest = max(longest, time.perf_counter() - began)
        asked += 1
    print(json.dumps({"longest_ms": longest * 1_000, "asked": asked, "refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
