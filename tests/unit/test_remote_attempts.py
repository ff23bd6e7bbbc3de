"""The calls to a large model: the second attempt, slots, cancellation."""

import asyncio
import random

import pytest
from support.faulty_server import Script, Turn, head, serving
from support.remotes import (
    IMPATIENT_S,
    PATIENT_S,
    Outcomes,
    answering,
    ask,
    asking,
    dropping,
    first_then_good,
    good,
    never,
    remote_to,
    resetting,
)

from service.errors import RemoteLimit, RemoteTimeout, RemoteUnavailable
from service.remote.large_model import ItemAnswer, LargeModel


async def test_no_texts_need_no_call() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        assert await remote.answer(asking()) == []
    assert server.requests == []


# --- no call


async def test_no_time_left_is_late_without_a_call() -> None:
    outcomes = Outcomes()
    async with serving(good) as server, remote_to(server.url, outcomes, failures=1) as remote:
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=0.0)
        assert not remote.breaker_open
    assert server.requests == []
    assert outcomes == []


# --- the second attempt


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
