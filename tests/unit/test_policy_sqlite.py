"""The policy store in a SQLite file: what only a file can suffer."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.policies import a_policy

from service.errors import PolicyStoreDown
from service.policy.reading import VERSIONS_KEPT
from service.policy.sqlite import SqlitePolicyStore

REPOSITORY = Path(__file__).resolve().parent.parent.parent


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
        monkeypatch.setattr("service.policy.sqlite.BUSY_TIMEOUT_S", 0.05)
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
        from service.policy.sqlite import SqlitePolicyStore

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
