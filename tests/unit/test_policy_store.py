"""Both policy stores: one contract, then what only a file or only a server can suffer. Real SQLite, real Redis."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from support.redis_server import RedisServer, find_redis_server, free_port

from service.errors import PolicyStoreDown, StartupError, VersionMismatch
from service.policy import store as policy_store
from service.policy.document import (
    MAX_DOCUMENT_BYTES,
    MAX_VERSION,
    Policy,
    PolicyPatch,
    PolicyReplacement,
    PolicyStore,
    highest_believable,
)
from service.policy.store import (
    CHANNEL,
    MESSAGES_AT_ONCE,
    PROBLEMS_TOLD,
    UNREADABLE_KEPT,
    VERSIONS_KEPT,
    RedisPolicyStore,
    SqlitePolicyStore,
    open_policy_store,
)
from service.settings import EdgeSettings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 5.0
PASSWORD = "hunter2-secret"


def a_policy(version: int, gate_digest: str = "gate-a", **fields: Any) -> Policy:
    stamp = {"updated_at": datetime(2026, 1, 2, tzinfo=UTC), "updated_by": "test"}
    return Policy.model_validate({"version": version, "gate_digest": gate_digest, "threshold": 0.5} | stamp | fields)


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


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer(None, "--repl-diskless-sync-delay", "0") as server:
        yield server


@pytest.fixture
async def redis_url(shared_redis: RedisServer) -> str:
    """Of a running server that is empty."""
    async with Redis.from_url(shared_redis.url) as redis:
        await redis.flushall()
        await redis.config_set("maxmemory", 0)
    return shared_redis.url


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


class TestDocuments:
    """What a policy, a patch and a replacement may say."""

    @pytest.mark.parametrize("threshold", [float("nan"), float("inf"), True, "0.5", None, 10**400])
    def test_a_threshold_is_a_finite_number(self, threshold: object) -> None:
        for document in (PolicyPatch, PolicyReplacement):
            with pytest.raises(ValidationError):
                document.model_validate({"threshold": threshold})

    def test_null_is_refused_with_advice(self) -> None:
        with pytest.raises(ValidationError, match="must not be null: leave the field out"):
            PolicyPatch.model_validate({"note": None})

    @pytest.mark.parametrize(
        "change",
        [
            {"remote_timeout_s": 0},
            {"remote_timeout_s": 600.1},
            {"deferral": True},
            {"on_remote_failure": "explode"},
            {"note": "x" * 501},
            {"gate_digest": ""},
            {"surprise": 1},
        ],
    )
    def test_a_field_out_of_its_bounds_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            PolicyPatch.model_validate(change)
        with pytest.raises(ValidationError):
            a_policy(1, **change)

    def test_a_patch_cannot_set_what_the_server_keeps(self) -> None:
        for field in ("version", "updated_at", "updated_by"):
            with pytest.raises(ValidationError):
                PolicyPatch.model_validate({field: 7})

    def test_a_policy_sent_back_as_it_was_read_is_a_valid_replacement(self) -> None:
        policy = a_policy(7, note="as read", deferral="off")
        changes = PolicyReplacement.model_validate_json(policy.model_dump_json()).changes()
        assert changes == policy.model_dump(exclude={"version", "updated_at", "updated_by"})

    def test_the_schema_of_a_patch_allows_no_null_and_promises_no_default(self) -> None:
        for field in PolicyPatch.model_json_schema()["properties"].values():
            assert "anyOf" not in field
            assert "default" not in field

    def test_moments_are_kept_in_utc(self) -> None:
        policy = a_policy(1, updated_at="2026-01-02T03:00:00+02:00")
        assert policy.model_dump(mode="json")["updated_at"] == "2026-01-02T01:00:00Z"
        with pytest.raises(ValidationError):
            a_policy(1, updated_at="2026-01-02T03:00:00")


def documents(versions: range) -> list[tuple[int, bytes]]:
    return [(version, a_policy(version).model_dump_json().encode()) for version in versions]


async def test_clearing_takes_no_policy_that_has_got_the_row_of_what_it_clears(tmp_path: Path) -> None:
    """SQLite gives the number of a row that is gone to the next one, which another process may have written."""
    one, other = (SqlitePolicyStore(tmp_path / "policy.db") for _ in range(2))
    await one.append("bundle", a_policy(1), expected_version=None)
    with closing(sqlite3.connect(tmp_path / "policy.db")) as database:
        rows = [("bundle", "gate-a", version, "garbage") for version in range(2, 300)]
        database.executemany("INSERT INTO policy_versions VALUES (?, ?, ?, ?)", rows)
        database.commit()
        found = database.execute("SELECT rowid, name, version FROM policy_versions WHERE version > 1").fetchall()
    assert await other.latest("bundle", "gate-a") == a_policy(1), "which clears most of them"
    await other.append("bundle", a_policy(301), expected_version=1)
    await one._run(lambda database: one._remove(database, found))
    assert await one.latest("bundle", "gate-a") == a_policy(301)
    for store in (one, other):
        await store.close()


def garbage(versions: range) -> list[tuple[int, bytes]]:
    return [(version, b"garbage %d" % version) for version in versions]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "nreadable" in record.message]


class TestContract:
    """What holds for every store."""

    async def test_a_stale_expectation_is_refused_and_leaves_nothing_behind(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        for expected, version in ((None, 2), (2, 3)):
            with pytest.raises(VersionMismatch, match="at version 1"):
                await store.append("bundle", a_policy(version), expected_version=expected)
        with pytest.raises(VersionMismatch):
            await store.append("other bundle", a_policy(2), expected_version=1)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(1)]

    async def test_a_version_is_never_given_twice_even_to_two_gates(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(4), expected_version=None)
        with pytest.raises(VersionMismatch, match="4"):
            await store.append("bundle", a_policy(4, "gate-b"), expected_version=None)
        with pytest.raises(VersionMismatch):
            await store.append("bundle", a_policy(3), expected_version=4)
        assert await store.next_version("bundle") == 5
        assert await store.next_version("other bundle") == 1

    @pytest.mark.parametrize(
        "garbage",
        [
            b"not json",
            b"",
            b"\xff\xfe\x00",
            b'{"version": 2}',
            b"[" * 5_000,
            a_policy(2).model_dump_json().replace("0.5", "NaN").encode(),
            a_policy(2).model_dump_json().replace("0.5", '"0.5"').encode(),
            a_policy(3).model_dump_json().encode(),
            a_policy(2, "gate-b").model_dump_json().encode(),
            a_policy(2).model_dump_json()[:-1].encode() + b', "from_the_future": 1}',
            a_policy(2).model_dump_json().replace("2026-01-02T00:00:00Z", "0001-01-01T00:00:00+14:00").encode(),
            a_policy(2).model_dump_json()[:-1].encode() + b', "a": 1' * MAX_DOCUMENT_BYTES + b"}",
        ],
    )
    async def test_an_unreadable_document_is_skipped_logged_once_and_written_past(
        self, store: PolicyStore, medium: Medium, garbage: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant("bundle", "gate-a", 2, garbage)
        for _ in range(3):
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await store.history("bundle", "gate-a", 10) == [a_policy(1)]
            assert await store.newest("bundle") == a_policy(1)
        assert await store.get("bundle", "gate-a", 2) is None
        assert [record.levelname for record in caplog.records if "Unreadable" in record.message] == ["WARNING"]
        assert 'from_the_future": 1' not in caplog.text

        version = await store.next_version("bundle")
        await store.append("bundle", a_policy(version), expected_version=1)
        assert await store.latest("bundle", "gate-a") == a_policy(version)

    @pytest.mark.parametrize(
        "version", [MAX_VERSION, MAX_VERSION - 1, 2**53 - 2**20, 2**52, 10**14, 2**62, 0, -1, -(2**60)]
    )
    @pytest.mark.parametrize("readable", [False, True])
    async def test_a_version_that_cannot_be_is_ignored_and_told_once(
        self, store: PolicyStore, medium: Medium, version: int, readable: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        text = a_policy(1).model_dump_json().replace('"version":1', f'"version":{version}') if readable else "garbage"
        await medium.plant("bundle", "gate-a", version, text.encode())
        for number in range(1, 4):
            assert await store.latest("bundle", "gate-a") == a_policy(number)
            assert await store.newest("bundle") == a_policy(number)
            assert await store.get("bundle", "gate-a", version) is None
            assert await store.next_version("bundle") == number + 1
            await store.append("bundle", a_policy(number + 1), expected_version=number)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(number) for number in (4, 3, 2, 1)]
        assert len(warnings(caplog)) == 1
        assert "versions that cannot be" in caplog.text

    async def test_above_the_highest_believable_version_there_is_soon_a_next_one(
        self, store: PolicyStore, medium: Medium
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        version = highest_believable()
        await medium.plant("bundle", "gate-a", version, a_policy(version).model_dump_json().encode())
        assert await store.latest("bundle", "gate-a") == a_policy(version)
        with pytest.raises(PolicyStoreDown, match="not due yet"):
            await store.append("bundle", a_policy(MAX_VERSION), expected_version=version)
        async with asyncio.timeout(DEADLINE_S):
            while await store.latest("bundle", "gate-a") == a_policy(version):
                with suppress(PolicyStoreDown):
                    await store.append("bundle", a_policy(version + 1), expected_version=version)
        assert await store.history("bundle", "gate-a", 2) == [a_policy(version + 1), a_policy(version)]

    async def test_unreadable_entries_push_no_policy_out(
        self, store: PolicyStore, medium: Medium, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", documents(range(2, VERSIONS_KEPT + 1)))
        await medium.plant_many("bundle", "gate-a", garbage(range(10_001, 13_001)))
        assert await store.latest("bundle", "gate-a") == a_policy(VERSIONS_KEPT)
        assert await medium.count("bundle", "gate-a") == VERSIONS_KEPT + UNREADABLE_KEPT, "nobody meets them again"
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == list(range(VERSIONS_KEPT, 0, -1))
        version = max(13_001, await store.next_version("bundle"))
        await store.append("bundle", a_policy(version), expected_version=VERSIONS_KEPT)
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == [version, *range(VERSIONS_KEPT, 1, -1)]
        assert await store.get("bundle", "gate-a", 2) == a_policy(2)
        assert 1 < len(warnings(caplog)) <= PROBLEMS_TOLD + 1

    async def test_unreadable_entries_below_the_newest_policy_are_not_read_twice(
        self, store: PolicyStore, medium: Medium
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", garbage(range(2, 3_002)))
        await medium.plant_many("bundle", "gate-a", documents(range(3_002, 3_003)))
        assert [policy.version for policy in await store.history("bundle", "gate-a", 10)] == [3_002, 1]
        assert await medium.count("bundle", "gate-a") == UNREADABLE_KEPT + 2

    async def test_a_store_full_of_garbage_is_cleared_by_one_read_after_the_other(
        self, store: PolicyStore, medium: Medium, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(policy_store, "UNREADABLE_MET", 1_000)
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", garbage(range(2, 3_002)))
        for _ in range(3):
            with pytest.raises(PolicyStoreDown, match="full of unreadable entries") as caught:
                await store.latest("bundle", "gate-a")
            assert caught.value.retry_after_s
        assert await store.latest("bundle", "gate-a") == a_policy(1)

    async def test_what_is_too_long_for_a_policy_is_removed_at_sight_and_the_rest_of_a_few_stays(
        self, store: PolicyStore, medium: Medium, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        long = [(version, b"%d" % version + b"x" * 2**20) for version in range(2, 12)]
        await medium.plant_many("bundle", "gate-a", long + garbage(range(12, 15)))
        for _ in range(3):
            assert await store.latest("bundle", "gate-a") == a_policy(1)
        assert await medium.count("bundle", "gate-a") == 1 + 3
        assert len(warnings(caplog)) == 13

    async def test_nothing_is_found_in_an_empty_store(self, store: PolicyStore) -> None:
        assert await store.latest("bundle", "gate-a") is None
        assert await store.newest("bundle") is None
        assert await store.history("bundle", "gate-a", 10) == []
        for version in (-1, 0, 1, MAX_VERSION, 10**30):
            assert await store.get("bundle", "gate-a", version) is None

    async def test_a_policy_comes_back_as_it_was_stored(self, store: PolicyStore) -> None:
        policy = a_policy(1, threshold=0.1 + 0.2, note='naïve \x00 \U0001f600 "quoted"', deferral="off")
        await store.append("bundle", policy, expected_version=None)
        assert await store.latest("bundle", "gate-a") == policy
        assert await store.get("bundle", "gate-a", 1) == policy

    async def test_history_is_newest_first_and_no_longer_than_asked(self, store: PolicyStore) -> None:
        for version in (1, 2, 5):
            await store.append("bundle", a_policy(version), expected_version={1: None, 2: 1, 5: 2}[version])
        assert [policy.version for policy in await store.history("bundle", "gate-a", 10)] == [5, 2, 1]
        assert [policy.version for policy in await store.history("bundle", "gate-a", 2)] == [5, 2]

    async def test_gates_of_one_name_are_apart_and_the_newest_of_them_is_known(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(1, "gate-a"), expected_version=None)
        await store.append("bundle", a_policy(2, "gate-b"), expected_version=None)
        await store.append("bundle", a_policy(3, "gate-a"), expected_version=1)
        assert await store.latest("bundle", "gate-b") == a_policy(2, "gate-b")
        assert await store.newest("bundle") == a_policy(3, "gate-a")

    @pytest.mark.parametrize("name", ["a:b", "a}:b", "{a}", "a*", "a b\n", "é", "'; DROP TABLE policy_versions; --"])
    async def test_names_and_digests_cannot_reach_into_each_other(self, store: PolicyStore, name: str) -> None:
        await store.append(name, a_policy(1, name), expected_version=None)
        await store.append("a", a_policy(1, "b"), expected_version=None)
        assert await store.history(name, name, 10) == [a_policy(1, name)]
        assert await store.history("a", "b", 10) == [a_policy(1, "b")]
        assert await store.newest(name) == a_policy(1, name)

    async def test_a_thousand_versions_are_kept_for_each_gate(self, store: PolicyStore, medium: Medium) -> None:
        await store.append("bundle", a_policy(1, "gate-b"), expected_version=None)
        await store.append("bundle", a_policy(2), expected_version=None)
        await medium.plant_many("bundle", "gate-a", documents(range(3, VERSIONS_KEPT + 2)))
        for version in range(VERSIONS_KEPT + 2, VERSIONS_KEPT + 5):
            await store.append("bundle", a_policy(version), expected_version=version - 1)
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == list(range(VERSIONS_KEPT + 4, 4, -1))
        assert await store.get("bundle", "gate-a", 4) is None
        assert await store.latest("bundle", "gate-b") == a_policy(1, "gate-b")

    async def test_of_many_simultaneous_writers_one_wins_each_version(self, medium: Medium) -> None:
        stores = [medium.open_store() for _ in range(4)]

        async def write(store: PolicyStore, writer: int) -> int:
            done = 0
            while done < 10:
                latest = await store.latest("bundle", "gate-a")
                version = await store.next_version("bundle")
                policy = a_policy(version, note=f"{writer}/{done}")
                try:
                    await store.append("bundle", policy, expected_version=latest and latest.version)  # type: ignore[arg-type]
                    done += 1
                except (VersionMismatch, PolicyStoreDown):  # lost, or locked out for too long: nothing was written
                    continue
            return done

        await asyncio.wait_for(asyncio.gather(*(write(store, n) for n, store in enumerate(stores))), 20)
        history = await stores[0].history("bundle", "gate-a", 100)
        assert [policy.version for policy in history] == list(range(40, 0, -1))
        assert {policy.note for policy in history} == {f"{w}/{n}" for w in range(4) for n in range(10)}
        for store in stores:
            await store.close()

    async def test_waiting_ends_soon_after_another_writer_and_else_at_the_timeout(self, medium: Medium) -> None:
        ours, theirs = medium.open_store(), medium.open_store()
        await ours.wait_for_change(DEADLINE_S)  # the first one may end at once
        await asyncio.wait_for(ours.wait_for_change(0.05), DEADLINE_S)
        waiting = asyncio.create_task(ours.wait_for_change(60))
        await theirs.append("bundle", a_policy(1), expected_version=None)
        await asyncio.wait_for(waiting, DEADLINE_S)
        await ours.close()
        await theirs.close()

    async def test_a_closed_store_is_down_and_can_be_closed_again(self, medium: Medium) -> None:
        store = medium.open_store()
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.close()
        await store.close()
        with pytest.raises(PolicyStoreDown, match="closed"):
            await store.latest("bundle", "gate-a")

    async def test_a_cancelled_write_is_whole_or_absent(self, medium: Medium, store: PolicyStore) -> None:
        version = 0
        for delay_s in (0, 0.0002, 0.0005, 0.001, 0.002, 0.005):
            latest = await store.latest("bundle", "gate-a")
            expected = None if latest is None else latest.version
            version = await store.next_version("bundle")
            writing = asyncio.create_task(store.append("bundle", a_policy(version), expected_version=expected))
            await asyncio.wait([writing], timeout=delay_s)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            # A second store, so that nothing of the cancelled call can be in the way.
            other = medium.open_store()
            found = await other.latest("bundle", "gate-a")
            assert (None if found is None else found.version) in (expected, version)
            await other.close()
        assert version


class TestOpening:
    """Which store the settings mean."""

    async def test_redis_url_chooses_redis_and_nothing_chooses_the_file(self, tmp_path: Path) -> None:
        file = open_policy_store(
            EdgeSettings.model_validate({"policy_path": tmp_path / "policy.db", "redis_url": None})
        )
        server = open_policy_store(EdgeSettings.model_validate({"redis_url": "redis://127.0.0.1:1/0"}))
        assert isinstance(file, SqlitePolicyStore)
        assert isinstance(server, RedisPolicyStore)
        assert not list(tmp_path.iterdir()), "opening touches no disk"
        await file.close()
        await server.close()

    @pytest.mark.parametrize("options", ["no_such_option=1", "db=x", "socket_timeout=soon", "protocol=3"])
    def test_options_that_the_client_does_not_know_stop_the_start(self, options: str) -> None:
        with pytest.raises(StartupError) as caught:
            RedisPolicyStore(f"redis://:{PASSWORD}@127.0.0.1:6379/0?{options}", 1.0)
        assert PASSWORD not in caught.value.detail

    async def test_options_cannot_change_how_replies_are_read(self, redis_url: str) -> None:
        store = RedisPolicyStore(f"{redis_url}?decode_responses=true&socket_timeout=1000", 1.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.append("bundle", a_policy(2), expected_version=1)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(2), a_policy(1)]
        await store.close()


class TestSqlite:
    """What only a file can suffer."""

    async def test_a_file_that_is_no_database_is_down_until_it_is_moved_away(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.db"
        path.write_bytes(b"this is not a database, and longer than a page header" * 100)
        store = SqlitePolicyStore(path)
        with pytest.raises(PolicyStoreDown, match=r"policy\.db.*not a database") as caught:
            await store.latest("bundle", "gate-a")
        assert caught.value.retry_after_s
        path.unlink()
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.close()

    async def test_a_path_that_cannot_be_made_is_down(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        for path in (tmp_path / "file" / "policy.db", tmp_path):
            store = SqlitePolicyStore(path)
            with pytest.raises(PolicyStoreDown):
                await store.append("bundle", a_policy(1), expected_version=None)
            await store.close()

    async def test_a_full_disk_refuses_the_write_and_keeps_what_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.db"
        store = SqlitePolicyStore(path)
        await store.append("bundle", a_policy(1), expected_version=None)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("policy.db-wal").stat().st_size, hard))
        try:
            with pytest.raises(PolicyStoreDown):
                await store.append("bundle", a_policy(2), expected_version=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert await store.latest("bundle", "gate-a") == a_policy(1)
        await store.append("bundle", a_policy(2), expected_version=1)
        await store.close()

    async def test_a_writer_that_hangs_makes_others_give_up_in_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.policy.store.BUSY_TIMEOUT_S", 0.05)
        store = SqlitePolicyStore(tmp_path / "policy.db")
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.close()
        store = SqlitePolicyStore(tmp_path / "policy.db")
        hanging = sqlite3.connect(tmp_path / "policy.db", isolation_level=None)
        hanging.execute("BEGIN IMMEDIATE")
        assert await store.latest("bundle", "gate-a") == a_policy(1)
        with pytest.raises(PolicyStoreDown, match="locked"):
            await store.append("bundle", a_policy(2), expected_version=1)
        hanging.close()
        await store.append("bundle", a_policy(2), expected_version=1)
        await store.close()

    async def test_a_file_deleted_under_the_store_is_noticed(self, tmp_path: Path) -> None:
        """Writes into a deleted file would be acknowledged and lost."""
        path = tmp_path / "policy.db"
        store = SqlitePolicyStore(path)
        await store.append("bundle", a_policy(1), expected_version=None)
        for file in tmp_path.iterdir():
            file.unlink()
        assert await store.latest("bundle", "gate-a") is None
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.close()
        reopened = SqlitePolicyStore(path)
        assert await reopened.latest("bundle", "gate-a") == a_policy(1)
        await reopened.close()

    @pytest.mark.parametrize("constraint", ["NOT NULL CHECK (typeof(version) = 'integer')", ""])
    async def test_values_of_any_type_in_our_table_are_no_policies(self, tmp_path: Path, constraint: str) -> None:
        """The second table is what somebody else may have made before us."""
        text = a_policy(2).model_dump_json()
        values: list[tuple[Any, Any, Any]] = [
            ("gate-a", 2**63 - 1, text),
            ("gate-a", 3, text.encode()),
            (b"gate-a", 4, text),
            ("gate-a", 5, 5),
            ("gate-a", 6, ""),
            ("gate-a", 7, "\ud800".encode("utf-8", "surrogatepass")),
        ]
        if not constraint:
            values += [("gate-a", version, text) for version in (None, "a", b"a", 2.5, float("inf"), "9" * 30)]
            values += [(None, 8, text), (7, 9, None), (2.5, 10, b"")]
        with closing(sqlite3.connect(tmp_path / "policy.db")) as database, database:
            columns = f"name, gate_digest, version {constraint}, document, UNIQUE (name, version)"
            database.execute(f"CREATE TABLE policy_versions ({columns})")
            insert = "INSERT INTO policy_versions (name, gate_digest, version, document) VALUES ('bundle', ?, ?, ?)"
            database.executemany(insert, values)
        store = SqlitePolicyStore(tmp_path / "policy.db")
        assert await store.history("bundle", "gate-a", 10) == []
        assert await store.newest("bundle") is None
        version = await store.next_version("bundle")
        await store.append("bundle", a_policy(version), expected_version=None)
        assert await store.latest("bundle", "gate-a") == a_policy(version) == await store.newest("bundle")
        assert await store.get("bundle", "gate-a", version) == a_policy(version)
        await store.close()

    async def test_policies_survive_a_restart(self, tmp_path: Path) -> None:
        for version in (1, 2):
            store = SqlitePolicyStore(tmp_path / "policy.db")
            await store.append("bundle", a_policy(version), expected_version=version - 1 or None)
            await store.close()
        store = SqlitePolicyStore(tmp_path / "policy.db")
        assert await store.history("bundle", "gate-a", 10) == [a_policy(2), a_policy(1)]
        await store.close()

    async def test_kill_in_the_middle_of_writing_loses_no_acknowledged_version(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.db"
        for _ in range(2):
            child = start_writer(path, "child", writes=1_000_000)
            assert child.stdout is not None
            acknowledged = [int(child.stdout.readline()) for _ in range(25)]
            child.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in child.stdout.read().split()]
            child.wait()
            child.stdout.close()
            store = SqlitePolicyStore(path)
            kept = {policy.version for policy in await store.history("bundle", "gate-a", VERSIONS_KEPT)}
            assert {version for version in acknowledged if version > max(kept) - VERSIONS_KEPT} <= kept
            assert max(kept) - acknowledged[-1] in (0, 1), "at most the one write in flight was not acknowledged"
            await store.close()

    async def test_two_processes_neither_lose_nor_share_a_version(self, tmp_path: Path) -> None:
        """From the first moment: both find no file."""
        path = tmp_path / "policy.db"
        children = [start_writer(path, name, writes=60) for name in ("one", "two")]
        acknowledged = []
        for child in children:
            output, _ = child.communicate(timeout=20)
            assert child.returncode == 0
            acknowledged += [int(line) for line in output.split()]
        store = SqlitePolicyStore(path)
        history = await store.history("bundle", "gate-a", VERSIONS_KEPT)
        assert sorted(acknowledged) == list(range(1, 121))
        assert [policy.version for policy in history] == list(range(120, 0, -1))
        assert [policy.note for policy in history].count("one") == 60
        await store.close()


def start_writer(path: Path, note: str, *, writes: int) -> subprocess.Popen[str]:
    """A process that appends versions and prints each one once it is acknowledged."""
    program = """
        import asyncio, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from service.errors import VersionMismatch
        from service.policy.document import Policy
        from service.policy.store import SqlitePolicyStore

        async def main(path, note, writes):
            store = SqlitePolicyStore(Path(path))
            while writes:
                latest = await store.latest("bundle", "gate-a")
                version = await store.next_version("bundle")
                policy = Policy(version=version, gate_digest="gate-a", threshold=0.5, note=note,
                                updated_at=datetime.now(UTC), updated_by="child")
                try:
                    await store.append("bundle", policy, expected_version=latest.version if latest else None)
                except VersionMismatch:
                    continue
                print(version, flush=True)
                writes -= 1
            await store.close()

        asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), note, str(writes)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


class TestRedis:
    """What only a server can suffer."""

    async def test_a_server_that_is_not_there_is_down_without_telling_the_password(self) -> None:
        port = free_port()
        store = RedisPolicyStore(f"redis://user:{PASSWORD}@127.0.0.1:{port}/0", 1.0)
        with pytest.raises(PolicyStoreDown, match=f"Redis at 127.0.0.1:{port}.*cannot be reached") as caught:
            await store.latest("bundle", "gate-a")
        assert PASSWORD not in str(caught.value)
        assert caught.value.retry_after_s
        await store.close()

    async def test_a_wrong_password_is_down_and_stays_secret(self) -> None:
        with RedisServer(None, "--requirepass", "another") as server:
            for credentials, reason in ((f":{PASSWORD}@", "refuses our user name or password"), ("", "refuses")):
                store = RedisPolicyStore(f"redis://{credentials}127.0.0.1:{server.port}/0", 1.0)
                with pytest.raises(PolicyStoreDown, match=reason) as caught:
                    await store.latest("bundle", "gate-a")
                assert PASSWORD not in str(caught.value)
                await store.close()

    async def test_a_server_that_hangs_is_down_in_time_and_heals(self) -> None:
        with RedisServer() as server:
            store = RedisPolicyStore(server.url, 0.2)
            await store.append("bundle", a_policy(1), expected_version=None)
            server.pause()
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(3):
                    with pytest.raises(PolicyStoreDown, match="in time"):
                        await store.latest("bundle", "gate-a")
                with pytest.raises(PolicyStoreDown, match="in time"):
                    await store.append("bundle", a_policy(2), expected_version=1)
            server.resume()
            assert await until(lambda: answers(store)) == a_policy(1)
            await store.close()

    async def test_a_killed_server_is_down_and_heals_when_it_is_back(self) -> None:
        with RedisServer() as server:
            store = RedisPolicyStore(server.url, 1.0)
            await store.append("bundle", a_policy(1), expected_version=None)
            await store.wait_for_change(DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await asyncio.sleep(0)
            server.stop()
            await asyncio.wait_for(waiting, DEADLINE_S)  # the loss of the server is a reason to look
            with pytest.raises(PolicyStoreDown):
                await store.append("bundle", a_policy(2), expected_version=1)
            server.start()
            assert await store.latest("bundle", "gate-a") is None
            await store.append("bundle", a_policy(2), expected_version=None)
            await store.close()

    async def test_a_read_only_replica_can_be_read_but_not_written(
        self, shared_redis: RedisServer, redis_url: str
    ) -> None:
        primary = RedisPolicyStore(redis_url, 1.0)
        await primary.append("bundle", a_policy(1), expected_version=None)
        await primary.close()
        with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as replica:
            store = RedisPolicyStore(replica.url, 1.0)
            assert await until(lambda: answers(store)) == a_policy(1)
            with pytest.raises(PolicyStoreDown, match="read-only replica"):
                await store.append("bundle", a_policy(2), expected_version=1)
            await store.close()

    async def test_a_server_out_of_memory_refuses_the_write(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.config_set("maxmemory", 1)
            with pytest.raises(PolicyStoreDown, match="out of memory"):
                await store.append("bundle", a_policy(1), expected_version=None)
            await redis.config_set("maxmemory", 0)
        assert await store.latest("bundle", "gate-a") is None
        await store.close()

    async def test_a_user_without_the_channel_is_told_so_and_still_reads(self, redis_url: str) -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.acl_setuser(
                "reader", True, passwords=["+pw"], keys="*", categories=["+@all"], reset_channels=True
            )
        store = RedisPolicyStore(redis_url.replace("//", "//reader:pw@"), 1.0)
        with pytest.raises(PolicyStoreDown, match="may not use these commands, keys or channels"):
            await store.append("bundle", a_policy(1), expected_version=None)
        await asyncio.wait_for(store.wait_for_change(0.05), DEADLINE_S)  # does not raise, does not spin
        assert await store.latest("bundle", "gate-a") is None
        await store.close()

    @pytest.mark.parametrize("key", ["gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"])
    async def test_a_key_of_another_type_is_logged_once_and_put_aside_by_the_next_write(
        self, redis_url: str, key: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.set(key, "not ours")
            for _ in range(3):
                assert await store.latest("bundle", "gate-a") is None
                assert await store.newest("bundle") is None
                assert await store.next_version("bundle") == 1
                assert await store.get("bundle", "gate-a", 1) is None
            assert len([record for record in caplog.records if "Unreadable" in record.message]) == 1
            await store.append("bundle", a_policy(1), expected_version=None)
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await redis.get(f"{key}:unreadable") == b"not ours"
        await store.close()

    async def test_absurd_scores_do_not_use_up_the_versions(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            for key in ("gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"):
                await redis.zadd(key, {b"\xff": float("inf"), b"1": 1e300, b"2": -3, b"3": 0.5})
            assert await store.next_version("bundle") == 1
            await store.append("bundle", a_policy(1), expected_version=None)
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await store.newest("bundle") == a_policy(1)
        await store.close()

    async def test_an_index_entry_that_cannot_be_is_ignored_and_told_once(
        self, redis_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd("gatekeeper:policy:{bundle}", {"garbage": MAX_VERSION})
        for version in (1, 2, 3):
            assert await store.next_version("bundle") == version
            await store.append("bundle", a_policy(version), expected_version=version - 1 or None)
            assert await store.newest("bundle") == a_policy(version)
        assert len(warnings(caplog)) == 1
        assert "versions that cannot be" in caplog.text
        await store.close()

    async def test_an_index_full_of_gates_that_are_not_there_hides_none_that_is(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 5.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd(
                "gatekeeper:policy:{bundle}", {f"garbage {number}": 1_000 + number for number in range(3_000)}
            )
            await redis.zadd("gatekeeper:policy:{bundle}", {b"x" * 2**20: 5_000, b"\xff": 5_001})
        assert await store.newest("bundle") == a_policy(1)
        assert await store.next_version("bundle") == 5_002
        await store.close()

    async def test_two_documents_of_one_version_are_one(self, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            twins = {a_policy(7, note=note).model_dump_json(): 7 for note in ("a", "b")}
            await redis.zadd(gate_key("bundle", "gate-a"), {a_policy(6).model_dump_json(): 6} | twins)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(7, note="b"), a_policy(6)]
        assert await store.get("bundle", "gate-a", 7) == a_policy(7, note="b")
        assert "there is another one of that number" in caplog.text
        await store.close()

    async def test_a_version_is_found_among_thousands_of_unreadable_ones_of_its_number(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 5.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.zadd(gate_key("bundle", "gate-a"), {f"~{number}": 1 for number in range(3_000)})
        assert await store.get("bundle", "gate-a", 1) == a_policy(1)
        await store.close()

    async def test_policies_among_garbage_are_read_where_nothing_can_be_removed(
        self, shared_redis: RedisServer, redis_url: str
    ) -> None:
        medium = redis_medium(redis_url)
        await medium.plant_many("bundle", "gate-a", documents(range(1, 4)) + garbage(range(4, 3_004)))
        with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as replica:
            store = RedisPolicyStore(replica.url, 5.0)
            assert await until(lambda: answers(store)) == a_policy(3)
            assert len(await store.history("bundle", "gate-a", 10)) == 3
            await store.close()

    async def test_messages_that_come_together_wake_once(self, redis_url: str) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        await store.wait_for_change(DEADLINE_S)  # subscribes
        async with Redis.from_url(redis_url) as redis:
            await publish(redis, MESSAGES_AT_ONCE - 1)
            await asyncio.wait_for(store.wait_for_change(60), DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
            await publish(redis, 1)
            await asyncio.wait_for(waiting, DEADLINE_S)
        await store.close()

    async def test_a_flood_of_messages_ends_the_subscription_until_the_next_round(
        self, redis_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = RedisPolicyStore(redis_url, 1.0)
        async with Redis.from_url(redis_url) as redis:
            for _ in range(3):
                await store.wait_for_change(DEADLINE_S)
                assert await redis.pubsub_numsub(CHANNEL) == [(CHANNEL.encode(), 1)]
                await publish(redis, 10 * MESSAGES_AT_ONCE)
                await store.wait_for_change(0.2)
                assert store._subscription is None
            await store.wait_for_change(DEADLINE_S)
            waiting = asyncio.create_task(store.wait_for_change(60))
            await publish(redis, 1)
            await asyncio.wait_for(waiting, DEADLINE_S)
        assert caplog.text.count("flood of messages") == 1
        await store.close()

    async def test_a_lost_index_is_made_again(self, redis_url: str) -> None:
        """As when the server evicts one key of two."""
        store = RedisPolicyStore(redis_url, 1.0)
        await store.append("bundle", a_policy(3), expected_version=None)
        async with Redis.from_url(redis_url) as redis:
            await redis.delete("gatekeeper:policy:{bundle}")
        with pytest.raises(VersionMismatch):
            await store.append("bundle", a_policy(3), expected_version=3)
        await store.append("bundle", a_policy(4), expected_version=3)
        assert await store.next_version("bundle") == 5
        await store.close()

    def test_the_server_is_found(self) -> None:
        assert find_redis_server().is_file()


async def publish(redis: Redis, messages: int) -> None:
    """All of them at the same moment."""
    async with redis.pipeline() as transaction:
        for _ in range(messages):
            transaction.publish(CHANNEL, "bundle")
        await transaction.execute()


async def answers(store: PolicyStore) -> Policy | None:
    try:
        return await store.latest("bundle", "gate-a")
    except PolicyStoreDown:
        return None


async def until(attempt: Callable[[], Awaitable[Policy | None]]) -> Policy:
    """The first thing that the attempt brings, within the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while (found := await attempt()) is None:
            await asyncio.sleep(0.01)
    return found
