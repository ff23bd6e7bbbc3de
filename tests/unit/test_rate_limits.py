"""Budgets of API keys: in memory, in a real Redis, and from one to the other when Redis fails."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from support.redis_server import RedisServer
from support.waiting import until

from service.access import budgets, redis_counts
from service.access.budgets import RateLimits
from service.access.keys import ANYONE, Caller, RateLimit
from service.access.windows import Window, seconds_until
from service.errors import RateLimited, StartupError, TooLarge


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def redis_url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("running").url if request.param == "redis" else None


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """On a busy machine a healthy Redis may take longer than a request would wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_counts, "HIT_TIMEOUT_S", 1.0)
        yield


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "PROBE_INTERVAL_S", 0.05)
    for module in (budgets, redis_counts):
        monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.2)


class Heard:
    """What the metrics hear."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.shared: list[bool] = []

    def on_spent(self, name: str, items: int) -> None:
        self.spent[name] = self.spent.get(name, 0) + items


@asynccontextmanager
async def opened(url: str | None, group: str = "edge:test", heard: Heard | None = None) -> AsyncIterator[RateLimits]:
    heard = heard or Heard()
    limits = RateLimits(url, group=group, on_spent=heard.on_spent, on_shared=heard.shared.append)
    await limits.start()
    try:
        yield limits
    finally:
        await limits.aclose()


def caller(name: str, items: int = 10, window_s: int = 3_600) -> Caller:
    return Caller(name, frozenset({"classify"}), RateLimit(items, window_s))


async def passes(limits: RateLimits, who: Caller, items: int = 1) -> bool:
    try:
        await limits.spend(who, items)
    except RateLimited:
        return False
    return True


async def test_a_budget_is_spent_by_items_and_refusals_cost_nothing(redis_url: str | None) -> None:
    heard = Heard()
    async with opened(redis_url, heard=heard) as limits:
        who = caller("by-items")
        assert await passes(limits, who, 7)
        assert not await passes(limits, who, 4)
        assert await passes(limits, who, 3), "what was refused did not count, and a smaller request may fit"
        assert not await passes(limits, who, 1)
        assert await passes(limits, caller("another"), 10), "each key has its own"
    assert heard.spent == {"by-items": 10, "another": 10}


async def test_a_refusal_says_when_to_come_back_and_what_is_left(redis_url: str | None) -> None:
    async with opened(redis_url) as limits:
        who = caller("told", items=10)
        await limits.spend(who, 7)
        with pytest.raises(RateLimited) as refused:
            await limits.spend(who, 4)
        wait_s = refused.value.retry_after_s
        assert wait_s is not None
        assert 1 <= wait_s <= 2 * 3_600
        assert refused.value.rate_limit == f'"items";r=3;t={wait_s}'
        assert "10 items in 3,600 s" in refused.value.detail


@pytest.mark.slow
async def test_who_waits_as_told_gets_in(redis_url: str | None) -> None:
    async with opened(redis_url) as limits:
        who = caller("patient", items=4, window_s=1)
        await limits.spend(who, 4)
        for _ in range(2):
            with pytest.raises(RateLimited) as refused:
                await limits.spend(who, 3)
            await asyncio.sleep(refused.value.retry_after_s)  # type: ignore[arg-type]
            await limits.spend(who, 3)


async def test_more_than_the_whole_budget_is_refused_for_good(redis_url: str | None) -> None:
    async with opened(redis_url) as limits:
        with pytest.raises(TooLarge, match="11 items, and this API key may send 10"):
            await limits.spend(caller("greedy"), 11)
        assert await passes(limits, caller("greedy"), 10)


async def test_without_keys_or_without_a_limit_nothing_is_counted_against_anybody(redis_url: str | None) -> None:
    heard = Heard()
    async with opened(redis_url, heard=heard) as limits:
        await limits.spend(ANYONE, 1_000_000)
        for _ in range(3):
            await limits.spend(Caller("free", frozenset({"classify"})), 1_000)
    assert heard.spent == {"free": 3_000}


async def test_another_limit_of_the_same_key_starts_afresh(redis_url: str | None) -> None:
    """After a reload of the keys a refusal of before must not outlive its limit."""
    async with opened(redis_url) as limits:
        assert await passes(limits, caller("raised"), 10)
        assert not await passes(limits, caller("raised"))
        assert await passes(limits, caller("raised", items=20), 20)


async def test_replicas_of_one_group_count_together_and_others_apart(running: RedisServer) -> None:
    async with (
        opened(running.url, "edge:together") as one,
        opened(running.url, "edge:together") as two,
        opened(running.url, "large:together") as other,
    ):
        who = caller("shared")
        assert await passes(one, who, 6)
        assert await passes(two, who, 4)
        assert not await passes(one, who)
        assert not await passes(two, who)
        assert await passes(other, who, 10)


async def test_at_once_no_more_than_the_budget_gets_in(redis_url: str | None) -> None:
    async with opened(redis_url) as limits:
        who = caller("at-once", items=50)
        assert sum(await asyncio.gather(*(passes(limits, who) for _ in range(200)))) == 50


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_without_redis_each_counts_alone_and_afterwards_together_again(
    how: str, quick_probes: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard, who = Heard(), caller("robust", items=1_000_000)
    with RedisServer(None, "--requirepass", "a-password") as server:
        url = server.url.replace("127.0.0.1", ":a-password@127.0.0.1")
        async with opened(url, heard=heard) as limits:
            assert await passes(limits, who)
            getattr(server, how)()
            asking: list[bool] = []
            assert all(await asyncio.gather(*(passes(limits, who) for _ in range(100))))
            assert heard.shared == [False, True, False]
            # Known to be down: from now on nobody asks it, let alone waits.
            assert limits._shared is not None
            monkeypatch.setattr(limits._shared, "take", lambda *_: asking.append(True))
            assert await passes(limits, who)
            assert not asking
            monkeypatch.undo()
            monkeypatch.setattr(budgets, "PROBE_INTERVAL_S", 0.05)
            server.start() if how == "stop" else server.resume()
            await until(lambda: heard.shared[-1])
            assert await passes(limits, who)
            assert heard.shared == [False, True, False, True]
    lines = [record.message for record in caplog.records if "rate limits" in record.message]
    assert len(lines) == 2, lines
    assert "a-password" not in caplog.text


async def test_a_start_without_redis_goes_on_and_finds_it_later(quick_probes: None) -> None:
    heard, server = Heard(), RedisServer()
    async with opened(server.url, heard=heard) as limits:
        assert await passes(limits, caller("early"), 10)
        assert not await passes(limits, caller("early"))
        with server:
            await until(lambda: heard.shared[-1])
            assert await passes(limits, caller("late"), 10)


@pytest.mark.parametrize("value", ["not a number", "999", ["a", "list"]])
async def test_garbage_in_our_keys_is_deleted(running: RedisServer, quick_probes: None, value: str | list[str]) -> None:
    heard, who = Heard(), caller(f"garbage-{len(value)}")
    async with opened(running.url, heard=heard) as limits, Redis.from_url(running.url) as redis:
        await limits.spend(who, 1)
        keys = [key async for key in redis.scan_iter(f"gatekeeper:limits:*{who.name}*")]
        assert len(keys) == 1
        await redis.delete(keys[0])
        await (redis.set(keys[0], value) if isinstance(value, str) else redis.rpush(keys[0], *value))
        assert await passes(limits, who)
        assert not heard.shared[-1]
        await until(lambda: heard.shared[-1])
        assert await passes(limits, who, 9)
        assert heard.shared == [False, True, False, True]
        assert not await passes(limits, who, 2)


@pytest.mark.parametrize("which", ["", "/-1"], ids=["now", "before"])
@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e308", "-1e308", "9" * 30, "9" * 400, "9" * 5_000, "-5", "0x10", "", "\x00"]
)
async def test_whatever_our_keys_hold_no_request_fails_and_none_is_shut_out(
    running: RedisServer, quick_probes: None, which: str, value: str
) -> None:
    who = caller(f"absurd{which[1:]}-{value[:5]}-{len(value)}")
    async with opened(running.url) as limits, Redis.from_url(running.url) as redis:
        await limits.spend(who, 1)
        (key,) = [key async for key in redis.scan_iter(f"gatekeeper:limits:*{who.name}*")]
        for lasting_ms in (3_600_000, 2**53):
            await redis.set(key + which.encode(), value, px=lasting_ms)
            await until(lambda: passes(limits, who))


async def test_a_counter_that_outlives_its_window_is_deleted(running: RedisServer, quick_probes: None) -> None:
    """It would refuse the key for as long."""
    who = caller("until-the-sun-is-cold")
    async with opened(running.url) as limits, Redis.from_url(running.url) as redis:
        await limits.spend(who, 10)
        (key,) = [key async for key in redis.scan_iter(f"gatekeeper:limits:*{who.name}*")]
        await redis.pexpire(key, 2**53)
        assert await passes(limits, who, 10)


async def test_a_read_only_redis_is_a_redis_that_is_down(quick_probes: None) -> None:
    heard = Heard()
    with RedisServer() as server:
        async with opened(server.url, heard=heard) as limits, Redis.from_url(server.url) as redis:
            await redis.replicaof("127.0.0.1", "1")
            assert await passes(limits, caller("read-only"))
            assert heard.shared == [False, True, False]
            await asyncio.sleep(0.2)  # several probes, and nothing changes
            assert heard.shared == [False, True, False], "PING would say that it is back"
            await redis.replicaof("NO", "ONE")
            await until(lambda: heard.shared[-1])


async def test_options_in_the_url_cannot_change_how_replies_are_read(running: RedisServer) -> None:
    heard = Heard()
    async with opened(f"{running.url}?decode_responses=true&socket_timeout=1000", heard=heard) as limits:
        assert heard.shared == [False, True]
        assert await passes(limits, caller("decoded"), 10)
        assert not await passes(limits, caller("decoded"), 1)
        assert heard.shared == [False, True], "counted in Redis"


async def test_an_unknown_option_in_the_url_is_told_without_its_password() -> None:
    with pytest.raises(StartupError, match="an option that the client does not know: 'nonsense'") as refused:
        RateLimits(
            "redis://:hush@localhost:1/0?nonsense=1", group="g", on_spent=lambda *_: None, on_shared=lambda _: None
        )
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("items", [1, 5, 10])
@pytest.mark.parametrize(
    "window",
    [(8, 0.5, 10, 1.5), (10, 0.9, 3, 1.9), (10, 0.2, 0, 1.2), (0, 0.0, 10, 2.0), (0, 0.0, 10, 1.0), (3, 0.7, 7, 1.7)],
)
def test_the_time_to_wait_is_the_first_at_which_the_counter_lets_in(window: Window, items: int) -> None:
    """Against the counter itself, moved on by a thousandth of a second at a time."""
    limit = RateLimit(10, 1)

    def fits(at_s: float) -> bool:
        before, before_left, now, now_left = window
        shift_s = now_left - 1
        if at_s >= shift_s:
            before, before_left, now = now, 1 - (at_s - shift_s), 0
        else:
            before_left -= at_s
        return before * max(0.0, before_left) + now + items <= limit.items + 1e-9

    steps = next(step for step in range(3_000) if fits(step / 1_000))
    assert seconds_until(window, limit, items) == pytest.approx(steps / 1_000, abs=0.002)
