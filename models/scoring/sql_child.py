"""The process that runs SQL which nobody has read, for sql.py: `python -I -S sql_child.py DATABASE-URI LIMITS`.

It knows the standard library alone. Nothing that the SQL says may read another file, write, run on or eat memory:
- the database is read-only and immutable; the authorizer lets through SELECT, columns and functions, and nothing else;
- the process can open no file after the database, write to none, and has a bound on memory and processor time;
- SQLite bounds its own heap, texts, patterns and, every thousand steps, the time;
- sql.py ends a process that does not answer in time, for one step may take for ever.

It reads a line of JSON for each statement and writes one. {"reference": SQL, "ordered": bool} is answered by
{"rows": N}, {"predicted": SQL} by {"same": bool}, both by {"error": text} where it does not run.
"""

import json
import resource
import sqlite3
import sys
import time
from collections import Counter
from typing import Any

MIB = 1024 * 1024
_MOST_VALUE = 1_000_000  # bytes of a text or blob
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
# They load code, hand out addresses or touch files; most builds lack most of them.
_DENIED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "fts5", "sqlite_log", "readfile", "writefile", "edit"}
_FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)


class Database:
    """A connection that runs queries and nothing else. limits: {"seconds", "rows", "memory_bytes"}."""

    def __init__(self, uri: str, limits: dict[str, Any]) -> None:
        """Raises sqlite3.Error where the file is no database."""
        self._seconds = limits["seconds"]
        self._most_rows = limits["rows"]
        self._most_bytes = limits["memory_bytes"] // 8  # of values: Python takes several times as much
        self._deadline = time.monotonic() + self._seconds
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        self._connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        for pragma in (
            "query_only = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "temp_store = MEMORY",
            "mmap_size = 0",
            f"hard_heap_limit = {limits['memory_bytes'] // 2}",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # SQLite opens the file here
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
        ):
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(lambda: int(time.monotonic() > self._deadline), 1_000)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises one of _FAILURES."""
        self._deadline = time.monotonic() + self._seconds
        bound(resource.RLIMIT_CPU, int(time.process_time() + self._seconds) + 2, hard=False)
        cursor = self._connection.execute(sql)
        try:
            if cursor.description is None:
                raise ValueError("it is no query")
            rows, size = [], 0
            for row in cursor:
                rows.append(tuple(map(_comparable, row)))
                size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
                if len(rows) > self._most_rows or size > self._most_bytes:
                    raise ValueError(f"its result has more than {self._most_rows} rows or {self._most_bytes} bytes")
            return rows
        finally:
            cursor.close()


def _authorize(action: int, _table: str | None, name: str | None, _database: str | None, _view: str | None) -> int:
    if action in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and (name or "").lower() not in _DENIED_FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _comparable(value: Any) -> Any:
    """Sums and means to ten digits: two plans add in two orders. 2 and 2.0 are equal in Python."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def bound(kind: int, value: int, *, hard: bool = True) -> None:
    """Set a limit of this process, to less where less is allowed."""
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value if hard else most))


def main() -> None:
    """Answer lines until there are no more."""
    uri, limits = sys.argv[1], json.loads(sys.argv[2])
    bound(resource.RLIMIT_CORE, 0)
    bound(resource.RLIMIT_FSIZE, 0)
    bound(resource.RLIMIT_AS, limits["memory_bytes"] + 256 * MIB)  # what Python and its libraries map is no memory yet
    try:
        database = Database(uri, limits)
    except _FAILURES as error:
        _say({"error": _told(error)})
        return
    bound(resource.RLIMIT_NOFILE, 0)
    _say({"rows": 0})
    wanted: list[tuple[Any, ...]] = []
    ordered = False
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "reference" in asked:
                wanted, ordered = database.rows(asked["reference"]), asked["ordered"]
                _say({"rows": len(wanted)})
            else:
                said = database.rows(asked["predicted"])
                _say({"same": said == wanted if ordered else Counter(said) == Counter(wanted)})
        except _FAILURES as error:
            _say({"error": _told(error)})


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
