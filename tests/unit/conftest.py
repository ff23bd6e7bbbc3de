"""Fixtures of the policy's tests: one Redis server a session, emptied for each test, and both kinds of store."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.policies import Medium, redis_medium, sqlite_medium
from support.policy_runs import KEPT, RedisRun, Run
from support.redis_server import RedisServer

from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer(None, "--repl-diskless-sync-delay", "0") as server:
        yield server


@pytest.fixture
async def redis(shared_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client of the shared server, which is empty."""
    async with Redis.from_url(shared_redis.url) as client:
        await client.flushall()
        await client.config_set("maxmemory", 0)
        yield client


@pytest.fixture
def redis_url(shared_redis: RedisServer, redis: Redis) -> str:
    """Of the shared server, which is empty."""
    return shared_redis.url


@pytest.fixture
def redis_store(redis_url: str) -> Callable[[], PolicyStore]:
    return lambda: RedisPolicyStore(redis_url, 1.0)


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PolicyStore]:
    """Opens one more store on the same medium."""
    if request.param == "redis":
        opener: Callable[[], PolicyStore] = request.getfixturevalue("redis_store")
        return opener
    return lambda: SqlitePolicyStore(tmp_path / "policy.db")


@pytest.fixture(params=["sqlite", "redis"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    if request.param == "redis":
        return redis_medium(request.getfixturevalue("redis_url"))
    return sqlite_medium(tmp_path / "made" / "on demand" / "policy.db")


@pytest.fixture
async def store(medium: Medium) -> AsyncIterator[PolicyStore]:
    opened = medium.open_store()
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "redis"])
def new_run(request: pytest.FixtureRequest) -> Callable[[], Run]:
    """Opens the medium of one run of a state machine."""
    if request.param == "sqlite":
        return Run
    server = request.getfixturevalue("shared_redis")
    return lambda: RedisRun(server)


@pytest.fixture
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("sqlite", "redis"):
        monkeypatch.setattr(f"service.policy.{kind}.VERSIONS_KEPT", KEPT)
