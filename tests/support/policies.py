"""Policies for tests, both media that keep them, and a way around the stores to plant what no store would write."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import PolicyStoreDown
from service.policy.document import Policy
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore

DEADLINE_S = 5.0
INDEX_KEY, GATE_KEY = "gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"


def a_policy(version: int, gate_digest: str = "gate-a", **fields: Any) -> Policy:
    stamp = {"updated_at": datetime(2026, 1, 2, tzinfo=UTC), "updated_by": "test"}
    return Policy.model_validate({"version": version, "gate_digest": gate_digest, "threshold": 0.25} | stamp | fields)


class Medium:
    """One kind of store, and the way around it to plant what no store would write."""

    def __init__(
        self,
        open_store: Callable[[], PolicyStore],
        plant_many: Callable[[str, str, list[tuple[int, bytes]]], Awaitable[None]],
        count: Callable[[str, str], Awaitable[int]],
    ) -> None:
        self.open_store = open_store
        self.plant_many = plant_many
        self.count = count

    async def plant(self, name: str, gate_digest: str, version: int, document: bytes) -> None:
        await self.plant_many(name, gate_digest, [(version, document)])


def redis_medium(url: str) -> Medium:
    async def plant_many(name: str, gate_digest: str, entries: list[tuple[int, bytes]]) -> None:
        async with Redis.from_url(url) as redis, redis.pipeline() as pipeline:
            for version, document in entries:
                pipeline.zremrangebyscore(gate_key(name, gate_digest), version, version)
                pipeline.zadd(gate_key(name, gate_digest), {document: version})
            await pipeline.execute()

    async def count(name: str, gate_digest: str) -> int:
        async with Redis.from_url(url) as redis:
            return int(await redis.zcard(gate_key(name, gate_digest)))

    return Medium(lambda: RedisPolicyStore(url, 5.0), plant_many, count)


def gate_key(name: str, gate_digest: str) -> str:
    return f"gatekeeper:policy:{{{name}}}:{gate_digest}"


def sqlite_medium(path: Path) -> Medium:
    async def plant_many(name: str, gate_digest: str, entries: list[tuple[int, bytes]]) -> None:
        insert = "INSERT OR REPLACE INTO policy_versions (name, gate_digest, version, document) VALUES (?, ?, ?, ?)"
        with sqlite3.connect(path) as database:
            database.executemany(insert, [(name, gate_digest, *entry) for entry in entries])
        database.close()

    async def count(name: str, gate_digest: str) -> int:
        query = "SELECT count(*) FROM policy_versions WHERE name = ? AND gate_digest = ?"
        with closing(sqlite3.connect(path)) as database:
            return int(database.execute(query, (name, gate_digest)).fetchone()[0])

    return Medium(lambda: SqlitePolicyStore(path), plant_many, count)


def documents(versions: range) -> list[tuple[int, bytes]]:
    return [(version, a_policy(version).model_dump_json().encode()) for version in versions]


def garbage(versions: range) -> list[tuple[int, bytes]]:
    return [(version, b"garbage %d" % version) for version in versions]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "nreadable" in record.message]


async def answers(store: PolicyStore) -> Policy | None:
    try:
        return await store.latest("bundle", "gate-a")
    except PolicyStoreDown:
        return None
