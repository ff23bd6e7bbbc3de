"""The scorer `sql-execution`: an answer is right where it finds the same rows as its reference.

The SQL runs in sql_child.py, one process for all items of a database. Where that dies or does not answer in time, the
answer is wrong, and the next item gets a new one.
"""

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.printing import printable
from models.scoring.scorer import Item, Scorer
from models.scoring.words import unfenced

_CHILD = Path(__file__).with_name("sql_child.py")
_START_SECONDS = 30.0
_GRACE_SECONDS = 1.0  # in which the child can still say itself that the time is over
_TOKENS = re.compile(
    # Each text and comment may lack its end, so that one pass is enough.
    r"""'[^']*+'?|"[^"]*+"?|`[^`]*+`?|\[[^\]]*+\]?|--[^\n]*+|/\*.*?(?:\*/|\Z)|[()]|\border\s++by\b""",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class SqlLimits:
    """For each statement. rows: of its result. memory_bytes: of SQLite's heap and the rows together."""

    seconds: float = 5.0
    rows: int = 100_000
    memory_bytes: int = 256 * 1024 * 1024


def sql_scorer(limits: SqlLimits) -> Scorer:
    """Rows are compared as multisets, as lists where the reference orders its result; names of columns do not count.

    Numbers by value, fractions to ten digits. Grading raises InputError that names the row where there is no database
    or where the reference itself does not run.
    """

    def grade(items: Sequence[Item]) -> Iterable[float]:
        if importlib.util.find_spec("resource") is None:
            raise InputError("the scorer sql-execution needs a system with resource limits, such as Linux")
        grades = dict.fromkeys((item.row for item in items), 0.0)
        of_database: dict[Path, list[Item]] = {}
        for item in items:
            of_database.setdefault(_database(item), []).append(item)
        for database, its_items in of_database.items():
            with _running(database, limits) as child:
                for item in its_items:
                    grades[item.row] = float(any(_agrees(child, item, sql) for sql in item.reference.answers))
        return grades.values()

    return Scorer("sql-execution", graded=False, grade=grade)


def _database(item: Item) -> Path:
    path = item.reference.database
    if path is None:
        raise InputError(f"row {item.row}: the scorer sql-execution needs a database; there is none")
    if not path.is_file():
        raise InputError(f"row {item.row}: there is no database {path}")
    return path.resolve()


def _agrees(child: "_Child", item: Item, reference: str) -> bool:
    found = child.reference(reference)
    if "error" in found:
        what = printable(found["error"], 300)
        raise InputError(f"row {item.row}: the reference SQL does not run on {child.database}: {what}")
    return child.ask({"predicted": unfenced(item.answer)}).get("same") is True


def is_ordered(sql: str) -> bool:
    """Whether a query orders its result: ORDER BY outside of brackets, texts and comments."""
    depth = 0
    for token in _TOKENS.finditer(sql):
        if token[0] in "()":
            depth += 1 if token[0] == "(" else -1
        elif depth == 0 and token[0][0] in "oO":
            return True
    return False


class _Child:
    """The process of one database; started when it is needed, again after it has died."""

    def __init__(self, database: Path, limits: SqlLimits) -> None:
        self.database = database
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._reference: str | None = None  # whose rows the process has

    def reference(self, sql: str) -> dict[str, Any]:
        """The answer to a reference; what the process has is not asked for again."""
        if self._process is not None and self._reference == sql:
            return {}
        answer = self.ask({"reference": sql, "ordered": is_ordered(sql)})
        self._reference = sql if "rows" in answer else None
        return answer

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """The process's answer; {"error": ...} where it died or was ended for its silence."""
        if self._process is None:
            self._start()
        return self._exchange(json.dumps(what).encode() + b"\n", self._limits.seconds + _GRACE_SECONDS)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        with suppress(BrokenPipeError), self._process:  # closes both pipes, and waits for its end
            pass
        self._process = self._reference = None

    def _start(self) -> None:
        """Raises InputError where the file is no database."""
        uri = f"{self.database.as_uri()}?mode=ro&immutable=1"
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and file
            [sys.executable, "-I", "-S", str(_CHILD), uri, json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        answer = self._exchange(b"", _START_SECONDS)
        if "error" in answer:
            self.stop()
            raise InputError(f"{self.database} cannot be read as a database: {printable(answer['error'], 300)}")

    def _exchange(self, line: bytes, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
        answer = _line(process.stdout.fileno(), seconds)
        if answer is None:
            self.stop()
            return {"error": f"it did not end within {self._limits.seconds:g} s, or ended its process"}
        return dict(json.loads(answer))


@contextmanager
def _running(database: Path, limits: SqlLimits) -> Iterator[_Child]:
    child = _Child(database, limits)
    try:
        yield child
    finally:
        child.stop()


def _line(descriptor: int, seconds: float) -> bytes | None:
    """The next line of a pipe; None where it ends or nothing whole comes in time."""
    deadline = time.monotonic() + seconds
    content = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not content.endswith(b"\n"):
        ready = poll.poll(max(deadline - time.monotonic(), 0.0) * 1_000)
        more = os.read(descriptor, 65_536) if ready else b""
        if not more:
            return None
        content += more
    return content
