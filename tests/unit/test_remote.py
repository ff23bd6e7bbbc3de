"""The way to the large model, against real sockets that misbehave."""

import asyncio
import json
import logging
import math
import random
import socket

import pytest
from support.faulty_server import Script, Turn, head, output, outputs, serving
from support.remotes import (
    IMPATIENT_S,
    MAX_BYTES,
    PATIENT_S,
    Clock,
    Outcomes,
    accepting,
    answering,
    ask,
    asking,
    dropping,
    first_then_good,
    good,
    labels_of,
    never,
    refusing_url,
    remote_to,
    resetting,
    sending,
)

from service.errors import (
    BreakerOpen,
    ForeignLabel,
    RemoteBadAnswer,
    RemoteError,
    RemoteLimit,
    RemoteTimeout,
    RemoteUnavailable,
)
from service.remote.large_model import ItemAnswer, LargeModel, RemoteAnswer
from service.remote.latency import ENOUGH_S
from service.remote.pool import Pool

# --- what is sent, what comes back


async def test_answers_come_back_in_the_order_of_the_texts() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        answers = await ask(remote, "one", "two", "three")
    assert answers == [RemoteAnswer(label, 0.9, (), degraded=False) for label in ("one", "two", "three")]


async def test_an_answer_carries_its_alternatives_and_whether_it_is_degraded() -> None:
    top = [{"label": "a", "score": 0.5}, {"label": "b", "score": 0.25}, {"label": "c", "score": 0.125}]
    items = [output("a", score=0.5, top=top), output("b", decision="degraded"), output("c", decision="deferred")]
    script = answering(200, json.dumps({"outputs": items}).encode())
    async with serving(script) as server, remote_to(server.url) as remote:
        answers = await ask(remote, "1", "2", "3", top_k=2)
    assert answers[0] == RemoteAnswer("a", 0.5, (("a", 0.5), ("b", 0.25)), degraded=False)
    assert [answer.degraded for answer in answers] == [False, True, False]


async def test_an_answer_that_was_degraded_two_edges_away_still_says_so() -> None:
    script = answering(200, outputs(["a"], decision="deferred", reason="remote_degraded"))
    async with serving(script) as server, remote_to(server.url) as remote:
        (answer,) = await ask(remote)
    assert answer.degraded


async def test_exactly_these_headers_are_sent() -> None:
    """Nothing of the client's goes along but what the contract names."""
    async with serving(good) as server, remote_to(server.url) as remote:
        await remote.answer(asking("hello", top_k=3, timeout_s=5.0, hops=2))
    (turn,) = server.requests
    time_left_ms = int(turn.headers.pop("x-request-timeout-ms"))
    assert 0 < time_left_ms <= 5_000
    assert turn.request_line == "POST /v1/classify HTTP/1.1"
    assert json.loads(turn.body) == {"inputs": ["hello"], "parameters": {"top_k": 3}}
    assert turn.headers == {
        "host": server.url.removeprefix("http://"),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "gatekeeper",
        "content-type": "application/json",
        "content-length": str(len(turn.body)),
        "x-gatekeeper-hops": "2",
        "x-request-id": "id-1",
    }


async def test_a_path_in_the_base_url_is_kept() -> None:
    async with serving(good) as server, remote_to(f"{server.url}/large/") as remote:
        await ask(remote)
    assert server.requests[0].request_line == "POST /large/v1/classify HTTP/1.1"


async def test_any_text_arrives_as_it_is() -> None:
    texts = ["", "naïve 日本 🎈", 'quote " and \\ and \n', "lone \ud800 surrogate"]
    async with serving(answering(200, outputs(["a"] * 4))) as server, remote_to(server.url) as remote:
        await ask(remote, *texts)
    assert server.requests[0].texts == texts


async def test_a_strange_request_id_cannot_add_a_header() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        await remote.answer(asking("hello", request_id="a\r\nx-evil: é"))
    assert server.requests[0].headers["x-request-id"] == "a%0D%0Ax-evil:%20%C3%A9"
    assert "x-evil" not in server.requests[0].headers


async def test_a_cookie_of_the_remote_does_not_travel_on() -> None:
    async def script(turn: Turn) -> None:
        await turn.classify({"set-cookie": "session=of-another-client; Path=/"})

    # Over a name: aiohttp's ordinary jar keeps no cookies of bare addresses.
    async with serving(script) as server, remote_to(server.url.replace("127.0.0.1", "localhost")) as remote:
        for _ in range(3):
            await ask(remote)
    assert len(server.requests) == 3
    assert not any("cookie" in turn.headers for turn in server.requests)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_url() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with serving(good) as server, remote_to(server.url) as remote:
            assert await ask(remote)


async def test_no_texts_need_no_call() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        assert await remote.answer(asking()) == []
    assert server.requests == []


# --- answers that are failures


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (201, RemoteBadAnswer, 1),
        (204, RemoteBadAnswer, 1),
        (301, RemoteBadAnswer, 1),
        (304, RemoteBadAnswer, 1),
        (400, RemoteBadAnswer, 1),
        (401, RemoteUnavailable, 1),
        (403, RemoteUnavailable, 1),
        (404, RemoteBadAnswer, 1),
        (413, RemoteBadAnswer, 1),
        (422, RemoteBadAnswer, 1),
        (429, RemoteLimit, 1),
        (500, RemoteUnavailable, 1),
        (501, RemoteUnavailable, 1),
        (502, RemoteUnavailable, 2),
        (503, RemoteUnavailable, 2),
        (504, RemoteTimeout, 1),
        (508, RemoteBadAnswer, 1),
        (599, RemoteUnavailable, 1),
    ],
)
async def test_each_status_is_one_error(status: int, error: type[RemoteError], attempts: int) -> None:
    """And each attempt is observed, under that error's reason."""
    outcomes = Outcomes()
    async with serving(answering(status)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(error):
            await ask(remote)
    assert len(server.requests) == attempts
    assert outcomes == [error.reason] * attempts


GOOD_BODY = outputs(["a"])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>hello</html>", id="a page"),
        pytest.param(GOOD_BODY[:-20], id="truncated JSON"),
        pytest.param(b"\xff\xfe" + GOOD_BODY, id="not UTF-8"),
        pytest.param(b"[" * 50_000, id="deeply nested"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"outputs": {}}', id="outputs is no list"),
        pytest.param(b'{"answers": []}', id="no outputs"),
        pytest.param(outputs([]), id="too few outputs"),
        pytest.param(outputs(["a", "b"]), id="too many outputs"),
        pytest.param(outputs([""]), id="empty label"),
        pytest.param(outputs(["a"], label=None), id="label is null"),
        pytest.param(outputs(["a"], label=7), id="label is a number"),
        pytest.param(outputs(["a"], score=math.nan), id="score is NaN"),
        pytest.param(outputs(["a"], score=math.inf), id="score is infinite"),
        pytest.param(outputs(["a"], score=1.000001), id="score above 1"),
        pytest.param(outputs(["a"], score=-0.1), id="score below 0"),
        pytest.param(outputs(["a"], score="0.9"), id="score is a string"),
        pytest.param(outputs(["a"], score=True), id="score is a boolean"),
        pytest.param(GOOD_BODY.replace(b"0.9", b"1e999"), id="score overflows"),
        pytest.param(outputs(["a"], decision="failed"), id="unknown decision"),
        pytest.param(outputs(["a"], top=[{"label": "a", "score": 2}]), id="a bad alternative"),
        pytest.param(outputs(["a" * MAX_BYTES]), id="too long"),
    ],
)
async def test_a_200_that_is_not_the_contract_is_a_bad_answer(body: bytes) -> None:
    outcomes = Outcomes()
    async with serving(answering(200, body)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteBadAnswer):
            await ask(remote)
    assert outcomes == ["remote_bad_answer"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(200, {"content-length": "9999"}) + GOOD_BODY, id="body shorter than content-length"),
        pytest.param(head(200, {"content-length": "many"}) + GOOD_BODY, id="content-length is no number"),
        pytest.param(head(200, {"transfer-encoding": "chunked"}) + b"5\r\n{", id="a chunk breaks off"),
        pytest.param(head(200, {"transfer-encoding": "chunked"}) + b"zz\r\n{}\r\n", id="chunk size is no number"),
        pytest.param(head(200, {"x-long": "x" * 100_000}), id="a header without end"),
        pytest.param(b"220 mail.example.com ESMTP\r\n\r\n", id="another protocol"),
        pytest.param(head(200, {"content-encoding": "gzip"}) + GOOD_BODY, id="encoded"),
        pytest.param(head(101, {"connection": "upgrade", "upgrade": "websocket"}), id="switching protocols"),
    ],
)
async def test_a_broken_response_is_a_bad_answer(data: bytes) -> None:
    outcomes = Outcomes()
    async with serving(sending(data)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteBadAnswer):
            await ask(remote)
    assert outcomes == ["remote_bad_answer"]


async def test_an_answer_to_another_request_is_a_bad_answer() -> None:
    """A late answer on a kept-alive connection is not taken for this one."""
    script = answering(200, outputs(["hello"]), {"x-request-id": "id-0"})
    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="another request"):
            await ask(remote)


async def test_an_endless_body_is_cut_off() -> None:
    """The connection is closed as soon as the limit is passed: the server sees its client leave."""

    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-type": "application/json"}))
        while True:
            await turn.send(b" " * 16_384)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="longer than"):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)


async def test_a_redirect_is_not_followed() -> None:
    async with serving(good) as elsewhere:
        to = {"location": f"{elsewhere.url}/v1/classify"}
        async with serving(answering(307, headers=to)) as server, remote_to(server.url) as remote:
            with pytest.raises(RemoteBadAnswer):
                await ask(remote)
    assert elsewhere.requests == []


# --- no answer


async def test_a_refused_connection_is_tried_twice() -> None:
    outcomes = Outcomes()
    with refusing_url() as url:
        async with remote_to(url, outcomes) as remote:
            with pytest.raises(RemoteUnavailable):
                await ask(remote)
    assert outcomes == ["remote_unavailable"] * 2


async def test_a_name_that_nobody_knows_is_unavailable() -> None:
    outcomes = Outcomes()
    async with remote_to("http://large.invalid", outcomes) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert set(outcomes) == {"remote_unavailable"}


async def test_a_connection_that_is_never_accepted_is_given_up() -> None:
    """A full backlog drops the handshake: connect_timeout_s ends the wait, long before the deadline."""
    outcomes = Outcomes()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = [socket.socket() for _ in range(3)]
        for waiting in queued:
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with remote_to(url, outcomes, connect_timeout_s=0.1) as remote:
            with pytest.raises(RemoteUnavailable):
                await ask(remote)
        for waiting in queued:
            waiting.close()
    assert outcomes == ["remote_unavailable"]


async def test_a_server_without_tls_is_unavailable_over_https() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(400, {}))
        writer.close()

    outcomes = Outcomes()
    async with accepting(accept) as url, remote_to(url.replace("http", "https"), outcomes) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert outcomes == ["remote_unavailable"]


async def test_a_remote_that_never_answers_is_late() -> None:
    """At the deadline the connection is closed: an answer that still came must not meet the next request."""
    outcomes = Outcomes()
    async with serving(never) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
        await server.until(lambda seen: seen.open_connections == 0)
    assert outcomes == ["remote_timeout"]
    assert len(server.requests) == 1


async def test_a_trickled_answer_is_late_although_bytes_keep_coming() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-length": "100000"}))
        while True:
            await turn.send(b" ")
            await asyncio.sleep(0.005)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
        await server.until(lambda seen: seen.open_connections == 0)


@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # aiohttp's advice; copying 8 MB takes 1 ms
async def test_a_remote_that_never_reads_is_late() -> None:
    """More text than the sockets' buffers hold: the write blocks, and the deadline ends that too."""
    over = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()  # the reader stops at its own limit of 64 KiB
        writer.close()

    async with accepting(accept) as url, remote_to(url, slots=1) as remote:
        for _ in range(2):  # the second needs the first one's slot
            with pytest.raises(RemoteTimeout):
                await ask(remote, "x" * 8_000_000, timeout_s=IMPATIENT_S)
        over.set()


async def test_no_time_left_is_late_without_a_call() -> None:
    outcomes = Outcomes()
    async with serving(good) as server, remote_to(server.url, outcomes, failures=1) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=0.0)
        assert not remote.breaker_open
    assert server.requests == []
    assert outcomes == []


# --- the retry


@pytest.mark.parametrize(
    "first", [answering(502), answering(503), dropping, resetting], ids=["502", "503", "closed", "reset"]
)
async def test_a_passing_failure_is_retried_once(first: Script) -> None:
    outcomes = Outcomes()
    async with serving(first_then_good(first)) as server, remote_to(server.url, outcomes) as remote:
        assert await ask(remote)
    assert outcomes == ["remote_unavailable", "ok"]
    assert server.requests[0].body == server.requests[1].body


@pytest.mark.parametrize("script", [dropping, resetting], ids=["closed", "reset"])
async def test_there_is_no_second_retry(script: Script) -> None:
    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert len(server.requests) == 2


async def test_the_retry_is_told_the_time_that_is_left_then() -> None:
    async with serving(first_then_good(answering(503))) as server, remote_to(server.url) as remote:
        await ask(remote)
    first_ms, second_ms = (int(turn.headers["x-request-timeout-ms"]) for turn in server.requests)
    assert 0 < second_ms < first_ms <= PATIENT_S * 1_000


async def test_a_failure_late_in_the_call_is_not_retried() -> None:
    async def script(turn: Turn) -> None:
        await asyncio.sleep(0.6)  # more than half of the time, well before the deadline
        await turn.answer(503)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote, timeout_s=1.0)
    assert len(server.requests) == 1


async def test_the_deadline_spans_the_retry() -> None:
    async def script(turn: Turn) -> None:
        await (turn.answer(503) if turn.number == 1 else never(turn))

    outcomes = Outcomes()
    async with serving(script) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=0.5)
    assert outcomes == ["remote_unavailable", "remote_timeout"]
    assert int(server.requests[1].headers["x-request-timeout-ms"]) < 500


async def test_stale_keep_alive_connections_are_no_failure() -> None:
    """However many idle connections are dead, the retry does not pick another one of them."""
    all_connected = asyncio.Barrier(8)

    async def script(turn: Turn) -> None:
        if turn.number > 8 and turn.connection <= 8:
            turn.drop()
            return
        if turn.number <= 8:
            await all_connected.wait()
        await turn.classify()

    async with serving(script) as server, remote_to(server.url, slots=8) as remote:
        await asyncio.gather(*(ask(remote) for _ in range(8)))
        for _ in range(8):
            assert await ask(remote)
    assert server.connections == 16


async def test_connections_closed_at_random_are_no_failures() -> None:
    """The server closes after some answers without a word, as one does whose keep-alive time is short."""
    dice = random.Random(7)

    async def script(turn: Turn) -> None:
        await turn.classify()
        if dice.random() < 0.3:
            turn.drop()

    async with serving(script) as server, remote_to(server.url, slots=4) as remote:

        async def asks(n: int) -> None:
            for _ in range(n):
                assert await ask(remote)

        await asks(20)
        await asyncio.gather(*(asks(20) for _ in range(4)))
    assert server.connections > 4


# --- slots, cancellation


async def test_no_more_calls_run_at_once_than_there_are_slots() -> None:
    most_at_once = 0

    async def script(turn: Turn) -> None:
        nonlocal most_at_once
        most_at_once = max(most_at_once, server.running_scripts)
        await turn.classify()

    async with serving(script) as server, remote_to(server.url, slots=4) as remote:
        answers = await asyncio.gather(*(ask(remote, str(n)) for n in range(100)), return_exceptions=True)
    answered = [(str(n), answer[0].label) for n, answer in enumerate(answers) if isinstance(answer, list)]
    assert len(answered) >= 4
    assert all(asked == label for asked, label in answered)
    assert {type(answer) for answer in answers} <= {list, RemoteLimit}
    assert most_at_once <= 4
    assert server.connections <= 4


async def test_behind_as_many_as_there_are_slots_a_call_is_refused_without_waiting() -> None:
    async with serving(never) as server, remote_to(server.url, slots=2) as remote:
        calls = [asyncio.create_task(ask(remote)) for _ in range(4)]
        await asyncio.sleep(0)  # two have a slot, two wait
        refused = remote.answer(asking("hello"))
        with pytest.raises(RemoteLimit, match="as many calls wait"):
            refused.send(None)  # it raises before it waits for anything
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_without_a_free_slot_a_call_is_given_up_untried() -> None:
    """After a moment, or a share of its time if that is less; the breaker does not mind."""
    outcomes = Outcomes()
    async with serving(never) as server, remote_to(server.url, outcomes, slots=1, failures=1) as remote:
        first = asyncio.create_task(ask(remote))
        await server.until(lambda seen: seen.running_scripts == 1)
        with pytest.raises(RemoteLimit):
            await ask(remote, timeout_s=IMPATIENT_S)
        assert not remote.breaker_open
        first.cancel()
        await asyncio.wait([first])
    assert len(server.requests) == 1
    assert outcomes == []


async def test_a_cancelled_call_closes_its_connection_and_frees_its_slot() -> None:
    async def script(turn: Turn) -> None:
        await (never(turn) if turn.number == 1 else turn.classify())

    outcomes = Outcomes()
    async with serving(script) as server, remote_to(server.url, outcomes, slots=1) as remote:
        call = asyncio.create_task(ask(remote))
        await server.until(lambda seen: seen.running_scripts == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.until(lambda seen: seen.open_connections == 0)
        assert await ask(remote)
    assert outcomes == ["ok"]


async def test_a_call_cancelled_in_the_middle_of_a_body_closes_its_connection() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-length": "100"}) + b"{")
        sent.set()
        await never(turn)

    sent = asyncio.Event()
    async with serving(script) as server, remote_to(server.url) as remote:
        call = asyncio.create_task(ask(remote))
        await sent.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.until(lambda seen: seen.open_connections == 0)


async def test_after_200_cancelled_calls_every_slot_still_serves() -> None:
    """Cancelled while waiting for a slot, connecting, sending, waiting for the answer, reading it."""
    slots = 8
    all_at_once = asyncio.Barrier(slots)
    dice = random.Random(7)

    async def script(turn: Turn) -> None:
        if turn.texts == ["together"]:
            await all_at_once.wait()
            await turn.classify()
        elif dice.random() < 0.5:
            await turn.send(head(200, {"content-length": "100"}) + b"{")
            await never(turn)
        else:
            await never(turn)

    async with serving(script) as server, remote_to(server.url, slots=slots) as remote:
        await cancel_at_many_moments(remote, calls=200, dice=dice)
        # The barrier opens only when as many requests as there are slots are with the server at the same time.
        assert len(await asyncio.gather(*(ask(remote, "together") for _ in range(slots)))) == slots


async def cancel_at_many_moments(remote: LargeModel, *, calls: int, dice: random.Random) -> None:
    running: list[asyncio.Task[list[ItemAnswer]]] = []
    for _ in range(calls):
        running.append(asyncio.create_task(ask(remote)))
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        if len(running) > 12:
            running.pop(dice.randrange(len(running))).cancel()
    for call in running:
        call.cancel()
    await asyncio.wait(running)


# --- the breaker


@pytest.mark.parametrize("script", [answering(500), answering(503), answering(504), answering(200, b"{")])
async def test_failures_in_a_row_open_the_breaker(script: Script) -> None:
    """A call counts once, with its retry; then calls are refused without a request."""
    outcomes = Outcomes()
    async with serving(script) as server, remote_to(server.url, outcomes, failures=2) as remote:
        for _ in range(2):
            assert remote.refusal() is None
            assert not remote.breaker_open
            with pytest.raises(RemoteError):
                await ask(remote)
        asked, observed = len(server.requests), len(outcomes)
        assert remote.breaker_open
        assert isinstance(refusal := remote.refusal(), BreakerOpen)
        assert refusal.retry_after_s == 2
        with pytest.raises(BreakerOpen):
            await ask(remote)
    assert (len(server.requests), len(outcomes)) == (asked, observed)


async def test_late_answers_open_the_breaker() -> None:
    async with serving(never) as server, remote_to(server.url, failures=1) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
        assert remote.breaker_open


async def test_a_client_that_will_not_wait_does_not_open_the_breaker_for_others() -> None:
    async with serving(never) as server, remote_to(server.url, failures=1) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=0.05, own_deadline=True)
        assert not remote.breaker_open


async def hurried(remote: Pool, timeout_s: float, items: int = 1) -> None:
    with pytest.raises(RemoteTimeout):
        await ask(remote, *["x"] * items, timeout_s=timeout_s, own_deadline=True)


async def test_a_deadline_that_the_large_model_should_have_met_opens_the_breaker() -> None:
    """It has answered at once, and hangs: twice as much time as it takes is enough, and 0.2 s is."""

    async def hangs_later(turn: Turn) -> None:
        await (turn.classify() if turn.number <= 3 else never(turn))

    async with serving(hangs_later) as server, remote_to(server.url, failures=2) as remote:
        for _ in range(3):
            await ask(remote)
        await hurried(remote, ENOUGH_S / 2)
        await hurried(remote, ENOUGH_S / 2)
        assert not remote.breaker_open, "too short for anybody"
        await hurried(remote, ENOUGH_S * 1.5)
        await hurried(remote, ENOUGH_S * 1.5)
        assert remote.breaker_open


async def test_a_deadline_below_what_the_large_model_usually_takes_opens_no_breaker() -> None:
    async with serving(never) as server, remote_to(server.url, failures=1) as remote:
        (endpoint,) = remote.endpoints
        endpoint.took(2.0, 1)
        await hurried(remote, ENOUGH_S * 2)
        assert not remote.breaker_open
        for _ in range(3):
            endpoint.took(0.001, 1)
        assert endpoint.enough_s(1) == ENOUGH_S
        assert endpoint.enough_s(1_000) == pytest.approx(2.0), "of many items in proportion"
        await hurried(remote, ENOUGH_S * 2, items=1_000)
        assert not remote.breaker_open
        await hurried(remote, ENOUGH_S * 2)
        assert remote.breaker_open


async def test_deadlines_count_only_of_a_large_model_that_answers_nobody() -> None:
    """It hangs on one text and answers the others: no breaker opens, however long that client waited."""

    async def hangs_on_x(turn: Turn) -> None:
        await (never(turn) if turn.texts == ["x"] else turn.classify())

    async with serving(hangs_on_x) as server, remote_to(server.url, failures=1) as remote:
        await ask(remote)
        waiting = asyncio.create_task(hurried(remote, 2 * ENOUGH_S))
        await server.until(lambda server: len(server.requests) == 2)
        await ask(remote)
        await waiting
        assert not remote.breaker_open


async def test_an_answer_to_an_earlier_call_closes_a_breaker_that_silence_has_opened() -> None:
    """Else clients with short deadlines would keep the answers of a slow large model from those who wait."""
    answer = asyncio.Event()

    async def slow_for_y(turn: Turn) -> None:
        if turn.texts == ["y"]:
            await answer.wait()
        await (never(turn) if turn.texts == ["x"] else turn.classify())

    async with serving(slow_for_y) as server, remote_to(server.url, failures=1) as remote:
        await ask(remote)
        patient = asyncio.create_task(ask(remote, "y"))
        await server.until(lambda server: len(server.requests) == 2)
        await hurried(remote, 2 * ENOUGH_S)
        assert remote.breaker_open
        answer.set()
        await patient
        assert not remote.breaker_open


# --- labels that the bundle does not have


def labelled(*labels: str, top: list[str] | None = None) -> Script:
    async def script(turn: Turn) -> None:
        changes = {} if top is None else {"top": [{"label": label, "score": 0.5} for label in top]}
        await turn.answer(200, outputs(labels, **changes))

    return script


async def test_a_foreign_label_is_refused_for_its_item_alone() -> None:
    outcomes = Outcomes()
    async with (
        serving(labelled("a", "nobody", "b")) as server,
        remote_to(server.url, outcomes, failures=1, labels=["a", "b"]) as remote,
    ):
        first, second, third = await ask(remote, "x", "y", "z")
        assert not remote.breaker_open
    assert isinstance(first, RemoteAnswer)
    assert isinstance(second, ForeignLabel)
    assert isinstance(third, RemoteAnswer)
    assert outcomes == ["remote_bad_answer"]


@pytest.mark.parametrize(("shared", "opens"), [(None, False), (1, False), (0, True)])
async def test_foreign_labels_alone_open_the_breaker_only_where_none_is_shared(shared: int | None, opens: bool) -> None:
    """Of a set that is shared in part a client can choose texts that get the rest."""
    async with serving(labelled("nobody")) as server, remote_to(server.url, failures=1, labels=["a"]) as remote:
        remote.endpoints[0].wire.facts.labels_shared = shared
        with pytest.raises(ForeignLabel):
            await ask(remote)
        assert remote.breaker_open is opens


async def test_a_foreign_label_among_the_top_is_refused_too() -> None:
    async with (
        serving(labelled("a", top=["a", "nobody"])) as server,
        remote_to(server.url, labels=["a", "b"]) as remote,
    ):
        with pytest.raises(ForeignLabel):
            await ask(remote, top_k=2)


async def test_what_is_wrong_with_answers_is_logged_once_a_minute_and_kind(caplog: pytest.LogCaptureFixture) -> None:
    clock, bad = Clock(), "x" * 5_000

    async def script(turn: Turn) -> None:
        await turn.answer(200, bad.encode() if turn.number % 2 else outputs(["nobody"]))

    async with serving(script) as server, remote_to(server.url, clock=clock, labels=["a"]) as remote:
        for _ in range(20):
            with pytest.raises(RemoteBadAnswer):
                await ask(remote)
        json_fault, foreign = caplog.records
        clock.now = 60.0
        for _ in range(2):
            with pytest.raises(RemoteBadAnswer):
                await ask(remote)
    assert len(caplog.records) == 4
    assert server.url in json_fault.getMessage()
    assert (json_fault.fault, json_fault.excerpt) == ("json", "x" * 80)  # type: ignore[attr-defined]
    assert (foreign.fault, foreign.excerpt) == ("foreign-label", "nobody")  # type: ignore[attr-defined]
    assert caplog.records[2].not_told_before == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [400, 413, 422, 429, 508])
async def test_statuses_about_the_request_or_a_limit_do_not_open_the_breaker(status: int) -> None:
    async with serving(answering(status)) as server, remote_to(server.url, failures=1) as remote:
        for _ in range(3):
            with pytest.raises(RemoteError):
                await ask(remote)
        assert not remote.breaker_open
        assert remote.refusal() is None


async def test_a_success_in_between_keeps_the_breaker_closed() -> None:
    async def script(turn: Turn) -> None:
        await (turn.classify() if turn.number % 3 == 0 else turn.answer(500))

    async with serving(script) as server, remote_to(server.url, failures=3) as remote:
        for n in range(1, 13):
            if n % 3 == 0:
                await ask(remote)
            else:
                with pytest.raises(RemoteUnavailable):
                    await ask(remote)
        assert not remote.breaker_open


async def test_one_probe_heals_the_breaker_while_others_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """And the log says so once: when it opens and when it closes."""
    caplog.set_level(logging.INFO, logger="service.remote.endpoint")
    healed = asyncio.Event()
    clock = Clock()

    async def script(turn: Turn) -> None:
        if turn.number == 1:
            await turn.answer(500)
        else:
            await healed.wait()
            await turn.classify()

    async with serving(script) as server, remote_to(server.url, clock=clock, failures=1) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        clock.now += 2.0
        assert remote.refusal() is None
        probe = asyncio.create_task(ask(remote))
        await server.until(lambda seen: len(seen.requests) == 2)
        assert isinstance(remote.refusal(), BreakerOpen)
        for _ in range(5):
            with pytest.raises(BreakerOpen):
                await ask(remote)
        healed.set()
        assert await probe
        assert not remote.breaker_open
        await asyncio.gather(*(ask(remote) for _ in range(5)))
    assert len(server.requests) == 7
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_calls_at_the_same_moment_send_one_probe() -> None:
    clock = Clock()

    async def script(turn: Turn) -> None:
        await turn.answer(500)

    async with serving(script) as server, remote_to(server.url, clock=clock, failures=1) as remote:
        for rounds in range(1, 4):
            results = await asyncio.gather(
                *(ask(remote) for _ in range(1 if rounds == 1 else 6)), return_exceptions=True
            )
            assert sum(isinstance(result, RemoteUnavailable) for result in results) == 1
            assert sum(isinstance(result, BreakerOpen) for result in results) == len(results) - 1
            assert len(server.requests) == rounds
            clock.now += 2.0


async def test_a_cancelled_probe_leaves_its_turn_to_the_next_call() -> None:
    clock = Clock()

    async def script(turn: Turn) -> None:
        if turn.number == 1:
            await turn.answer(500)
        elif turn.number == 2:
            await never(turn)
        else:
            await turn.classify()

    async with serving(script) as server, remote_to(server.url, clock=clock, failures=1) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        clock.now += 2.0
        probe = asyncio.create_task(ask(remote))
        await server.until(lambda seen: len(seen.requests) == 2)
        probe.cancel()
        await asyncio.wait([probe])
        assert remote.breaker_open
        assert await ask(remote)
        assert not remote.breaker_open


async def test_an_open_breaker_refuses_without_waiting_for_a_slot() -> None:
    """Two calls hang in both slots, one of them the probe: the next is refused at once, not for want of a slot."""
    clock = Clock()

    async def script(turn: Turn) -> None:
        await (turn.answer(500) if turn.number == 2 else never(turn))

    async with serving(script) as server, remote_to(server.url, clock=clock, slots=2, failures=1) as remote:
        hanging = [asyncio.create_task(ask(remote))]
        await server.until(lambda seen: len(seen.requests) == 1)
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        clock.now += 2.0
        hanging.append(asyncio.create_task(ask(remote)))
        await server.until(lambda seen: len(seen.requests) == 3)
        with pytest.raises(BreakerOpen):
            await ask(remote)
        for call in hanging:
            call.cancel()
        await asyncio.wait(hanging)


async def test_cancelled_calls_do_not_count() -> None:
    async with serving(never) as server, remote_to(server.url, failures=1) as remote:
        for _ in range(3):
            call = asyncio.create_task(ask(remote))
            await server.until(lambda seen: seen.running_scripts == 1)
            call.cancel()
            await asyncio.wait([call])
            await server.until(lambda seen: seen.running_scripts == 0)
        assert not remote.breaker_open


# --- answers that cost more than they are worth


@pytest.mark.parametrize(
    "body",
    [
        b'{"outputs":[' + b"0," * 20_000 + b"0]}",
        b'{"outputs":[{"label":"a","score":0.5,"decision":"accepted","top":[' + b"0," * 20_000 + b"0]}]}",
        b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b',"outputs":[]}',
        b"[" + b"{}," * 20_000 + b"{}]",
    ],
    ids=["outputs", "top", "depth", "objects"],
)
async def test_an_answer_of_many_values_is_not_parsed(body: bytes) -> None:
    async with serving(answering(200, body)) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="more than 4,368 values"):
            await ask(remote)


async def test_an_answer_with_many_labels_and_fields_of_its_own_is_read() -> None:
    """What a newer server may add."""
    top = [{"label": f"label {number}", "score": 0.001, "extra": [number] * 5} for number in range(150)]
    body = outputs(["a"] * 8, top=top, extra={f"field {number}": number for number in range(20)})
    async with serving(answering(200, body)) as server, remote_to(server.url, max_bytes=2**20) as remote:
        answer = (await ask(remote, *"abcdefgh", top_k=150))[7]
    assert isinstance(answer, RemoteAnswer)
    assert len(answer.top) == 150


@pytest.mark.parametrize("extra", [{"probabilities": [0.001] * 150}, {"top": [{"label": "a", "score": 0.1}] * 150}])
async def test_an_item_may_say_much_that_nobody_asked_for(extra: dict[str, object]) -> None:
    script = answering(200, outputs(["a"] * 8, **extra))
    async with serving(script) as server, remote_to(server.url, max_bytes=2**20) as remote:
        assert [answer.label for answer in await ask(remote, *"abcdefgh")] == ["a"] * 8


async def test_more_outputs_than_any_call_has_items_are_not_built() -> None:
    body = outputs(["a"] * 1).replace(b"[{", b"[" + b'{"label":"a","score":0.5,"decision":"accepted"},' * 1_000 + b"{")
    async with serving(answering(200, body)) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="answered 1001 of 1 items"):
            await ask(remote)


async def test_a_label_of_more_than_10_000_characters_is_no_label() -> None:
    async with serving(answering(200, outputs(["a" * 10_001]))) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="at most 10000 characters"):
            await ask(remote)


async def test_interim_answers_without_end_are_cut_off() -> None:
    async def script(turn: Turn) -> None:
        while True:
            await turn.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="not HTTP"):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)


async def test_a_few_interim_answers_are_fine() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        await turn.classify()

    async with serving(script) as server, remote_to(server.url) as remote:
        for _ in range(2):
            assert len(await ask(remote)) == 1
    assert server.connections == 1


async def test_chunks_of_one_byte_count_as_they_travel() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"transfer-encoding": "chunked"}))
        for _ in range(MAX_BYTES // 1_000):
            await turn.send(b"1\r\n \r\n" * 900)
        await turn.send(b"0\r\n\r\n")

    async with serving(script) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="broke off"):
            await ask(remote)


# --- labels, closing


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        ({"data": [{"id": "large", "labels": ["a", "b"]}]}, ["a", "b"]),
        ({"data": [{"id": "large", "labels": ["a"]}, {"id": "alias", "labels": ["a"]}, {"id": "base"}]}, ["a"]),
        ({"data": [{"id": "large", "labels": ["a"]}, {"id": "other", "labels": ["b"]}]}, None),
        ({"data": [{"id": "large"}]}, None),
        ({"data": []}, None),
        ({"data": [{"labels": [1, 2]}]}, None),
        ({"models": []}, None),
    ],
)
async def test_labels_are_told_only_when_there_is_one_answer(body: object, labels: list[str] | None) -> None:
    async with serving(answering(200, json.dumps(body).encode())) as server, remote_to(server.url) as remote:
        if labels is None:
            with pytest.raises(RemoteBadAnswer):
                await labels_of(remote)
        else:
            assert await labels_of(remote) == labels
    assert server.requests[0].request_line == "GET /v1/models HTTP/1.1"
    assert server.requests[0].body == b""


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_labels_cannot_be_told_by_a_remote_that_fails(status: int) -> None:
    """That is no reason for the breaker, nor for the metrics of the defer path."""
    outcomes = Outcomes()
    async with serving(answering(status)) as server, remote_to(server.url, outcomes, failures=1) as remote:
        with pytest.raises(RemoteError):
            await labels_of(remote)
        assert not remote.breaker_open
    assert outcomes == []


async def test_labels_cannot_be_told_by_a_remote_that_is_away() -> None:
    with refusing_url() as url:
        async with remote_to(url) as remote:
            with pytest.raises(RemoteUnavailable):
                await labels_of(remote)


async def test_after_closing_calls_fail_as_unavailable() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        await ask(remote)
        await remote.aclose()
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        await server.until(lambda seen: seen.open_connections == 0)
    assert len(server.requests) == 1


async def test_closing_ends_a_call_that_is_on_its_way() -> None:
    async with serving(never) as server, remote_to(server.url) as remote:
        call = asyncio.create_task(ask(remote))
        await server.until(lambda seen: seen.running_scripts == 1)
        await remote.aclose()
        with pytest.raises(RemoteUnavailable):
            await call
