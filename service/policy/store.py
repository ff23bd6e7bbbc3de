"""Where policies are kept: a SQLite file by default, Redis with REDIS_URL. sqlite3 and redis errors end here.

SQLite has one table. Redis has, for each bundle name, a sorted set `gatekeeper:policy:{name}` of gate digests by
their highest version, and for each gate `gatekeeper:policy:{name}:digest`, a sorted set of documents by version;
the braces put the keys of one name into one slot of a cluster.
"""

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from service.errors import PolicyStoreDown, VersionMismatch
from service.policy.document import MAX_DOCUMENT_BYTES, Policy, PolicyStore, highest_believable, read_document
from service.redis_connection import label_of, open_pool, reason_of
from service.settings import EdgeSettings

logger = logging.getLogger(__name__)

VERSIONS_KEPT = 1_000
UNREADABLE_KEPT = 100  # of those a read meets; they are read every time
UNREADABLE_MET = 10_000  # by one read, which then gives up
PROBLEMS_TOLD = 20
MEMBERS_AT_ONCE = 64
GATES_TRIED = 10_000
MAX_DIGEST_BYTES = 800
RETRY_AFTER_S = 2
BUSY_TIMEOUT_S = 2.0
CHANGE_CHECK_S = 0.1
MESSAGES_AT_ONCE = 100  # more of them within CHANGE_CHECK_S are no changes
CHANNEL = "gatekeeper:policy:changes"

T = TypeVar("T")

_TABLE = (
    "CREATE TABLE IF NOT EXISTS policy_versions (name TEXT NOT NULL, gate_digest TEXT NOT NULL, version INTEGER"
    " NOT NULL CHECK (typeof(version) = 'integer'), document TEXT NOT NULL, PRIMARY KEY (name, version))"
)
_INDEX = "CREATE INDEX IF NOT EXISTS policy_versions_by_gate ON policy_versions (name, gate_digest, version)"
# As bytes, whatever the type, and no more of them than show that it is too long.
_OF_NAME = (
    "SELECT rowid, CAST(ifnull(gate_digest, '') AS BLOB), version, ifnull(substr(CAST(document AS BLOB), 1, ?3), '')"
    " FROM policy_versions WHERE name = ?1 AND version BETWEEN 1 AND ?2 AND typeof(version) = 'integer' "
)
_OF_GATE = _OF_NAME + "AND gate_digest = ?4 "
_NEWEST_FIRST = "ORDER BY version DESC"
_HIGHEST = (
    "SELECT version FROM policy_versions WHERE name = ? AND version BETWEEN 1 AND ? AND typeof(version) = 'integer'"
    " ORDER BY version DESC LIMIT 1"
)
_IMPOSSIBLE = (
    "SELECT EXISTS (SELECT 1 FROM policy_versions WHERE name = ?1 AND version < 1)"
    " OR EXISTS (SELECT 1 FROM policy_versions WHERE name = ?1 AND version > ?2)"
)
_INSERT = "INSERT INTO policy_versions (name, gate_digest, version, document) VALUES (?, ?, ?, ?)"
_TRIM = "DELETE FROM policy_versions WHERE name = ? AND gate_digest = ? AND version < ?"


def open_policy_store(settings: EdgeSettings) -> PolicyStore:
    """The store that the settings name. Touches no disk or network yet; a bad REDIS_URL raises StartupError."""
    if settings.redis_url is None:
        return SqlitePolicyStore(settings.policy_path)
    return RedisPolicyStore(str(settings.redis_url), settings.redis_timeout_s)


class _Documents:
    """Reads stored documents. One that is unreadable is logged once, however often it is met."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._known: set[bytes] = set()
        self._told = 0

    def read(self, document: bytes, gate_digest: bytes, version: float) -> Policy | None:
        """The policy, or None if the document is not one or is not what it is stored as."""
        whose = f"version {version:.17g} of gate {gate_digest[:200]!r}"
        if len(document) > MAX_DOCUMENT_BYTES:
            self.report(whose.encode(), f"{whose}: it has more than {MAX_DOCUMENT_BYTES:,} bytes")
            return None
        fingerprint = hashlib.sha256(document + whose.encode()).digest()
        if fingerprint in self._known:
            return None
        try:
            policy = read_document(document)
        except ValueError as error:
            problem = str(error)
        else:
            if (policy.gate_digest.encode(), policy.version) == (gate_digest, version):
                return policy
            problem = "it names another gate digest or version"
        self._tell(fingerprint, f"{whose}: {problem}")
        return None

    def report(self, content: bytes, problem: str) -> None:
        """Logs the problem, unless it was reported for this content before, but not the content: it is untrusted."""
        self._tell(hashlib.sha256(content).digest(), problem)

    def _tell(self, fingerprint: bytes, problem: str) -> None:
        if fingerprint in self._known:
            return
        if len(self._known) >= 2 * VERSIONS_KEPT:
            self._known.clear()
        self._known.add(fingerprint)
        self._told += 1
        if self._told <= PROBLEMS_TOLD:
            logger.warning("Unreadable policy in %s, %s.", self._label, problem)
        elif self._told == PROBLEMS_TOLD + 1:
            logger.warning("More unreadable policies in %s; no further ones are told.", self._label)


class _Reading:
    """One read, newest first: the policies found, and which of the unreadable entries met are to be removed."""

    def __init__(self, documents: _Documents, label: str, limit: int) -> None:
        self.found: list[Policy] = []
        self._documents = documents
        self._label = label
        self._limit = limit
        self._read: set[bytes] = set()
        self._unreadable = 0

    @property
    def complete(self) -> bool:
        return len(self.found) >= self._limit

    def meet(self, document: bytes, gate_digest: bytes, version: float) -> bool:
        """Whether the entry may stay."""
        if document in self._read:
            return True  # once more, as somebody writes while we read
        policy = self._documents.read(document, gate_digest, version)
        if policy is not None:
            if not self.found or policy.version < self.found[-1].version:
                self.found.append(policy)
                self._read.add(document)
                return True
            self._documents.report(document, f"version {policy.version}: there is another one of that number")
        self._unreadable += 1
        if self._unreadable == UNREADABLE_KEPT + 1:
            self._documents.report(b"too many", f"more than {UNREADABLE_KEPT} of them: all but the newest are removed")
        return self._unreadable <= UNREADABLE_KEPT and len(document) <= MAX_DOCUMENT_BYTES

    def require_readable(self) -> None:
        """Raises PolicyStoreDown after so many unreadable entries that going on would hold up everything else."""
        if self._unreadable >= UNREADABLE_MET:
            detail = f"The policy store ({self._label}) is full of unreadable entries, which are being removed."
            raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S)


def _require(policy: Policy, *, latest: Policy | None, expected_version: int | None, highest: int) -> None:
    """The compare of compare-and-set. Raises VersionMismatch."""
    found = None if latest is None else latest.version
    if found != expected_version:
        raise VersionMismatch(f"The policy is at version {found}, not {expected_version}: read it again.")
    if policy.version <= highest:
        raise VersionMismatch(f"Version {policy.version} is not above {highest}, the highest: read it again.")


def _require_believable(policy: Policy, label: str) -> None:
    """What is stored must be read again, by this replica and all others."""
    if policy.version > highest_believable():
        detail = (
            f"The policy store ({label}) holds a version so high that the next one, {policy.version}, is not due yet."
        )
        raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S)


def _first(policies: list[Policy]) -> Policy | None:
    return policies[0] if policies else None


class SqlitePolicyStore:
    """A SQLite file in WAL mode, for one host: several processes may share it, and a kill loses nothing that was
    acknowledged. Its directory is made on first use. One thread does all the work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._label = f"SQLite file {path}"
        self._documents = _Documents(self._label)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-store")
        self._closed = False
        # The rest belongs to the thread.
        self._database: sqlite3.Connection | None = None
        self._opened_file: tuple[int, int] | None = None
        self._seen_change: object = None

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        return _first(await self.history(name, gate_digest, 1))

    async def newest(self, name: str) -> Policy | None:
        return _first(await self._run(lambda database: self._read(database, 1, _OF_NAME + _NEWEST_FIRST, name)))

    async def next_version(self, name: str) -> int:
        return 1 + await self._run(lambda database: self._highest(database, name))

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        if not 1 <= version <= highest_believable():
            return None
        query = _OF_GATE + "AND version = ?5"
        return _first(await self._run(lambda database: self._read(database, 1, query, name, gate_digest, version)))

    async def history(self, name: str, gate_digest: str, limit: int) -> list[Policy]:
        query = _OF_GATE + _NEWEST_FIRST
        return await self._run(lambda database: self._read(database, limit, query, name, gate_digest))

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        await self._run(lambda database: self._append(database, name, policy, expected_version))

    async def wait_for_change(self, timeout_s: float) -> None:
        """Notices what another process wrote within CHANGE_CHECK_S."""
        with suppress(TimeoutError, PolicyStoreDown):
            async with asyncio.timeout(timeout_s):
                while True:
                    await asyncio.sleep(CHANGE_CHECK_S)
                    if await self._run(self._changed):
                        return

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise PolicyStoreDown(f"The policy store ({self._label}) is closed.")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        except (sqlite3.Error, OSError) as error:
            detail = f"The policy store ({self._label}) failed: {error}."
            raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S) from error

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connect())
        except (sqlite3.Error, OSError):
            # The next call starts afresh: the disk may be back, or the file another one.
            self._disconnect()
            raise

    def _connect(self) -> sqlite3.Connection:
        # A file that was deleted or replaced under us would take writes that nobody ever sees again.
        if self._database is not None and self._opened_file != _identity(self._path):
            self._disconnect()
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = _open_database(self._path)
            self._opened_file = _identity(self._path)
        return self._database

    def _disconnect(self) -> None:
        database, self._database, self._seen_change = self._database, None, None
        if database is not None:
            database.close()

    def _changed(self, database: sqlite3.Connection) -> bool:
        """Whether another connection has written since the last call; True after a reconnect."""
        seen, self._seen_change = self._seen_change, database.execute("PRAGMA data_version").fetchone()
        return bool(seen != self._seen_change)

    def _read(
        self, database: sqlite3.Connection, limit: int, query: str, name: str, *values: str | int
    ) -> list[Policy]:
        """Removes what a read must not meet again, but not as part of a transaction."""
        self._tell_of_impossible(database, name)
        reading = _Reading(self._documents, self._label, limit)
        surplus: list[tuple[int, str, int]] = []
        try:
            with closing(
                database.execute(query, (name, highest_believable(), MAX_DOCUMENT_BYTES + 1, *values))
            ) as rows:
                for row, gate_digest, version, document in rows:
                    if not reading.meet(document, gate_digest, version):
                        surplus.append((row, name, version))
                        reading.require_readable()
                    if reading.complete:
                        break
        finally:
            if surplus and not database.in_transaction:
                self._remove(database, surplus)
        return reading.found

    def _remove(self, database: sqlite3.Connection, rows: list[tuple[int, str, int]]) -> None:
        # By version too: a row's number may by now be that of another process's newest policy.
        with suppress(sqlite3.Error), _transaction(database):  # a disk that takes no writes can still be read
            database.executemany("DELETE FROM policy_versions WHERE rowid = ? AND name = ? AND version = ?", rows)

    def _highest(self, database: sqlite3.Connection, name: str) -> int:
        self._tell_of_impossible(database, name)
        row = database.execute(_HIGHEST, (name, highest_believable())).fetchone()
        return int(row[0]) if row else 0

    def _tell_of_impossible(self, database: sqlite3.Connection, name: str) -> None:
        if database.execute(_IMPOSSIBLE, (name, highest_believable())).fetchone()[0]:
            self._documents.report(f"impossible {name}".encode(), f"bundle {name!r}: it has versions that cannot be")

    def _append(self, database: sqlite3.Connection, name: str, policy: Policy, expected_version: int | None) -> None:
        _require_believable(policy, self._label)
        gate = (name, policy.gate_digest)
        # Removes unreadable entries, a good many perhaps, before anybody is locked out. Who writes to this gate in
        # between makes the claim below a false one.
        kept = self._read(database, VERSIONS_KEPT - 1, _OF_GATE + _NEWEST_FIRST, *gate)
        with _transaction(database):
            latest = _first(self._read(database, 1, _OF_GATE + _NEWEST_FIRST, *gate))
            _require(policy, latest=latest, expected_version=expected_version, highest=self._highest(database, name))
            database.execute(_INSERT, (*gate, policy.version, policy.model_dump_json()))
            if len(kept) == VERSIONS_KEPT - 1:
                database.execute(_TRIM, (*gate, kept[-1].version))


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        database.text_factory = bytes  # text that is not UTF-8 is for _Documents to report
        _switch_to_wal(database)
        database.execute("PRAGMA synchronous = FULL")  # what was acknowledged outlives a power cut
        database.execute(_TABLE)
        database.execute(_INDEX)
    except BaseException:
        database.close()
        raise
    return database


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """SQLite's own timeout does not cover this: replicas that open a new file at once find it locked."""
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


class RedisPolicyStore:
    """A Redis server, 6.2 or later, that any number of replicas share. A call gives up after `timeout_s`; cleaning up
    after it may take as long again."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connects on first use. Raises StartupError for options in the URL that the client does not know."""
        self._timeout_s = timeout_s
        self._label = label_of(url)
        self._documents = _Documents(self._label)
        self._closed = False
        self._subscription: PubSub | None = None
        self._woken_at = 0.0
        self._flood_told = False
        self._redis = Redis.from_pool(open_pool(url, timeout_s))

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        return _first(await self.history(name, gate_digest, 1))

    async def newest(self, name: str) -> Policy | None:
        """Of the newest 10,000 gates that the index names."""
        async with self._connected() as redis:
            for start in range(0, GATES_TRIED, MEMBERS_AT_ONCE):
                members = await self._members(redis, _index_key(name), start, MEMBERS_AT_ONCE)
                for gate_digest in await self._existing(redis, name, [digest for digest, _ in members]):
                    if policies := await self._history(redis, name, gate_digest, 1):
                        return policies[0]
                if len(members) < MEMBERS_AT_ONCE:
                    break
        return None

    async def next_version(self, name: str) -> int:
        async with self._connected() as redis:
            return 1 + await self._highest(redis, name)

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        if not 1 <= version <= highest_believable():
            return None
        async with self._connected() as redis:
            return _first(await self._history(redis, name, gate_digest.encode(), 1, version))

    async def history(self, name: str, gate_digest: str, limit: int) -> list[Policy]:
        async with self._connected() as redis:
            return await self._history(redis, name, gate_digest.encode(), limit)

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        _require_believable(policy, self._label)
        index, gate, gate_digest = _index_key(name), _gate_key(name, policy.gate_digest), policy.gate_digest.encode()
        async with self._connected() as redis, redis.pipeline() as transaction:
            # Before the watch, as it removes unreadable members. Who writes to this gate in between makes the claim
            # below a false one.
            kept = await self._history(redis, name, gate_digest, VERSIONS_KEPT - 1)
            await transaction.watch(index, gate)
            latest = _first(await self._history(transaction, name, gate_digest, 1))
            highest = max(await self._highest(transaction, name), latest.version if latest else 0)
            _require(policy, latest=latest, expected_version=expected_version, highest=highest)
            strangers = [key for key in (index, gate) if not await self._is_ours(transaction, key)]
            transaction.multi()  # type: ignore[no-untyped-call]  # redis leaves it untyped
            for key in strangers:
                transaction.rename(key, f"{key}:unreadable")
            transaction.zadd(gate, {policy.model_dump_json(): policy.version})
            if len(kept) == VERSIONS_KEPT - 1:
                transaction.zremrangebyscore(gate, "-inf", f"({kept[-1].version}")
            transaction.zadd(index, {policy.gate_digest: policy.version})
            transaction.publish(CHANNEL, name)
            try:
                await transaction.execute()
            except redis_errors.WatchError as error:
                raise VersionMismatch("The policy was changed at the same moment: read it again.") from error

    async def wait_for_change(self, timeout_s: float) -> None:
        """Woken by a message, the first one at once and those of the next CHANGE_CHECK_S together; returns at once
        after subscribing, for what was missed until then. A flood of messages ends the subscription and leaves the
        caller to poll, since reading it would cost more than the polling."""
        subscription = self._subscription
        try:
            if subscription is None:
                await self._subscribe()
            elif await self._flooded(subscription, timeout_s):
                if not self._flood_told:
                    self._flood_told = True
                    logger.warning("A flood of messages on %s in %s: we poll instead.", CHANNEL, self._label)
                await self._unsubscribe()
                await asyncio.sleep(timeout_s)
        except (redis_errors.RedisError, OSError, PolicyStoreDown):
            await self._unsubscribe()
            # A subscription that breaks is news; one that is refused leaves the caller to poll.
            await asyncio.sleep(timeout_s if subscription is None else min(timeout_s, CHANGE_CHECK_S))

    async def _flooded(self, subscription: PubSub, timeout_s: float) -> bool:
        """Waits for a message and takes those that have come as well; whether that was a flood."""
        clock = asyncio.get_running_loop().time
        wake_at = clock() + timeout_s
        await asyncio.sleep(min(timeout_s, max(0.0, self._woken_at + CHANGE_CHECK_S - clock())))
        if await subscription.get_message(timeout=max(0.0, wake_at - clock())) is None:
            return False
        self._woken_at = clock()
        for _ in range(MESSAGES_AT_ONCE):
            if await subscription.get_message(timeout=0.0) is None:
                return False
        return True

    async def close(self) -> None:
        self._closed = True
        await self._unsubscribe()
        await self._redis.aclose()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Redis]:
        if self._closed:
            raise PolicyStoreDown(f"The policy store ({self._label}) is closed.")
        try:
            async with asyncio.timeout(self._timeout_s):
                yield self._redis
        except (redis_errors.RedisError, OSError) as error:
            detail = f"The policy store ({self._label}) failed: {reason_of(error)}."
            raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S) from error

    async def _subscribe(self) -> None:
        async with self._connected() as redis:
            self._subscription = redis.pubsub()
            await self._subscription.subscribe(CHANNEL)
            # The server's confirmation: a change made from now on is certain to wake us.
            await self._subscription.get_message(timeout=None)

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(redis_errors.RedisError, OSError):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis leaves it untyped

    async def _is_ours(self, redis: Redis, key: str) -> bool:
        """Whether it is a sorted set, or nothing yet. Tells of versions in it that cannot be: no read meets them."""
        kind = await redis.type(key)
        if kind not in (b"zset", b"none"):
            self._documents.report(key.encode(), f"key {key!r}: it is a {kind!r}")
            return False
        if await redis.zcount(key, f"({highest_believable()}", "+inf") or await redis.zcount(key, "-inf", "(1"):
            self._documents.report(f"impossible {key}".encode(), f"key {key!r}: it has versions that cannot be")
        return True

    async def _members(self, redis: Redis, key: str, start: int, count: int) -> list[tuple[bytes, float]]:
        """With their scores, highest first; none of a key that is not a sorted set."""
        if not await self._is_ours(redis, key):
            return []
        members = await redis.zrevrangebyscore(key, highest_believable(), 1, start=start, num=count, withscores=True)
        return cast("list[tuple[bytes, float]]", members)

    async def _existing(self, redis: Redis, name: str, gate_digests: list[bytes]) -> list[bytes]:
        """Those gates that have anything: an index full of names of nothing must not cost a read for each."""
        possible = [gate_digest for gate_digest in gate_digests if len(gate_digest) <= MAX_DIGEST_BYTES]
        async with redis.pipeline(transaction=False) as pipeline:
            for gate_digest in possible:
                pipeline.exists(_gate_key(name, gate_digest))
            exist = await pipeline.execute()
        return [gate_digest for gate_digest, exists in zip(possible, exist, strict=True) if exists]

    async def _history(
        self, redis: Redis, name: str, gate_digest: bytes, limit: int, version: int | None = None
    ) -> list[Policy]:
        """Removes what a read must not meet again, but not as part of a transaction."""
        key = _gate_key(name, gate_digest)
        if not await self._is_ours(redis, key):
            return []
        low, high = (1, highest_believable()) if version is None else (version, version)
        reading = _Reading(self._documents, self._label, limit)
        start, count = 0, min(limit + 4, 16)
        while not reading.complete:
            found = await redis.zrevrangebyscore(key, high, low, start=start, num=count, withscores=True)
            members = cast("list[tuple[bytes, float]]", found)
            surplus = []
            for document, score in members:
                if not reading.meet(document, gate_digest, score):
                    surplus.append(document)
                if reading.complete:
                    break
            removed = 0 if redis is not self._redis else await self._remove(key, surplus)
            if len(members) < count:
                break
            reading.require_readable()
            start += len(members) - removed
            count = min(2 * count, MEMBERS_AT_ONCE)
        return reading.found

    async def _remove(self, key: str, documents: list[bytes]) -> int:
        """How many of them are gone: a server that takes no writes can still be read."""
        if documents:
            with suppress(redis_errors.ResponseError):
                await self._redis.zrem(key, *documents)
                return len(documents)
        return 0

    async def _highest(self, redis: Redis, name: str) -> int:
        return max([int(score) for _, score in await self._members(redis, _index_key(name), 0, 1)], default=0)


def _index_key(name: str) -> str:
    """Percent-encoded, so that no name can reach another name's keys."""
    return f"gatekeeper:policy:{{{quote(name, safe='')}}}"


def _gate_key(name: str, gate_digest: str | bytes) -> str:
    return f"{_index_key(name)}:{quote(gate_digest, safe='')}"
