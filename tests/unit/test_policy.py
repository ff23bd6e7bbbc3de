"""The live policy: what the gate reads while stores fail, heal, forget and are written to by others.

Real SQLite and real Redis; what a policy document may say is tested in test_policy_store.py.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from support.redis_server import RedisServer

from service.errors import GateDigestMismatch, InvalidRequest, NotFound, PolicyStoreDown, VersionMismatch
from service.policy.document import MAX_VERSION, Policy, PolicyPatch, PolicyReplacement, PolicyStore
from service.policy.live import LivePolicy
from service.policy.store import RedisPolicyStore, SqlitePolicyStore

DEADLINE_S = 5.0
INDEX_KEY, GATE_KEY = "gatekeeper:policy:{bundle}", "gatekeeper:policy:{bundle}:gate-a"


def a_policy(version: int, gate_digest: str = "gate-a", **fields: Any) -> Policy:
    stamp = {"updated_at": datetime(2026, 1, 2, tzinfo=UTC), "updated_by": "test"}
    return Policy.model_validate({"version": version, "gate_digest": gate_digest, "threshold": 0.25} | stamp | fields)


async def eventually(condition: Callable[[], object]) -> None:
    """Fails with TimeoutError unless the condition comes true within the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Replica(LivePolicy):
    """A live policy that remembers what it told its listeners and is patched in fewer words."""

    def __init__(self, store: PolicyStore, gate_digest: str, last_good_path: Path | None, poll_s: float) -> None:
        self.changes: list[Policy] = []
        self.health: list[bool] = []
        super().__init__(
            store,
            name="bundle",
            gate_digest=gate_digest,
            default_threshold=0.5,
            threshold_range=(0.0, 1.0),
            last_good_path=last_good_path,
            poll_s=poll_s,
            on_change=self.changes.append,
            on_store_up=self.health.append,
        )

    async def set(self, if_match: int | None = None, **fields: Any) -> Policy:
        return await self.patch(PolicyPatch.model_validate(fields), updated_by="operator", if_match=if_match)

    @property
    def store_up(self) -> bool:
        return self.health[-1]


class CountingStore(RedisPolicyStore):
    """A store that counts how often it was asked, and how often it was written to."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, timeout_s)
        self.asked = 0
        self.appended = 0

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        self.asked += 1
        return await super().latest(name, gate_digest)

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        self.appended += 1
        await super().append(name, policy, expected_version=expected_version)


@asynccontextmanager
async def replica(
    store: PolicyStore, *, gate_digest: str = "gate-a", last_good_path: Path | None = None, poll_s: float = 0.2
) -> AsyncIterator[Replica]:
    """A started replica; it closes its store when it is done."""
    live = Replica(store, gate_digest, last_good_path, poll_s)
    try:
        await live.start()
        yield live
    finally:
        await live.close()
        await store.close()


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer(None, "--repl-diskless-sync-delay", "0") as server:
        yield server


@pytest.fixture
async def redis(shared_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client of the shared server, which is empty."""
    async with Redis.from_url(shared_redis.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def redis_store(shared_redis: RedisServer, redis: Redis) -> Callable[[], PolicyStore]:
    return lambda: RedisPolicyStore(shared_redis.url, 1.0)


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PolicyStore]:
    """Opens one more store on the same medium."""
    if request.param == "redis":
        opener: Callable[[], PolicyStore] = request.getfixturevalue("redis_store")
        return opener
    return lambda: SqlitePolicyStore(tmp_path / "policy.db")


class TestStartWhileTheStoreIsDown:
    """The process is ready all the same."""

    async def test_without_a_last_good_copy_the_default_is_in_force_and_is_stored_later(self) -> None:
        with RedisServer() as server:
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0)) as live:
                assert (live.snapshot.threshold, live.snapshot.version) == (0.5, 1)
                assert live.changes == [live.snapshot]
                assert live.health == [False]
                server.start()
                await eventually(lambda: live.store_up)
                assert await live.history(10) == [live.snapshot]
                assert live.health == [False, True]

    async def test_the_last_good_copy_is_in_force_and_is_given_to_an_empty_store(self, tmp_path: Path) -> None:
        path = tmp_path / "made" / "last_good.json"
        with RedisServer() as server:
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                left = await live.set(threshold=0.8)
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                assert live.snapshot == left
                server.start()
                await eventually(lambda: live.store_up)
                assert await live.history(10) == [left]
                assert live.changes == [left]

    async def test_a_made_up_default_gives_way_to_any_policy_in_the_store(self) -> None:
        """Even to one of the same version: the server was there all the time, but would not talk to us."""
        with RedisServer(None, "--requirepass", "secret") as server:
            async with (
                replica(RedisPolicyStore(server.url, 1.0)) as live,
                Redis.from_url(server.url, password="secret") as redis,
            ):
                assert live.snapshot.threshold == 0.5
                stored = a_policy(1)
                await redis.zadd(GATE_KEY, {stored.model_dump_json(): 1})
                await redis.config_set("requirepass", "")
                await eventually(lambda: live.snapshot == stored)
                assert await live.history(10) == [stored]

    async def test_a_wrong_password_is_a_store_that_is_down_and_stays_out_of_the_logs(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with RedisServer(None, "--requirepass", "right") as server:
            store = RedisPolicyStore(server.url.replace("//", "//:wr0ng-secret@"), 1.0)
            async with replica(store) as live:
                assert live.health == [False]
                with pytest.raises(PolicyStoreDown) as caught:
                    await live.set(threshold=0.8)
        assert "wr0ng-secret" not in caplog.text + caught.value.detail
        assert "refuses our user name or password" in caplog.text

    async def test_a_database_that_is_none_is_a_store_that_is_down_until_it_is_moved_away(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.db"
        path.write_bytes(b"no database" * 1000)
        async with replica(SqlitePolicyStore(path)) as live:
            assert (live.snapshot.threshold, live.store_up) == (0.5, False)
            path.unlink()
            await eventually(lambda: live.store_up)
            assert await live.history(10) == [live.snapshot]

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b"\xff",
            b"null",
            b"[" * 60_000,
            b'{"a": 1' + b', "a": 1' * 1_000_000 + b"}",
            a_policy(MAX_VERSION).model_dump_json().encode(),
            a_policy(9).model_dump_json().replace("2026-01-02T00:00:00Z", "0001-01-01T00:00:00+14:00").encode(),
            a_policy(9, "gate-b").model_dump_json().encode(),
        ],
        ids=["json", "utf-8", "null", "deep", "long", "version", "moment", "another gate's"],
    )
    async def test_a_last_good_copy_that_is_unreadable_or_anothers_is_left_alone(
        self, content: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "last_good.json"
        path.write_bytes(content)
        with RedisServer() as server:
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                assert live.snapshot.threshold == 0.5
        assert path.read_bytes() == content, "a made-up default is not worth keeping"

    async def test_a_last_good_copy_that_cannot_be_written_is_logged_and_no_more(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        path = tmp_path / "file" / "last_good.json"
        async with replica(SqlitePolicyStore(tmp_path / "policy.db"), last_good_path=path) as live:
            assert (await live.set(threshold=0.8)).threshold == 0.8
        assert "Cannot keep the last good policy" in caplog.text


class TestStoreFailsLater:
    """The last known policy goes on, and nothing is lost."""

    async def test_a_killed_redis_stops_only_writes_and_an_empty_one_gets_the_policy_back(self) -> None:
        with RedisServer() as server:
            async with (
                replica(RedisPolicyStore(server.url, 1.0)) as one,
                replica(RedisPolicyStore(server.url, 1.0)) as two,
            ):
                await one.set(threshold=0.7)
                policy = await two.set(deferral="off")
                await eventually(lambda: one.snapshot == policy)
                server.stop()
                await eventually(lambda: not one.store_up and not two.store_up)
                with pytest.raises(PolicyStoreDown) as caught:
                    await one.set(threshold=0.9)
                assert caught.value.retry_after_s
                assert one.snapshot == two.snapshot == policy

                server.start()
                await eventually(lambda: one.store_up and two.store_up)
                assert await one.history(10) == [policy]
                assert one.snapshot == two.snapshot == policy
                after = await two.set(threshold=0.9)
                assert after.version > policy.version
                await eventually(lambda: one.snapshot == after)

    async def test_a_hung_redis_costs_writers_its_timeout_and_readers_nothing(self) -> None:
        with RedisServer() as server:
            async with replica(RedisPolicyStore(server.url, 0.2)) as live:
                before = live.snapshot
                server.pause()
                async with asyncio.timeout(DEADLINE_S):
                    with pytest.raises(PolicyStoreDown):
                        await live.set(threshold=0.9)
                await eventually(lambda: not live.store_up)
                assert live.snapshot == before
                server.resume()
                await eventually(lambda: live.store_up)
                # The write that was given up may or may not have been made; either way both sides agree.
                assert (await live.history(1))[0] == live.snapshot

    async def test_writers_who_wait_behind_a_hung_redis_fail_with_the_first(self) -> None:
        with RedisServer() as server:
            store = CountingStore(server.url, 0.2)
            async with replica(store, poll_s=60) as live:
                server.pause()
                asked = store.asked
                results = await asyncio.gather(
                    *(live.set(threshold=n / 100) for n in range(20)), return_exceptions=True
                )
                assert all(isinstance(result, PolicyStoreDown) and result.retry_after_s for result in results)
                assert store.asked - asked <= 2, "the first writer, and the follower where its round came in between"
                server.resume()

    async def test_writers_do_not_wait_for_a_redis_that_is_known_to_be_down(self) -> None:
        with RedisServer() as server:
            store = CountingStore(server.url, 0.2)
            async with replica(store) as live:
                server.pause()
                await eventually(lambda: not live.store_up)
                asked = store.asked
                writes = [live.set(threshold=0.8), live.rollback(1, updated_by="operator")]
                writes.append(live.replace(PolicyReplacement(threshold=0.8), updated_by="operator", if_match=1))
                for write in writes:
                    with pytest.raises(PolicyStoreDown, match="in time") as caught:
                        await write
                    assert caught.value.retry_after_s
                assert store.asked == asked, "no writer asked, and none let the follower have a turn"
                server.resume()
                await eventually(lambda: live.store_up)
                assert (await live.set(threshold=0.8)).threshold == 0.8

    async def test_a_store_that_fell_back_is_given_the_newer_policy(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        """As after a failover to a replica that had not seen the last write."""
        async with replica(redis_store()) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                transaction.zadd(INDEX_KEY, {"gate-a": policy.version - 1})
                await transaction.execute()
            await eventually_stored(redis, policy)
            assert live.snapshot == policy

    async def test_an_unreadable_policy_is_logged_once_and_replaced_by_the_one_in_force(
        self, redis_store: Callable[[], PolicyStore], redis: Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replica(redis_store(), poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                transaction.zadd(GATE_KEY, {"garbage": policy.version})
                await transaction.execute()
            await eventually(lambda: live.snapshot.version > policy.version)
            assert live.snapshot.model_copy(update={"version": policy.version}) == policy
            assert (await live.history(1))[0] == live.snapshot
            assert [change.threshold for change in live.changes[live.changes.index(policy) :]] == [0.8, 0.8]
            await live.set(threshold=0.7)
        assert caplog.text.count("Unreadable") == 1

    @pytest.mark.parametrize("key", [INDEX_KEY, GATE_KEY])
    async def test_a_key_of_the_wrong_type_is_survived_and_written_past(
        self, redis_store: Callable[[], PolicyStore], redis: Redis, key: str
    ) -> None:
        async with replica(redis_store(), poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.delete(key)
                transaction.lpush(key, "not", "ours")
                await transaction.execute()
            after = await live.set(deferral="off")
            assert (after.threshold, after.deferral) == (0.8, "off")
            assert after.version > policy.version
            assert (await live.history(1))[0] == after

    async def test_on_a_read_only_replica_policies_are_read_but_not_written(
        self, redis_store: Callable[[], PolicyStore], shared_redis: RedisServer
    ) -> None:
        async with replica(redis_store()) as writer:
            await writer.set(threshold=0.8)
            with RedisServer(None, "--replicaof", "127.0.0.1", str(shared_redis.port)) as copy:
                async with replica(RedisPolicyStore(copy.url, 1.0)) as reader:
                    await eventually(lambda: reader.snapshot == writer.snapshot)
                    with pytest.raises(PolicyStoreDown, match="read-only"):
                        await reader.set(threshold=0.9)
                    policy = await writer.set(threshold=0.7)
                    await eventually(lambda: reader.snapshot == policy)

    async def test_two_gates_of_one_name_never_share_a_number_after_a_wipe(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        async with replica(redis_store()) as one, replica(redis_store(), gate_digest="gate-b") as two:
            await two.set(threshold=0.7)
            await redis.flushall()
            await eventually_stored(redis, one.snapshot, two.snapshot)
            first = await one.set(threshold=0.6)
            second = await two.set(threshold=0.8)
            assert second.version > first.version
            assert first.version > 3

    async def test_a_listener_that_raises_does_not_end_the_following(
        self, open_store: Callable[[], PolicyStore], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            two._on_change = lambda policy: [][policy.version]
            await one.set(threshold=0.7)
            await eventually(lambda: "Following the policy store failed" in caplog.text)
            two._on_change = two.changes.append
            policy = await one.set(threshold=0.8)
            await eventually(lambda: two.changes[-1] == policy)


class TestGarbage:
    """Whatever a store contains, the policy goes on, can be changed and is followed."""

    @pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
    async def test_an_index_entry_of_the_highest_version_starts_no_loop(
        self, lost: bool, shared_redis: RedisServer, redis: Redis
    ) -> None:
        """What was written back under a number that nobody reads was written back again at once, and for ever."""
        store = CountingStore(shared_redis.url, 1.0)
        async with replica(store, poll_s=0.02) as live:
            policy = await live.set(threshold=0.8)
            async with redis.pipeline() as transaction:
                transaction.zadd(INDEX_KEY, {"garbage": MAX_VERSION})
                if lost:
                    transaction.zremrangebyscore(GATE_KEY, policy.version, policy.version)
                await transaction.execute()
            asked, appended = store.asked, store.appended
            await eventually(lambda: store.asked > asked + 20)
            assert store.appended - appended <= lost
            assert (await live.history(1))[0] == live.snapshot
            after = await live.set(threshold=0.7)
            assert policy.version < after.version <= policy.version + 2

    async def test_a_start_among_garbage_of_the_highest_version(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        await redis.zadd(INDEX_KEY, {"garbage": MAX_VERSION})
        await redis.zadd(GATE_KEY, {"garbage": MAX_VERSION, a_policy(MAX_VERSION).model_dump_json(): MAX_VERSION})
        async with replica(redis_store()) as live:
            assert (live.snapshot.version, live.health) == (1, [True])
            assert (await live.set(threshold=0.8)).version == 2

    async def test_thousands_of_unreadable_policies_start_no_loop_and_cost_no_history(
        self, shared_redis: RedisServer, redis: Redis
    ) -> None:
        """Trimming counted them, and so removed what had just been written."""
        store = CountingStore(shared_redis.url, 5.0)
        async with replica(store, poll_s=0.02) as live:
            for number in range(10):
                await live.set(threshold=number / 10)
            await redis.zadd(GATE_KEY, {f"garbage {number}": 1_000 + number for number in range(3_000)})
            policy = await live.set(threshold=0.95)
            asked, appended = store.asked, store.appended
            await eventually(lambda: store.asked > asked + 20)
            assert store.appended == appended
            assert live.snapshot == policy
            assert len(await live.history(100)) == 12
            assert (await live.rollback(3, updated_by="operator")).threshold == 0.1

    @pytest.mark.parametrize(
        "document", ["garbage", a_policy(MAX_VERSION).model_dump_json()], ids=["garbage", "policy"]
    )
    async def test_every_call_goes_past_a_version_that_cannot_be(
        self, open_store: Callable[[], PolicyStore], document: str
    ) -> None:
        async with replica(open_store(), poll_s=0.02) as live:
            store = live._store
            if isinstance(store, RedisPolicyStore):
                await store._redis.zadd(GATE_KEY, {document: MAX_VERSION})
                await store._redis.zadd(INDEX_KEY, {"gate-a": MAX_VERSION})
            else:
                assert isinstance(store, SqlitePolicyStore)
                with closing(sqlite3.connect(store._path)) as database, database:
                    values = ("bundle", "gate-a", MAX_VERSION, document)
                    database.execute("INSERT INTO policy_versions VALUES (?, ?, ?, ?)", values)
            assert (await live.set(threshold=0.8)).version == 2
            replacement = PolicyReplacement(threshold=0.7)
            assert (await live.replace(replacement, updated_by="operator", if_match=2)).version == 3
            assert (await live.rollback(2, updated_by="operator")).threshold == 0.8
            assert live.proposed(PolicyPatch(threshold=0.6)).threshold == 0.6
            assert [policy.version for policy in await live.history(10)] == [4, 3, 2, 1]
            with pytest.raises(NotFound):
                await live.rollback(MAX_VERSION, updated_by="operator")


async def eventually_stored(redis: Redis, *policies: Policy) -> None:
    """Until each policy, whatever its number has become, is the newest that Redis holds for its gate."""

    async def stored(policy: Policy) -> bool:
        found = await redis.zrevrange(f"{INDEX_KEY}:{policy.gate_digest}", 0, 0)
        return bool(found) and Policy.model_validate_json(found[0]).updated_at == policy.updated_at  # type: ignore[arg-type]

    async with asyncio.timeout(DEADLINE_S):
        for policy in policies:
            while not await stored(policy):
                await asyncio.sleep(0.005)


class TestRefusedWrites:
    """A refused write changes nothing."""

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"threshold": 1.5}, InvalidRequest, "between 0 and 1"),
            ({"threshold": -1e-9}, InvalidRequest, "between 0 and 1"),
            ({"gate_digest": "gate-b"}, GateDigestMismatch, "gate-a"),
            ({"threshold": 0.8, "if_match": 7}, VersionMismatch, "at version 1, not 7"),
            ({"if_match": 7}, VersionMismatch, "at version 1, not 7"),
        ],
    )
    async def test_a_refusal_says_why(
        self, open_store: Callable[[], PolicyStore], change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        async with replica(open_store()) as live:
            before = live.snapshot
            with pytest.raises(error, match=words):
                await live.set(**change)
            if "if_match" not in change:
                replacement = PolicyReplacement.model_validate({"threshold": 0.5} | change)
                with pytest.raises(error, match=words):
                    await live.replace(replacement, updated_by="operator", if_match=1)
            assert live.snapshot == before
            assert await live.history(10) == [before]

    @pytest.mark.parametrize("version", [-1, 0, 2, 10**30])
    async def test_rollback_to_a_version_that_is_not_kept_is_not_found(
        self, open_store: Callable[[], PolicyStore], version: int
    ) -> None:
        async with replica(open_store()) as live:
            with pytest.raises(NotFound, match=str(version)):
                await live.rollback(version, updated_by="operator")

    async def test_if_match_compares_with_the_store_not_with_a_stale_snapshot(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store(), poll_s=60) as one, replica(open_store(), poll_s=60) as two:
            stale = two.snapshot.version
            policy = await one.set(threshold=0.7)
            with pytest.raises(VersionMismatch, match=f"at version {policy.version}"):
                await two.set(if_match=stale, threshold=0.8)
            assert two.snapshot == policy, "the refused writer has learnt of the other's change"


class TestWrites:
    """PATCH, PUT, rollback and history."""

    async def test_a_patch_changes_its_fields_only_and_is_in_force_at_once(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as live:
            first = await live.set(threshold=0.8, note="incident 12", remote_timeout_s=3)
            second = await live.set(deferral="off", gate_digest="gate-a")
            assert live.snapshot == second == live.changes[-1]
            assert second.version == first.version + 1
            assert (second.threshold, second.remote_timeout_s) == (0.8, 3.0)
            assert second.updated_by == "operator"
            assert second.updated_at >= first.updated_at

    async def test_a_note_belongs_to_the_change_that_it_came_with(self, open_store: Callable[[], PolicyStore]) -> None:
        """What a rollback or somebody else wrote never stands beside another threshold."""
        async with replica(open_store()) as live:
            first = await live.set(threshold=0.8, note="incident 12")
            assert live.proposed(PolicyPatch(threshold=0.4)).note == ""
            silent = await live.set(threshold=0.6)
            back = await live.rollback(first.version, updated_by="operator")
            after = await live.set(deferral="off")
            again = await live.replace(PolicyReplacement(threshold=0.1), updated_by="operator", if_match=after.version)
            assert (silent.note, after.note, again.note) == ("", "", "")
            assert back.note == f"rollback to version {first.version}: incident 12"
            notes = [policy.note for policy in await live.history(6)]
            assert notes == ["", "", back.note, "", "incident 12", "default of the bundle"]

    async def test_documents_of_before_are_read_as_they_are(self, open_store: Callable[[], PolicyStore]) -> None:
        """A note that an earlier release carried along stays in the history; the next change has its own."""
        store = open_store()
        for version, threshold in ((1, 0.8), (2, 0.6)):
            carried = a_policy(version, threshold=threshold, note="rollback to version 1")
            await store.append("bundle", carried, expected_version=version - 1 or None)
        async with replica(store) as live:
            assert live.snapshot.note == "rollback to version 1"
            await live.set(threshold=0.7)
            notes = [policy.note for policy in await live.history(3)]
            assert notes == ["", "rollback to version 1", "rollback to version 1"]

    async def test_an_empty_patch_makes_no_version(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            assert await live.set(if_match=1) == await live.set(gate_digest="gate-a") == live.snapshot
            assert await live.history(10) == [live.snapshot]

    async def test_a_replacement_resets_what_it_leaves_out(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            before = await live.set(deferral="off", note="tonight only", remote_timeout_s=3)
            replacement = PolicyReplacement(threshold=0.8)
            after = await live.replace(replacement, updated_by="operator", if_match=before.version)
            assert (after.threshold, after.deferral, after.note, after.remote_timeout_s) == (0.8, "on", "", 10.0)
            assert after.gate_digest == "gate-a"

    async def test_a_rollback_is_a_new_version_with_the_old_content(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as live:
            old = await live.set(threshold=0.8, deferral="off", note="n" * 500)
            await live.set(threshold=0.3, deferral="on", note="")
            back = await live.rollback(old.version, updated_by="operator")
            assert (back.threshold, back.deferral, back.version) == (0.8, "off", old.version + 2)
            assert back.note.startswith(f"rollback to version {old.version}: nnn")
            plain = await live.rollback(old.version + 1, updated_by="x" * 1000)
            assert (plain.note, plain.updated_by) == (f"rollback to version {old.version + 1}", "x" * 100)
            assert [policy.version for policy in await live.history(3)] == [5, 4, 3]

    async def test_simultaneous_patches_all_count(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policies = await asyncio.gather(*(live.set(threshold=n / 100) for n in range(30)))
            assert sorted(policy.version for policy in policies) == list(range(2, 32))
            assert live.snapshot == max(policies, key=lambda policy: policy.version)
            assert len(await live.history(100)) == 31

    async def test_of_simultaneous_conditional_patches_one_succeeds(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            patches = [live.set(if_match=1, threshold=0.7) for live in (one, two) for _ in range(5)]
            results = await asyncio.gather(*patches, return_exceptions=True)
            assert sum(isinstance(result, Policy) for result in results) == 1
            assert sum(isinstance(result, VersionMismatch) for result in results) == 9

    async def test_patches_on_two_replicas_at_once_build_on_each_other(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            thresholds = [one.set(threshold=n / 100) for n in range(10)]
            timeouts = [two.set(remote_timeout_s=n + 1.0) for n in range(10)]
            policies = await asyncio.gather(*thresholds, *timeouts)
            assert len({policy.version for policy in policies}) == 20
            last = max(policies, key=lambda policy: policy.version)
            assert (last.threshold, last.remote_timeout_s) == (0.09, 10.0)
            await eventually(lambda: one.snapshot == two.snapshot == last)

    @pytest.mark.parametrize("delay_s", [0.0, 0.0005, 0.001, 0.002, 0.004])
    async def test_after_a_cancelled_write_snapshot_and_store_agree(
        self, open_store: Callable[[], PolicyStore], delay_s: float
    ) -> None:
        async with replica(open_store()) as live:
            writing = asyncio.create_task(live.set(threshold=0.8))
            await asyncio.wait([writing], timeout=delay_s)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            after = await live.set(note="the next one")
            history = await live.history(10)
            assert history[0] == after == live.snapshot
            assert after.threshold == history[1].threshold, "nothing half-made in between"

    async def test_a_write_whose_answer_was_lost_is_followed(self, open_store: Callable[[], PolicyStore]) -> None:
        """The store has committed, but the writer was cancelled before it could take the policy up."""
        async with replica(open_store()) as live:
            policy = a_policy(2)
            await live._store.append("bundle", policy, expected_version=1)
            await eventually(lambda: live.snapshot == policy)


class TestFollowing:
    """Replicas on one store, and gates that come and go."""

    async def test_replicas_see_each_others_changes(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as one, replica(open_store()) as two:
            assert one.snapshot == two.snapshot
            for writer, reader, threshold in ((one, two, 0.7), (two, one, 0.8)):
                policy = await writer.set(threshold=threshold)
                await eventually(lambda reader=reader, policy=policy: reader.snapshot == policy)  # type: ignore[misc]
                assert reader.changes[-1] == policy
            assert one.health == two.health == [True]

    async def test_a_message_wakes_a_replica_long_before_its_poll(
        self, redis_store: Callable[[], PolicyStore], redis: Redis
    ) -> None:
        async with replica(redis_store(), poll_s=60) as one, replica(redis_store(), poll_s=60) as two:
            policy = await one.set(threshold=0.7)
            await eventually(lambda: two.snapshot == policy)

    async def test_a_lost_message_costs_one_poll(self, redis_store: Callable[[], PolicyStore], redis: Redis) -> None:
        async with replica(redis_store(), poll_s=0.1) as live:
            policy = a_policy(2)
            await redis.zadd(GATE_KEY, {policy.model_dump_json(): 2})
            await eventually(lambda: live.snapshot == policy)

    async def test_replicas_that_start_at_once_agree_on_one_first_version(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        lives = [Replica(open_store(), "gate-a", None, 0.2) for _ in range(5)]
        await asyncio.gather(*(live.start() for live in lives))
        assert len({live.snapshot.model_dump_json() for live in lives}) == 1
        assert await lives[0].history(10) == [lives[0].snapshot]
        for live in lives:
            await live.close()
            await live._store.close()

    async def test_a_restart_finds_the_policy_again(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policy = await live.set(threshold=0.8)
        async with replica(open_store()) as live:
            assert live.snapshot == policy
            assert live.changes[-1] == policy

    async def test_a_new_gate_starts_from_its_default_threshold_and_the_newest_other_fields(
        self, open_store: Callable[[], PolicyStore]
    ) -> None:
        async with replica(open_store()) as old:
            last = await old.set(threshold=0.8, deferral="off", on_remote_failure="fail", remote_timeout_s=3)
        async with replica(open_store(), gate_digest="gate-b") as new:
            assert (new.snapshot.threshold, new.snapshot.gate_digest) == (0.5, "gate-b")
            assert (new.snapshot.deferral, new.snapshot.on_remote_failure) == ("off", "fail")
            assert (new.snapshot.remote_timeout_s, new.snapshot.version) == (3.0, last.version + 1)
            assert f"version {last.version}" in new.snapshot.note
            assert await new.history(10) == [new.snapshot]
        async with replica(open_store()) as old:
            assert old.snapshot == last, "the old gate's policy is still its own"

    async def test_following_ends_at_whatever_moment_it_is_closed(self, open_store: Callable[[], PolicyStore]) -> None:
        """A cancellation may be swallowed on its way through a client library."""
        for steps in range(40):
            async with asyncio.timeout(DEADLINE_S), replica(open_store(), poll_s=0.001) as live:
                for _ in range(steps):
                    await asyncio.sleep(0)
            assert live._follower is not None
            assert live._follower.done()

    async def test_the_snapshot_outlives_the_close(self, open_store: Callable[[], PolicyStore]) -> None:
        async with replica(open_store()) as live:
            policy = await live.set(threshold=0.8)
        assert live.snapshot == policy
        with pytest.raises(PolicyStoreDown):
            await live.set(threshold=0.9)
