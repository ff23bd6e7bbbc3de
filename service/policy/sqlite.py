"""Policies in a SQLite file, for one host. sqlite3's errors end here."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from service.errors import PolicyStoreDown
from service.policy.document import MAX_DOCUMENT_BYTES, Policy, highest_believable
from service.policy.reading import (
    RETRY_AFTER_S,
    VERSIONS_KEPT,
    DocumentReader,
    Reading,
    first,
    require_next,
    text_of,
)

BUSY_TIMEOUT_S = 2.0
CHANGE_CHECK_S = 0.1

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


class SqlitePolicyStore:
    """A SQLite file in WAL mode, for one host: several processes may share it, and a kill loses nothing that was
    acknowledged. Its directory is made on first use. One thread does all the work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._label = f"SQLite file {path}"
        self._documents = DocumentReader(self._label)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-store")
        self._closed = False
        # The rest belongs to the thread.
        self._database: sqlite3.Connection | None = None
        self._opened_file: tuple[int, int] | None = None
        self._seen_change: object = None

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        return first(await self.history(name, gate_digest, 1))

    async def newest(self, name: str) -> Policy | None:
        return first(await self._run(lambda database: self._read(database, 1, _OF_NAME + _NEWEST_FIRST, name)))

    async def next_version(self, name: str) -> int:
        return 1 + await self._run(lambda database: self._highest(database, name))

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        if not 1 <= version <= highest_believable():
            return None
        query = _OF_GATE + "AND version = ?5"
        return first(await self._run(lambda database: self._read(database, 1, query, name, gate_digest, version)))

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
        reading = Reading(self._documents, self._label, limit)
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
        text = text_of(policy, self._label)
        gate = (name, policy.gate_digest)
        # Removes unreadable entries, a good many perhaps, before anybody is locked out. Who writes to this gate in
        # between makes the claim below a false one.
        kept = self._read(database, VERSIONS_KEPT - 1, _OF_GATE + _NEWEST_FIRST, *gate)
        with _transaction(database):
            latest = first(self._read(database, 1, _OF_GATE + _NEWEST_FIRST, *gate))
            require_next(
                policy, latest=latest, expected_version=expected_version, highest=self._highest(database, name)
            )
            database.execute(_INSERT, (*gate, policy.version, text))
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
        database.text_factory = bytes  # text that is not UTF-8 is for DocumentReader to report
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
