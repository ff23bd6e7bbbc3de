"""Requests that no ordinary client sends, byte by byte to a running edge: each is answered in words that fit it, and
the next one as if nothing had been."""

import asyncio
import contextlib
import gzip
import json
import socket
from collections import Counter

import httpx
import pytest
from support.processes import TOKEN, Service, admin

EASY = b'{"inputs": "what is my checking account balance"}'
POST = b"POST /v1/classify HTTP/1.1"
LENGTH = b"content-length: %d\r\n" % len(EASY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EASY), EASY)
H2C = b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


def exchange(edge: Service, *parts: bytes) -> bytes:
    """All that comes back until the edge closes, or has been silent for a while."""
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10.0) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
            while chunk := connection.recv(65_536):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def ask(edge: Service, line: bytes, headers: bytes = b"", body: bytes = b"") -> tuple[int, bytes]:
    """(status, body) of one request on a connection of its own."""
    received = exchange(edge, line + b"\r\nhost: x\r\nconnection: close\r\n" + headers + b"\r\n" + body)
    head, _, content = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), content


def sized(body: bytes) -> bytes:
    return b"content-length: %d\r\n" % len(body)


BODIES = {
    "a key twice, the last counts": (b'{"inputs": 1, "inputs": "a"}', 200),
    "white space around": (b' \n{"inputs": "a"}\r\n ', 200),
    "a surrogate pair": (b'{"inputs": "\\ud83d\\ude00"}', 200),
    "NUL in a text": (b'{"inputs": "a\\u0000b"}', 200),
    "a threshold of -0.0": (b'{"inputs": "a", "parameters": {"threshold": -0.0}}', 200),
    "65,536 characters": (json.dumps({"inputs": "a" * 65_536}).encode(), 200),
    "65,536 characters of 4 bytes": (json.dumps({"inputs": "\U0001f600" * 65_536}, ensure_ascii=False).encode(), 200),
    "65,537 characters": (json.dumps({"inputs": "a" * 65_537}).encode(), 413),
    "256 items": (json.dumps({"inputs": ["a"] * 256}).encode(), 200),
    "a byte order mark": (b'\xef\xbb\xbf{"inputs": "a"}', 400),
    "UTF-16": ('{"inputs": "a"}'.encode("utf-16"), 400),
    "the low half of a pair": (b'{"inputs": "\\udc00"}', 400),
    "a surrogate in UTF-8": (b'{"inputs": "\xed\xa0\x80"}', 400),
    "a bare NUL": (b'{"inputs": "a\x00b"}', 400),
    "NUL behind": (b'{"inputs": "a"}\x00', 400),
    "two documents": (b'{"inputs": "a"}{"inputs": "b"}', 400),
    "100,000 objects deep": (b'{"a":' * 100_000, 413),
    "100,000 lists deep": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 413),
    "150 lists deep": (b'{"inputs":' + b"[" * 150 + b"]" * 150 + b"}", 422),
    "a number of 100,000 digits": (b'{"inputs": ' + b"9" * 100_000 + b"}", 400),
    "a top_k of 1e999": (b'{"inputs": "a", "parameters": {"top_k": 1e999}}', 422),
    "a top_k of 2.0": (b'{"inputs": "a", "parameters": {"top_k": 2.0}}', 422),
    "a top_k that is true": (b'{"inputs": "a", "parameters": {"top_k": true}}', 422),
    "a threshold of 1e400": (b'{"inputs": "a", "parameters": {"threshold": 1e400}}', 422),
    "no parameters": (b'{"inputs": "a", "parameters": null}', 422),
    "256 bad items": (json.dumps({"inputs": [1] * 256}).encode(), 422),
    "2,000 unknown fields": (json.dumps({f"field {number}": 1 for number in range(2_000)}).encode(), 422),
    "an unknown field with a name of 1 MB": (json.dumps({"inputs": "a", "x" * 1_000_000: 1}).encode(), 422),
    "2,000,000 zeros": (b'{"inputs":[' + b"0," * 2_000_000 + b"0]}", 413),
    "1,000,000 empty texts": (b'{"inputs":[' + b'"",' * 1_000_000 + b'""]}', 413),
    "1,000,000 empty lists": (b'{"inputs":[' + b"[]," * 1_000_000 + b"[]]}", 413),
    "1,000,000 empty objects": (b'{"inputs":[' + b"{}," * 1_000_000 + b"{}]}", 413),
    "500,000 unknown fields": (b"{" + b'"a":0,' * 500_000 + b'"inputs":"a"}', 413),
    "500,000 unknown parameters": (b'{"inputs":"a","parameters":{' + b'"a":0,' * 500_000 + b'"b":0}}', 413),
    "a list of 2,000,000 zeros": (b"[" + b"0," * 2_000_000 + b"0]", 413),
    "a text of 60,000 commas": (json.dumps({"inputs": "," * 60_000}).encode(), 200),
    "60 texts of 60,000 commas, brackets and quotes": (json.dumps({"inputs": ['[{,"\\' * 12_000] * 40}).encode(), 200),
    "an open text of 1,000,000 escapes": (b'{"inputs":["' + b'\\"' * 1_000_000, 400),
    "forty names of 100 KB": (json.dumps({f"{number}" + "x" * 100_000: 1 for number in range(40)}).encode(), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_odd_body_is_read_or_refused_in_few_words(edge: Service, name: str) -> None:
    body, expected = BODIES[name]
    status, content = ask(edge, POST, sized(body), body)
    assert status == expected, content[:300]
    if status != 200:
        assert len(content) < 6_000, "an answer does not repeat what was sent"
        assert json.loads(content)["status"] == status


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        (b"x-request-timeout-ms", [b"86400000", b"0005000", b"5000 \t", b"  5000"], 200),
        (b"x-request-timeout-ms", [b"0", b"86400001", b"9" * 30, b"-1", b"+5", b"1.5", b"", b"5, 6", b"0x10"], 422),
        (b"x-request-timeout-ms", ["٣٠٠٠".encode(), b"\xb2\xb3", b"\xff"], 422),
        (b"x-gatekeeper-hops", [b"0", b"4", b"0004"], 200),
        (b"x-gatekeeper-hops", [b"", b"-1", b"99999", b"1,2", b"\xef\xbc\x91"], 422),
        (b"x-gatekeeper-hops", [b"5", b"9999"], 508),
        (b"x-request-id", [b"", b"..", b"a b", b"<script>", b"\xff\x80", "ü".encode(), b"a" * 129], 200),
        (b"content-encoding", [b"identity", b"Identity "], 200),
        (b"content-encoding", [b"gzip", b"identity, gzip", b"br"], 415),
        (b"content-type", [b"text/plain", b"application/json; charset=utf-16", b"nonsense", b""], 200),
        (b"expect", [b"100-continue", b"something-else"], 200),
    ],
)
def test_an_odd_header_is_understood_or_refused(edge: Service, name: bytes, values: list[bytes], expected: int) -> None:
    for value in values:
        status, content = ask(edge, POST, LENGTH + name + b": " + value + b"\r\n", EASY)
        assert status == expected, (value, content[:300])


GZIPPED = gzip.compress(EASY)
MESSAGES = {
    "HTTP/1.0": (b"POST /v1/classify HTTP/1.0", LENGTH, EASY, 200),
    "the whole URL in the first line": (b"POST http://elsewhere.example/v1/classify HTTP/1.1", LENGTH, EASY, 200),
    "an escaped path": (b"POST /v1/%63lassify HTTP/1.1", LENGTH, EASY, 200),
    "a query": (b"POST /v1/classify?" + b"a" * 20_000 + b" HTTP/1.1", LENGTH, EASY, 200),
    "chunked": (POST, CHUNKED, CHUNK + b"0\r\n\r\n", 200),
    "chunks with extensions": (POST, CHUNKED, CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"0\r\n\r\n", 200),
    "one byte a chunk": (POST, CHUNKED, b"".join(b"1\r\n%c\r\n" % byte for byte in EASY) + b"0\r\n\r\n", 200),
    "no length": (POST, b"", b"", 400),
    "gzip": (POST, sized(GZIPPED) + b"content-encoding: gzip\r\n", GZIPPED, 415),
    "a body too large, announced": (POST, b"content-length: 99999999\r\nexpect: 100-continue\r\n", b"", 413),
    "length and chunked": (POST, CHUNKED + LENGTH, CHUNK + b"0\r\n\r\n", 400),
    "two lengths": (POST, LENGTH + b"content-length: 3\r\n", EASY, 400),
    "a negative length": (POST, b"content-length: -1\r\n", EASY, 400),
    "a length beyond counting": (POST, b"content-length: " + b"9" * 30 + b"\r\n", EASY, 400),
    "a chunk size that is none": (POST, CHUNKED, b"zz\r\n" + EASY, 400),
    "a chunk beyond counting": (POST, CHUNKED, b"f" * 17 + b"\r\n" + EASY, 400),
    "another coding": (POST, b"transfer-encoding: xchunked\r\n", CHUNK + b"0\r\n\r\n", 400),
    "a folded header": (POST, b"x-a: b\r\n c\r\n" + LENGTH, EASY, 400),
    "a space before the colon": (POST, b"x-a : b\r\n" + LENGTH, EASY, 400),
    "NUL in a header": (POST, b"x-a: \x00\r\n" + LENGTH, EASY, 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00", b"", b"", 400),
    "an unknown method": (b"FOO /livez HTTP/1.1", b"", b"", 400),
    "a path of 70 KB": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"", b"", 431),
    "TRACE": (b"TRACE /v1/classify HTTP/1.1", b"", b"", 405),
    "CONNECT": (b"CONNECT /v1/classify HTTP/1.1", b"", b"", 405),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1", b"", b"", 404),
    "a path with dots": (b"POST /x/../v1/classify HTTP/1.1", LENGTH, EASY, 404),
    "a path with escaped dots": (b"POST /%2e%2e/v1/classify HTTP/1.1", LENGTH, EASY, 404),
    "a path with two slashes": (b"POST //v1/classify HTTP/1.1", LENGTH, EASY, 404),
    "a slash at the end": (b"POST /v1/classify/ HTTP/1.1", LENGTH, EASY, 404),
    "an escape that is none": (b"POST /v1/classify%zz HTTP/1.1", LENGTH, EASY, 404),
    "a line end in the path": (b"POST /v1/classify%0d%0ax: HTTP/1.1", LENGTH, EASY, 404),
    "an escaped path to the admin routes": (b"GET /%61dmin/v1/policy HTTP/1.1", b"", b"", 401),
    "escaped slashes to the admin routes": (b"GET /admin%2fv1%2fpolicy HTTP/1.1", b"", b"", 401),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_odd_message_is_answered_in_kind(edge: Service, name: str) -> None:
    line, headers, body, expected = MESSAGES[name]
    status, content = ask(edge, line, headers, body)
    assert status == expected, content[:300]
    assert ask(edge, POST, LENGTH, EASY)[0] == 200


@pytest.mark.parametrize("trailer", [b"x-gatekeeper-hops: 9", b"x-request-timeout-ms: nonsense"])
def test_a_trailer_is_no_header(edge: Service, trailer: bytes) -> None:
    """A proxy that strips or sets these headers does not look at trailers."""
    assert ask(edge, POST, CHUNKED, CHUNK + b"0\r\n" + trailer + b"\r\n\r\n")[0] == 200


def test_a_token_in_a_trailer_opens_nothing(edge: Service) -> None:
    body = b"e\r\n" + b'{"note": "no"}' + b"\r\n0\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
    headers = CHUNKED + b"content-type: application/json\r\n"
    assert ask(edge, b"PATCH /admin/v1/policy HTTP/1.1", headers, body)[0] == 401


ENDLESS = {
    "a header": (POST + b"\r\nx-a: ", b"a" * 65_536),
    "headers": (POST + b"\r\n", b"x-a: b\r\n" * 8_192),
    "chunk extensions": (POST + b"\r\n" + CHUNKED + b"\r\n1;", b"a" * 65_536),
    "a trailer": (POST + b"\r\n" + CHUNKED + b"\r\n" + CHUNK + b"0\r\nx-a: ", b"a" * 65_536),
    "trailers": (POST + b"\r\n" + CHUNKED + b"\r\n" + CHUNK + b"0\r\n", b"x-a: b\r\n" * 8_192),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_cut_off(edge: Service, name: str) -> None:
    """64 MB are offered; the connection is closed long before they are taken."""
    opening, more = ENDLESS[name]
    sent = 0
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10.0) as connection:
        connection.sendall(opening)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(1_024):
                connection.sendall(more)
                sent += len(more)
    assert sent < 32 * 1024 * 1024  # what the kernel's buffers hold counts as sent


class TestUpgrade:
    """Java's HttpClient and Ktor offer to upgrade to HTTP/2 with every request, and mean the request all the same."""

    @pytest.mark.parametrize("parts", ["in one packet", "head and body apart", "byte by byte"])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_the_request_is_served_and_the_connection_goes_on(self, edge: Service, parts: str, framing: str) -> None:
        headers, body = (LENGTH, EASY) if framing == "length" else (CHUNKED, CHUNK + b"0\r\n\r\n")
        head = POST + b"\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\n" + H2C + headers + b"\r\n"
        last = POST + b"\r\nhost: x\r\nconnection: close\r\n" + LENGTH + b"\r\n" + EASY
        whole = head + body
        split = {
            "in one packet": [whole + last],
            "head and body apart": [head, body, last],
            "byte by byte": [whole[n : n + 1] for n in range(len(whole))] + [last],
        }
        received = exchange(edge, *split[parts])
        assert received.count(b"HTTP/1.1 200 OK") == 2, received
        assert received.count(b'"label":"balance"') >= 2

    def test_a_request_without_a_body_is_served_too(self, edge: Service) -> None:
        get = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n" + H2C + b"\r\n"
        last = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        assert exchange(edge, get + get + last).count(b"alive") == 3

    def test_a_websocket_is_declined(self, edge: Service) -> None:
        headers = b"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        line = b"GET /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\n"
        assert exchange(edge, line + headers + b"\r\n").startswith(b"HTTP/1.1 405 ")

    def test_a_body_over_the_limit_is_still_refused(self, edge: Service) -> None:
        headers = b"connection: Upgrade\r\n" + H2C + b"content-length: 5000000\r\n"
        assert exchange(edge, POST + b"\r\nhost: x\r\nconnection: close\r\n" + headers + b"\r\n").startswith(
            b"HTTP/1.1 413 "
        )


@pytest.mark.parametrize(("digits", "status"), [(b"0" * 5_000 + b"%d" % len(EASY), 200), (b"9" * 18, 413)])
def test_a_length_of_many_digits_is_a_length(edge: Service, digits: bytes, status: int) -> None:
    assert ask(edge, POST, b"content-length: " + digits + b"\r\n", EASY)[0] == status


@pytest.mark.usefixtures("restored_policy")
class TestPolicy:
    """Odd changes of the policy, and many at once."""

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b'{"threshold": 1e400}', 422),
            (b'{"threshold": -1e-400}', 200),  # is -0.0, within the range
            (b'{"threshold": "0.5"}', 422),
            (b'{"threshold": true}', 422),
            (b'{"threshold": null}', 422),
            (b'{"note": null}', 422),
            (b'{"threshold": 0.5, "extra": 1}', 422),
            (b'{"threshold": 0.5, "updated_by": "me"}', 422),
            (b'{"threshold": 2, "threshold": 0.5}', 200),  # a key twice: the last counts
            (b'{"remote_timeout_s": 1e-320}', 200),
            (b'{"note": "\\u0000\\u202e<script>"}', 200),
            (b'{"note": "\\ud800"}', 400),
            (b"[" * 60_000, 413),
            (b"[" * 250, 400),
            (b"{" + b'"threshold": 0, ' * 3_000 + b'"note": ""}', 413),
            (b'{"' + b"x" * 60_000 + b'": 1}', 422),
            (b"null", 422),
            (b"{}", 200),
        ],
    )
    def test_an_odd_patch_is_refused_or_kept_as_it_was_sent(
        self, client: httpx.Client, body: bytes, expected: int
    ) -> None:
        before = admin(client, "GET", "policy").json()
        answer = admin(client, "PATCH", "policy", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == expected, answer.text[:300]
        assert len(answer.content) < 1_000
        after = admin(client, "GET", "policy").json()
        assert after == (answer.json() if expected == 200 else before)
        if expected == 200:
            asked = json.loads(body)
            note = {"note": ""} if asked else {}  # an empty patch makes no version
            assert after == before | note | asked | {key: after[key] for key in ("version", "updated_at")}

    @pytest.mark.parametrize(
        ("if_match", "expected"),
        [("*", 200), ('W/"{}"', 200), ('"{}"', 200), ("{}", 412), ('"{}", "1"', 412), ("", 412)],
    )
    def test_if_match_is_an_etag(self, client: httpx.Client, if_match: str, expected: int) -> None:
        version = admin(client, "GET", "policy").json()["version"]
        headers = {"if-match": if_match.format(version)}
        answer = admin(client, "PATCH", "policy", json={"note": "odd"}, headers=headers)
        assert answer.status_code == expected, answer.text

    async def test_of_200_patches_at_once_with_one_if_match_one_wins(self, edge: Service, client: httpx.Client) -> None:
        limits = httpx.Limits(max_connections=200)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=edge.url, timeout=50.0, limits=limits, headers=headers) as many:
            version = admin(client, "GET", "policy").json()["version"]
            patches = [
                many.patch("/admin/v1/policy", json={"note": f"{n}"}, headers={"if-match": f'"{version}"'})
                for n in range(200)
            ]
            answers = await asyncio.gather(*patches)
        assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 199}
        won = next(answer for answer in answers if answer.status_code == 200)
        assert admin(client, "GET", "policy").content == won.content
        assert won.json()["version"] == version + 1
