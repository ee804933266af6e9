"""The schema says what it means, and refuses what it does not know."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentfs.errors import StoreDamaged, StoreNewer, StoreUnusable
from agentfs.filesystem.report import offline_stats
from agentfs.index import Index, schema
from agentfs.index.connection import connect

# Their names and the table's say all there is to say.
SPEAKS_FOR_ITSELF = {
    *(("setting", "name"), ("setting", "value")),
    *(("inode", "uid"), ("inode", "gid"), ("inode", "mtime"), ("inode", "ctime")),
    *(("dentry", "inode"), ("xattr", "inode"), ("xattr", "name"), ("xattr", "value")),
    *(("content", "id"), ("block", "id")),
}


def contents_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and mtime of every file, and the directory's own."""
    found = {
        entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in directory.iterdir()
    }
    return found | {".": (b"", directory.stat().st_mtime_ns)}


def columns_with_their_lines() -> list[tuple[str, str, str]]:
    """(table, column, the line that declares it)."""
    found = []
    for statement in schema.STATEMENTS:
        added = re.match(r"(ALTER TABLE (\w+) ADD COLUMN .*)\n +(\w+)", statement)
        if added is not None:
            found.append((added[2], added[3], added[1]))
        table = re.match(r"CREATE TABLE (\w+) \(", statement)
        if table is None:
            continue
        for line in statement.splitlines()[1:-1]:
            name = line.split()[0]
            if name != "PRIMARY":
                found.append((table[1], name, line))
    return found


def test_every_column_that_does_not_speak_for_itself_has_a_comment() -> None:
    silent = {(table, name) for table, name, line in columns_with_their_lines() if "--" not in line}
    assert silent == SPEAKS_FOR_ITSELF


def test_the_declared_columns_are_those_of_the_database(tmp_path: Path) -> None:
    index = Index(tmp_path)
    real = {
        (table, row[1])
        for (table,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for row in index.execute(f"PRAGMA table_info({table})")
        if not table.startswith("_")
    }
    index.close()
    assert {(table, name) for table, name, _ in columns_with_their_lines()} == real


def test_every_query_of_a_row_by_its_key_uses_an_index(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for query in (
        "SELECT id FROM chunk WHERE substr(digest, 1, 4) = ? AND digest = ?",
        "SELECT id FROM content WHERE substr(digest, -16, 4) = ?",
        "SELECT 1 FROM dentry WHERE parent = ? AND name > ? ORDER BY name LIMIT 5",
        "SELECT id, recipe FROM content WHERE refs = 0 LIMIT ?",
        "SELECT id FROM chunk WHERE refs = 0 LIMIT ?",
        "SELECT id FROM inode WHERE nlink = 0",
        "SELECT id FROM block WHERE segment = ?",
        "SELECT id FROM chunk WHERE block = 0",
        "SELECT id FROM chunk WHERE id BETWEEN ? AND ? AND block = ?",
    ):
        values = (1,) * query.count("?")
        plan = [row[3] for row in index.execute(f"EXPLAIN QUERY PLAN {query}", values)]
        assert all(re.search("USING .*(INDEX|PRIMARY KEY)", step) for step in plan), (query, plan)
    index.close()


def make_store(directory: Path) -> None:
    Index(directory).close()


def add_migration_from_the_future(directory: Path) -> None:
    with connect(directory / "index.db", "rw") as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('agentfs', 'ninety_ninth', '2031-01-01')"
        )
    connection.close()


def in_a_process_that_is_killed(script: str, directory: Path) -> None:
    """Run *script* with `store`; it ends without closing anything."""
    head = "import os, sys, pathlib, sqlite3\nstore = pathlib.Path(sys.argv[1])\n"
    tail = "\nos.kill(os.getpid(), 9)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script + tail, directory],
        check=False,
        timeout=60,
    )
    assert done.returncode == -9


def leave_a_wal(directory: Path) -> None:
    in_a_process_that_is_killed(
        "from agentfs.index import Index\nindex = Index(store)\n"
        "index.dentries.insert(1, b'left in the wal', 1)",
        directory,
    )


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_of_a_newer_version_is_refused_and_unchanged(
    tmp_path: Path, read_only: bool
) -> None:
    make_store(tmp_path)
    add_migration_from_the_future(tmp_path)
    before = contents_of(tmp_path)
    with pytest.raises(StoreNewer, match=r"newer agentfs.*ninety_ninth.*update agentfs"):
        Index(tmp_path, read_only=read_only)
    assert contents_of(tmp_path) == before


def test_a_store_whose_newer_daemon_was_killed_is_refused_and_unchanged(tmp_path: Path) -> None:
    make_store(tmp_path)
    in_a_process_that_is_killed(
        "from agentfs.index.connection import connect\n"
        "db = connect(store / 'index.db', 'rw')\n"
        "db.execute('PRAGMA locking_mode = EXCLUSIVE')\n"
        'db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"\n'
        "    \" VALUES ('agentfs', 'ninety_ninth', '2031-01-01')\")",
        tmp_path,
    )
    before = {name: data for name, (data, _) in contents_of(tmp_path).items()}
    assert before["index.db-wal"]
    with pytest.raises(StoreNewer):
        Index(tmp_path)
    assert {name: data for name, (data, _) in contents_of(tmp_path).items()} == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_another_program_is_refused_and_unchanged(
    tmp_path: Path, read_only: bool
) -> None:
    with sqlite3.connect(tmp_path / "index.db") as connection:
        connection.execute("CREATE TABLE bookmark (url TEXT)")
    connection.close()
    before = contents_of(tmp_path)
    with pytest.raises(StoreDamaged, match="not one of agentfs'"):
        Index(tmp_path, read_only=read_only)
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_database_is_refused_and_unchanged(
    tmp_path: Path, read_only: bool
) -> None:
    (tmp_path / "index.db").write_bytes(b"a shopping list, not a database\n" * 1000)
    before = contents_of(tmp_path)
    with pytest.raises(StoreDamaged, match="cannot be read"):
        Index(tmp_path, read_only=read_only)
    assert contents_of(tmp_path) == before


def test_reading_a_directory_without_a_store_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable):
        Index(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())


def stats(store: Path) -> None:
    assert offline_stats(store)["files"] == 0


def read_a_name(store: Path) -> None:
    index = Index(store, read_only=True)
    assert index.dentries.lookup(1, b"left in the wal") is not None
    index.close()


@pytest.mark.parametrize("look", [stats, read_a_name])
def test_looking_at_a_store_whose_daemon_was_killed_shows_all_and_writes_nothing(
    tmp_path: Path, look: Callable[[Path], None]
) -> None:
    leave_a_wal(tmp_path)
    before = contents_of(tmp_path)
    assert before["index.db-wal"][0], "the test needs a WAL"
    look(tmp_path)
    assert contents_of(tmp_path) == before


def test_looking_at_an_unmounted_store_writes_nothing(tmp_path: Path) -> None:
    make_store(tmp_path)
    before = contents_of(tmp_path)
    stats(tmp_path)
    assert contents_of(tmp_path) == before


def test_a_store_keeps_its_id(tmp_path: Path) -> None:
    index = Index(tmp_path)
    first = index.store_id
    index.close()
    again = Index(tmp_path)
    second = again.store_id
    again.close()
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert second == first


def test_two_stores_have_different_ids(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        index = Index(tmp_path / name)
        ids.add(index.store_id)
        index.close()
    assert len(ids) == 2


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    index = Index(tmp_path)
    with pytest.raises(ZeroDivisionError), index.transaction:
        index.dentries.insert(1, b"half", 1)
        _ = 1 / 0
    with index.transaction:
        index.dentries.insert(1, b"whole", 1)
    assert [row[0] for row in index.execute("SELECT name FROM dentry")] == [b"whole"]
    index.close()
