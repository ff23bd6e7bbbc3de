"""What opens and closes the breaker of a large model, and what does not."""

import asyncio
import logging

import pytest
from support.faulty_server import Script, Turn, outputs, serving
from support.remotes import IMPATIENT_S, Clock, Outcomes, answering, ask, never, remote_to

from service.errors import BreakerOpen, RemoteBadAnswer, RemoteError, RemoteTimeout, RemoteUnavailable
from service.remote.latency import ENOUGH_S
from service.remote.pool import Pool


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
