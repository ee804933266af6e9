"""Every page of the index is checked when it is read: right rows or an error, never wrong ones."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from agentfs.index import Index
from agentfs.index import schema as index_schema
from agentfs.index.connection import connect, has_checksums
from fakes.rows import fill, flip, rows, seen

FLIPS = 400


def test_any_flipped_bit_of_the_database_is_found(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    index = Index(original)
    fill(index)
    expected = rows(index)
    index.close()
    size = (original / "index.db").stat().st_size
    chance = random.Random(1)
    # The header, which says how all the rest is read, and the last bytes of a page in any case.
    offsets = [*range(100), 1019, 1020, 1023, *(chance.randrange(size) for _ in range(FLIPS))]
    found = 0
    for number, offset in enumerate(offsets):
        store = tmp_path / "store"
        shutil.copytree(original, store)
        flip(store / "index.db", offset, number % 8)
        rows_seen = seen(store)
        assert rows_seen in (None, expected), offset
        found += rows_seen is None
        shutil.rmtree(store)
    assert found > len(offsets) / 2, "most pages are read"


@pytest.mark.parametrize("lost", [1, 1023, 1024, 5000])
def test_a_database_whose_end_is_missing_is_found(tmp_path: Path, lost: int) -> None:
    index = Index(tmp_path)
    fill(index)
    index.close()
    database = tmp_path / "index.db"
    with open(database, "r+b") as file:
        file.truncate(database.stat().st_size - lost)
    assert seen(tmp_path) is None


def test_a_flipped_bit_in_the_log_is_found(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.checkpoint()
    fill(index)
    index.execute("PRAGMA shrink_memory")
    expected = rows(index)
    wal = tmp_path / "index.db-wal"
    chance = random.Random(2)
    found = 0
    for number in range(100):
        offset = chance.randrange(40, wal.stat().st_size)
        flip(wal, offset, number % 8)
        index.execute("PRAGMA shrink_memory")
        try:
            assert rows(index) == expected, offset
        except sqlite3.OperationalError:
            found += 1
        flip(wal, offset, number % 8)
    assert found > 50, "most frames are read"
    assert rows(index) == expected
    index.close()


def test_a_transaction_larger_than_the_cache_reads_what_it_has_written(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.execute("PRAGMA cache_size = 10")
    with index.transaction:
        for round_ in range(4):  # pages go to the log, come back, change and go there again
            for number in range(300):
                index.xattrs.set(number, b"user.comment", b"%d.%d " % (number, round_) * 30)
    got = index.execute("SELECT value FROM xattr ORDER BY inode").fetchall()
    assert got == [(b"%d.3 " % number * 30,) for number in range(300)]
    index.close()
    again = Index(tmp_path)
    assert again.execute("SELECT value FROM xattr ORDER BY inode").fetchall() == got
    again.close()


def without_checksums(store: Path) -> None:
    """Write the index as it was before pages had checksums."""
    plain = sqlite3.connect(store / "plain.db", isolation_level=None)
    plain.execute("PRAGMA page_size = 1024")
    index = connect(store / "index.db", "ro&immutable=1")
    for (statement,) in index.execute(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        " ORDER BY type DESC"
    ):
        plain.execute(statement)
    for (table,) in index.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ):
        for row in index.execute(f"SELECT * FROM {table}"):
            plain.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
    plain.execute(f"PRAGMA application_id = {index_schema.APPLICATION_ID}")
    index.close()
    plain.close()
    (store / "plain.db").rename(store / "index.db")


def test_an_index_without_checksums_gets_them_and_keeps_its_rows(tmp_path: Path) -> None:
    index = Index(tmp_path)
    fill(index)
    expected = rows(index)
    index.close()
    without_checksums(tmp_path)
    assert not has_checksums(tmp_path / "index.db")
    looked_at = Index(tmp_path, read_only=True)
    assert rows(looked_at) == expected
    looked_at.close()
    again = Index(tmp_path)
    assert rows(again) == expected
    again.close()
    assert has_checksums(tmp_path / "index.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.db"]
    flip(tmp_path / "index.db", 3000, 0)
    assert seen(tmp_path) is None
