"""Several servers of one large model: who is asked, what is tried elsewhere, our key, pauses, short deadlines."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.faulty_server import FaultyServer, Script, Turn, serving
from support.remotes import (
    IMPATIENT_S,
    Clock,
    Outcomes,
    answering,
    ask,
    dropping,
    first_then_good,
    good,
    labels_of,
    never,
    refusing_url,
    remote_to,
)

from service.errors import BreakerOpen, RemoteBadAnswer, RemoteError, RemoteLimit, RemoteTimeout, RemoteUnavailable
from service.remote.large_model import ItemAnswer, LargeModel, RemoteAnswer
from service.remote.pool import Pool


@asynccontextmanager
async def remote_before(
    *scripts: Script, outcomes: Outcomes | None = None, **options: object
) -> AsyncIterator[tuple[Pool, Sequence[FaultyServer]]]:
    """A remote with one endpoint per script, in this order."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(script)) for script in scripts]
        urls = ",".join(server.url for server in servers)
        yield await stack.enter_async_context(remote_to(urls, outcomes, **options)), servers


def asked(servers: Sequence[FaultyServer]) -> list[int]:
    return [len(server.requests) for server in servers]


# --- who is asked


async def test_the_first_endpoint_has_every_call_while_it_has_nothing_else_to_do() -> None:
    async with remote_before(good, good) as (remote, servers):
        for _ in range(5):
            await ask(remote)
    assert asked(servers) == [5, 0]


async def test_calls_at_the_same_time_are_spread_over_the_endpoints() -> None:
    everybody = asyncio.Barrier(8)

    async def script(turn: Turn) -> None:
        await everybody.wait()
        await turn.classify()

    async with remote_before(script, script, slots=4) as (remote, servers):
        await asyncio.gather(*(ask(remote) for _ in range(8)))
        assert [endpoint.in_flight for endpoint in remote.endpoints] == [0, 0]
    assert asked(servers) == [4, 4]


async def test_an_endpoint_that_hangs_does_not_take_the_slots_of_the_other() -> None:
    async with remote_before(never, good, slots=1) as (remote, servers):
        hanging = asyncio.create_task(ask(remote))
        await servers[0].until(lambda seen: seen.running_scripts == 1)
        for _ in range(5):
            await ask(remote)
        hanging.cancel()
        await asyncio.wait([hanging])
    assert asked(servers) == [1, 5]


# --- failover


@pytest.mark.parametrize(
    "first",
    [answering(401), answering(404), answering(429), answering(500), answering(503), answering(200, b"{"), dropping],
    ids=["401", "404", "429", "500", "503", "garbage", "closed"],
)
async def test_what_may_be_one_servers_own_failure_is_tried_at_another(first: Script) -> None:
    outcomes = Outcomes()
    async with remote_before(first, good, outcomes=outcomes) as (remote, servers):
        assert await ask(remote, "hello") == [RemoteAnswer("hello", 0.9, (), degraded=False)]
    assert asked(servers) == [1, 1]
    assert len(outcomes) == 2
    assert outcomes[1] == "ok"


async def test_a_server_that_is_away_costs_no_answer() -> None:
    async with serving(good) as server:
        with refusing_url() as away:
            async with remote_to(f"{away},{server.url}", failures=3) as remote:
                for _ in range(5):
                    await ask(remote)
                assert [endpoint.breaker_open for endpoint in remote.endpoints] == [True, False]
                assert not remote.breaker_open
                assert remote.refusal() is None


@pytest.mark.parametrize("status", [400, 413, 422, 508])
async def test_a_refusal_of_the_request_is_not_tried_elsewhere(status: int) -> None:
    async with remote_before(answering(status), good) as (remote, servers):
        with pytest.raises(RemoteBadAnswer):
            await ask(remote)
    assert asked(servers) == [1, 0]


async def test_a_call_is_tried_twice_at_most_however_many_endpoints_there_are() -> None:
    async with remote_before(dropping, dropping, dropping) as (remote, servers):
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert asked(servers) == [1, 1, 0]


async def test_the_deadline_spans_both_endpoints() -> None:
    async with remote_before(answering(500), never) as (remote, servers):
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=0.5)
    assert asked(servers) == [1, 1]
    assert int(servers[1].requests[0].headers["x-request-timeout-ms"]) <= 500


async def test_a_timeout_leaves_no_time_for_another_endpoint() -> None:
    async with remote_before(never, good) as (remote, servers):
        with pytest.raises(RemoteTimeout):
            await ask(remote, timeout_s=IMPATIENT_S)
    assert asked(servers) == [1, 0]


async def test_without_another_endpoint_that_is_ready_the_same_is_tried_again() -> None:
    async with remote_before(first_then_good(answering(503)), good, slots=1) as (remote, servers):
        remote.endpoints[1].in_flight = 1
        assert await ask(remote)
    assert asked(servers) == [2, 0]


async def test_when_every_breaker_is_open_a_call_is_refused_at_once() -> None:
    clock = Clock()
    async with remote_before(answering(500), answering(500), failures=1, clock=clock) as (remote, servers):
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
        assert remote.breaker_open
        assert isinstance(remote.refusal(), BreakerOpen)
        with pytest.raises(BreakerOpen):
            await ask(remote)
        assert asked(servers) == [1, 1]
        clock.now += 2.0
        assert remote.refusal() is None


async def test_an_endpoint_that_has_come_back_is_found_although_the_first_one_is_idle() -> None:
    clock = Clock()

    async def script(turn: Turn) -> None:
        await (turn.answer(500) if turn.number == 1 else turn.classify())

    async with remote_before(good, script, failures=1, clock=clock) as (remote, servers):
        remote.endpoints[0].in_flight += 1  # busy, so that the second is asked
        await ask(remote)
        remote.endpoints[0].in_flight -= 1
        assert remote.endpoints[1].breaker_open
        await ask(remote)
        assert asked(servers) == [2, 1]
        clock.now += 2.0
        await ask(remote)
        assert not remote.endpoints[1].breaker_open
    assert asked(servers) == [2, 2]


async def test_labels_are_asked_of_each_endpoint() -> None:
    def telling(*labels: str) -> Script:
        return answering(200, json.dumps({"data": [{"labels": labels}]}).encode())

    async with remote_before(telling("a"), telling("b")) as (remote, _):
        assert [await labels_of(remote, number) for number in range(2)] == [["a"], ["b"]]


# --- the key


async def both_routes(turn: Turn) -> None:
    if turn.request_line.startswith("GET"):
        await turn.answer(200, b'{"data": [{"labels": ["a"]}]}')
    else:
        await turn.classify()


async def test_the_key_travels_as_a_bearer_token_to_every_endpoint() -> None:
    async with remote_before(answering(503), both_routes, key="a-secret") as (remote, servers):
        await ask(remote)
        assert await labels_of(remote, 1) == ["a"]
    sent = [turn.headers["authorization"] for server in servers for turn in server.requests]
    assert sent == ["Bearer a-secret"] * 3


async def test_the_key_does_not_follow_a_redirect() -> None:
    async with serving(good) as elsewhere:
        redirecting = answering(302, headers={"location": f"{elsewhere.url}/v1/classify"})
        async with remote_before(redirecting, key="a-secret") as (remote, _):
            with pytest.raises(RemoteBadAnswer):
                await ask(remote)
            with pytest.raises(RemoteBadAnswer):
                await labels_of(remote)
    assert elsewhere.connections == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_told_once_opens_the_breaker_and_is_not_in_the_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with remote_before(answering(status), failures=3, key="a-secret") as (remote, _):
        for _ in range(3):
            with pytest.raises(RemoteUnavailable):
                await ask(remote)
        assert remote.breaker_open
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert str(status) in errors[0]
    assert "GATEKEEPER_REMOTE_KEY" in errors[0]
    assert "a-secret" not in caplog.text


# --- 429


def limited(retry_after: str) -> Script:
    return answering(429, headers={"retry-after": retry_after})


async def test_after_a_429_nothing_is_asked_before_its_retry_after() -> None:
    clock = Clock()

    async def script(turn: Turn) -> None:
        await (turn.answer(429, headers={"retry-after": "3"}) if turn.number == 1 else turn.classify())

    async with remote_before(script, failures=1, clock=clock) as (remote, servers):
        with pytest.raises(RemoteLimit):
            await ask(remote)
        assert isinstance(refusal := remote.refusal(), RemoteLimit)
        assert refusal.retry_after_s == 3
        for clock.now in (0.0, 2.9):
            with pytest.raises(RemoteLimit):
                await ask(remote)
        assert asked(servers) == [1]
        assert not remote.breaker_open
        clock.now = 3.0
        assert remote.refusal() is None
        assert await ask(remote)


async def test_a_limited_endpoint_leaves_its_calls_to_the_other() -> None:
    async with remote_before(limited("5"), good) as (remote, servers):
        for _ in range(4):
            await ask(remote)
    assert asked(servers) == [1, 4]


@pytest.mark.parametrize("value", ["9" * 4_000, "31", format_datetime(datetime(2999, 1, 1, tzinfo=UTC), usegmt=True)])
async def test_a_long_retry_after_is_cut(value: str) -> None:
    async with remote_before(limited(value)) as (remote, _):
        with pytest.raises(RemoteLimit):
            await ask(remote)
        assert remote.endpoints[0].limited_s() == 30.0


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "0", "²", "Fri, 99 Nov", "Mon, 01 Jan 2001 00:00:00 GMT"])
async def test_a_retry_after_that_says_nothing_is_no_pause(value: str) -> None:
    async with remote_before(limited(value)) as (remote, _):
        with pytest.raises(RemoteLimit):
            await ask(remote)
        assert remote.refusal() is None


async def test_a_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    async with remote_before(limited(soon)) as (remote, _):
        with pytest.raises(RemoteLimit):
            await ask(remote)
        assert 0.0 < remote.endpoints[0].limited_s() <= 21.0


async def test_open_breakers_beside_a_limited_endpoint_are_a_limit() -> None:
    async with remote_before(answering(500), limited("5"), failures=1) as (remote, _):
        with pytest.raises(RemoteLimit):
            await ask(remote)
        assert isinstance(remote.refusal(), RemoteLimit)
        assert not remote.breaker_open


# --- a deadline too short


async def hurried(remote: LargeModel, timeout_s: float) -> list[ItemAnswer]:
    return await ask(remote, timeout_s=timeout_s, own_deadline=True)


async def test_a_deadline_below_the_quickest_recent_call_is_given_up_untried() -> None:
    clock = Clock()

    async def slow(turn: Turn) -> None:
        await asyncio.sleep(0.1)
        await turn.classify()

    async with remote_before(slow, failures=1, clock=clock) as (remote, servers):
        await ask(remote)
        with pytest.raises(RemoteTimeout, match="too little time"):
            await hurried(remote, 0.05)
        assert asked(servers) == [1]
        assert not remote.breaker_open
        assert await hurried(remote, 5.0)


async def test_what_calls_needed_is_forgotten_so_that_a_remote_that_has_become_quicker_is_found() -> None:
    clock = Clock()

    async def script(turn: Turn) -> None:
        await asyncio.sleep(3.0 if turn.number == 1 else 0.0)
        await turn.classify()

    async with remote_before(script, clock=clock) as (remote, _):
        clock.now = 9.0
        remote._quickest.took(3.0)
        with pytest.raises(RemoteError):
            await hurried(remote, 1.0)
        clock.now = 10.0
        with pytest.raises(RemoteTimeout, match="in time"):
            await hurried(remote, 0.1)
        assert await hurried(remote, 1.0)


async def test_the_policys_own_timeout_is_always_tried() -> None:
    """It is the operator's word, and a call that is never made could never teach otherwise."""
    async with remote_before(good) as (remote, servers):
        remote._quickest.took(100.0)
        await ask(remote)
    assert asked(servers) == [1]
