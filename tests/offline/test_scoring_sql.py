"""SQL that nobody has read runs in a process of its own: it finds rows, and can do nothing else."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import InputError
from models.scoring.registry import scorer
from models.scoring.scorer import MOST_CHARACTERS, Reference
from models.scoring.sql import SqlLimits, _Child, _running, is_ordered

LIMITS = SqlLimits(seconds=20.0, rows=1_000)
SHORT = SqlLimits(seconds=0.5, rows=1_000)  # for what would never end


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred invented rivers; the folder's name has what a URI gives a meaning."""
    folder = tmp_path_factory.mktemp("a? #b%20")
    path = folder / "rivers.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE river (name TEXT, length INTEGER, depth REAL, raw)")
    rows = [(f"river {n}", n, n / 10, None) for n in range(100)]
    connection.executemany("INSERT INTO river VALUES (?, ?, ?, ?)", rows)
    connection.execute("CREATE INDEX by_name ON river (name)")
    connection.execute("CREATE TABLE odd (text)")
    connection.execute("INSERT INTO odd VALUES (CAST(x'ff' AS TEXT))")
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def child(database: Path) -> Iterator[_Child]:
    """With the rows of a reference."""
    with _running(database, LIMITS) as child:
        assert child.reference("SELECT count(*) FROM river") == {"rows": 1}
        yield child


def grades(database: Path, answers: list[str], *references: str, limits: SqlLimits = LIMITS) -> list[float]:
    of = Reference("How many?", references, database=database)
    return list(scorer("sql-execution", sql=limits)(answers, [of] * len(answers)))


@pytest.mark.parametrize(
    ("answer", "reference", "grade"),
    [
        ("SELECT 100", "SELECT count(*) FROM river", 1),
        ("SELECT 100.0", "SELECT count(*) FROM river", 1),
        ("SELECT '100'", "SELECT count(*) FROM river", 0),
        ("```sql\nSELECT count(*) AS n FROM river;\n```", "SELECT count(*) FROM river", 1),
        ("SELECT 0.3", "SELECT 0.1 + 0.2", 1),
        ("SELECT length FROM river WHERE length < 3 ORDER BY 1 DESC", "SELECT length FROM river WHERE length < 3", 1),
        ("SELECT length FROM river WHERE length < 3", "SELECT length FROM river WHERE length < 3 ORDER BY 1 DESC", 0),
        ("SELECT 1 UNION ALL SELECT 1", "SELECT 1", 0),
        ("SELECT name, length FROM river", "SELECT length, name FROM river", 0),
        ("SELECT raw FROM river LIMIT 1", "SELECT NULL", 1),
        ("SELECT * FROM odd", "SELECT text FROM odd", 1),
        ("SELECT x'ff'", "SELECT text FROM odd", 0),
        ("WITH a AS (SELECT 7 AS b) SELECT b FROM a", "SELECT 7", 1),
        ("SELECT missing FROM river", "SELECT 1", 0),
        ("I do not know", "SELECT 1", 0),
    ],
)
def test_an_answer_is_right_where_it_finds_the_same_rows(
    database: Path, answer: str, reference: str, grade: float
) -> None:
    assert grades(database, [answer], reference) == [grade]


def test_one_of_several_references_is_enough(database: Path) -> None:
    assert grades(database, ["SELECT 2", "SELECT 3"], "SELECT 1", "SELECT 2") == [1.0, 0.0]


def test_items_of_several_databases_keep_their_places(database: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE river (name)")
    connection.close()
    references = [Reference("", ("SELECT count(*) FROM river",), database=path) for path in (other, database, other)]
    answers = ["SELECT 0", "SELECT 0", "SELECT 0"]
    assert scorer("sql-execution")(answers, references).tolist() == [1.0, 0.0, 1.0]


DENIED = "not authorized|prohibited|authorization denied"
HOSTILE = {
    "ATTACH DATABASE '{there}' AS other": DENIED,
    "ATTACH '{new}' AS other": DENIED,
    "DETACH main": DENIED,
    "SELECT load_extension('{there}')": DENIED,
    "SELECT fts3_tokenizer('simple')": DENIED,
    "SELECT sqlite_log(1, 'x')": DENIED,
    "SELECT writefile('{new}', 'x')": "no such function",
    "SELECT readfile('{there}')": "no such function",
    "SELECT edit('x', 'touch {new}')": "no such function",
    "PRAGMA query_only = OFF": DENIED,
    "PRAGMA table_info(river)": DENIED,
    "SELECT * FROM pragma_database_list": DENIED,
    "VACUUM": DENIED,
    "VACUUM INTO '{new}'": DENIED,
    "INSERT INTO river VALUES (1, 1, 1, 1)": DENIED,
    "UPDATE river SET length = 0": DENIED,
    "DELETE FROM river": DENIED,
    "DROP TABLE river": DENIED,
    "CREATE TABLE other (a)": DENIED,
    "CREATE TEMP TABLE other (a)": DENIED,
    "CREATE VIRTUAL TABLE other USING fts5(a)": DENIED,
    "CREATE TEMP VIEW other AS SELECT 1": DENIED,
    "REINDEX": DENIED,
    "ANALYZE": DENIED,
    "BEGIN EXCLUSIVE": DENIED,
    "SAVEPOINT a": DENIED,
    "SELECT 1; DROP TABLE river": "one statement at a time",
    "SELECT hex(zeroblob(1000000000))": "too big",
    "SELECT randomblob(1000000000)": "too big",
    "SELECT replace(hex(zeroblob(400000)), '00', 'xxxxxxxxxx')": "too big",
    "SELECT 'x' LIKE '" + "%x" * 2_000 + "'": "too complex",
    "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r": "more than 1000 rows",
    "SELECT hex(randomblob(400000)) FROM river": "more than 1000 rows or|MemoryError",
    "SELECT group_concat(hex(randomblob(400000))) FROM river": "too big",
    "SELECT a.name || hex(zeroblob(400000)) AS n FROM river a, river b ORDER BY n": "MemoryError",
    "SELECT hex(zeroblob(499000)) GLOB '" + "*0" * 400 + "*1'": "False|interrupted|did not end",
    "SELECT " + "(" * 50_000: "Error",
    "SELECT " + "-" * 1_000 + "1": "no query|incomplete|Error",
    "SELECT " + " + ".join(["1"] * 20_000): "Expression tree is too large|Error",
    "SELECT ?": "Incorrect number of bindings",
    "SELECT '\0'": "null character|unrecognized|Error",
    "SELECT '\ud800'": "UnicodeEncodeError",
    "": "no query",
    "-- nothing": "no query",
}

ENDLESS = {
    "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r": "interrupted",
    # One step of SQLite's that takes minutes: no handler is asked in between.
    "SELECT instr(hex(zeroblob(499000)), hex(zeroblob(249000)) || '1')": "did not end within 0.5 s",
}


@pytest.mark.parametrize("statement", ENDLESS)
def test_what_never_ends_is_ended(database: Path, statement: str) -> None:
    with _running(database, SHORT) as child:
        assert child.reference("SELECT 100") == {"rows": 1}
        assert ENDLESS[statement] in child.ask({"predicted": statement})["error"]
        child.reference("SELECT 100")
        assert child.ask({"predicted": "SELECT count(*) FROM river"}) == {"same": True}


@pytest.mark.parametrize("statement", HOSTILE)
def test_hostile_sql_does_nothing(child: _Child, database: Path, tmp_path: Path, statement: str) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    with sqlite3.connect(there) as connection:
        connection.execute("CREATE TABLE secret (a)")
    connection.close()
    before = database.read_bytes()
    answer = child.ask({"predicted": statement.replace("{there}", str(there)).replace("{new}", str(new))})
    assert re.search(HOSTILE[statement], str(answer)), answer
    assert not new.exists()
    assert database.read_bytes() == before
    assert list(database.parent.iterdir()) == [database]
    # The next answer is as good as ever, by the same process or by a new one.
    child.reference("SELECT count(*) FROM river")
    assert child.ask({"predicted": "SELECT 100"}) == {"same": True}


def test_the_process_can_open_write_and_grow_no_further(child: _Child) -> None:
    assert child._process is not None
    limits = Path(f"/proc/{child._process.pid}/limits")
    if not limits.exists():
        pytest.skip("needs Linux's /proc")
    bounds = {line[:25].strip(): line[25:].split()[1] for line in limits.read_text().splitlines()[1:]}
    assert {bounds[name] for name in ("Max file size", "Max open files", "Max core file size")} == {"0"}
    assert int(bounds["Max address space"]) == LIMITS.memory_bytes + 256 * 1024 * 1024
    assert Path(f"/proc/{child._process.pid}/environ").read_bytes() == b""


def test_a_process_that_dies_costs_one_answer(child: _Child) -> None:
    assert child._process is not None
    child._process.kill()
    assert "ended its process" in child.ask({"predicted": "SELECT 100"})["error"]
    assert child.reference("SELECT count(*) FROM river") == {"rows": 1}
    assert child.ask({"predicted": "SELECT 100"}) == {"same": True}


def test_one_process_serves_many_items(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = _Child._start
    monkeypatch.setattr(_Child, "_start", lambda child: (started.append(child), start(child)))
    answers = ["SELECT 100", "DROP TABLE river", "SELECT 1"] * 20
    assert grades(database, answers, "SELECT count(*) FROM river") == [1.0, 0.0, 0.0] * 20
    assert len(started) == 1
    assert started[0]._process is None  # it has ended


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("SELECT absent FROM river", "no such column: absent"),
        ("DROP TABLE river", "not authorized"),
        ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT count(*) FROM r", "interrupted"),
        ("SELECT 1 FROM river a, river b", "more than 1000 rows"),
    ],
)
def test_a_reference_that_does_not_run_is_an_error(database: Path, reference: str, says: str) -> None:
    references = [Reference("", (sql,), database=database) for sql in ("SELECT 1", reference)]
    with pytest.raises(InputError, match=f"row 2: the reference SQL does not run on .*rivers.sqlite: .*{says}"):
        scorer("sql-execution", sql=SHORT)(["SELECT 1", "SELECT 1"], references)


def test_a_database_that_is_missing_or_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1: there is no database .*nowhere"):
        grades(tmp_path / "nowhere", ["SELECT 1"], "SELECT 1")
    text = tmp_path / "text"
    text.write_text("x" * 10_000)
    with pytest.raises(InputError, match="text cannot be read as a database: DatabaseError: file is not a database"):
        grades(text, ["SELECT 1"], "SELECT 1")


def test_a_read_only_database_in_a_read_only_folder_will_do(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    copy = folder / "copy.sqlite"
    copy.write_bytes(database.read_bytes())
    copy.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert grades(copy, ["SELECT 100"], "SELECT count(*) FROM river") == [1.0]
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM b ORDER BY c", True),
        ("select a from b order\n by c", True),
        ("SELECT a FROM (SELECT a FROM b ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM b", False),
        ("SELECT 'order by' FROM b -- order by", False),
        ('SELECT a AS "order by" FROM b /* order by */', False),
        ("SELECT ')' FROM b ORDER BY (a)", True),
        ("SELECT border, bye FROM b", False),
        ("'" * MOST_CHARACTERS, False),
        ("/*" * 50_000, False),
    ],
)
def test_which_queries_order_their_result(sql: str, ordered: bool) -> None:
    assert is_ordered(sql) is ordered
