"""The index's log: what it costs, and logs that other versions left."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.namespace import Caller, Namespace
from agentfs.filesystem.staging import Staging
from agentfs.index import Index
from agentfs.model import ROOT_INODE

FILES = 1000
CREATE_BYTES_MAX = 550
REPLACE_BYTES_MAX = 1100

CALLER = Caller(0, 0)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = Index(tmp_path)
    made.checkpoint()
    return made


@pytest.fixture
def namespace(index: Index, tmp_path: Path) -> Iterator[Namespace]:
    staging = Staging(tmp_path, index.store_id, 0)
    yield Namespace(index, InodeTable(index, staging))
    staging.close()


def log_bytes(index: Index) -> int:
    return index.path.with_name("index.db-wal").stat().st_size


def test_making_a_file_writes_what_changes_and_not_pages(
    index: Index, namespace: Namespace
) -> None:
    for number in range(FILES):
        namespace.create(ROOT_INODE, b"file-%06d.json" % number, 0o100644, CALLER)
    assert log_bytes(index) <= FILES * CREATE_BYTES_MAX
    index.close()


def test_replacing_a_file_writes_what_changes_and_not_pages(
    index: Index, namespace: Namespace
) -> None:
    for number in range(FILES):
        name = b"%d.json" % (number % 30)
        namespace.create(ROOT_INODE, name + b".tmp", 0o100644, CALLER)
        namespace.rename(ROOT_INODE, name + b".tmp", ROOT_INODE, name, 0)
    assert log_bytes(index) <= FILES * REPLACE_BYTES_MAX
    index.close()


def leave_an_earlier_versions_log(store: Path) -> None:
    """Which has pages, and a transaction of the migrations alone that version knew."""
    other = store / "other"
    other.mkdir()
    shutil.copyfile(store / "index.db", other / "index.db")
    connection = sqlite3.connect(other / "index.db", isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("INSERT INTO setting VALUES ('left', 'in the log')")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'differences'")
    shutil.copyfile(other / "index.db-wal", store / "index.db-wal")
    connection.close()


def test_the_log_that_an_earlier_version_left_is_read_and_folded_in(tmp_path: Path) -> None:
    Index(tmp_path).close()
    leave_an_earlier_versions_log(tmp_path)
    index = Index(tmp_path)
    assert index.setting("left") == "in the log"
    assert log_bytes(index) == 0
    index.set_setting("more", "of ours")
    assert index.path.with_name("index.db-wal").read_bytes().startswith(b"agentLOG")
    index.close()


def test_a_store_whose_log_has_differences_says_so_to_an_earlier_version(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.set_setting("only", "in the log")
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copyfile(index.path, killed / "index.db")  # its log says nothing to that version
    connection = sqlite3.connect(killed / "index.db")
    rows = connection.execute("SELECT name FROM _sqlite_migrations").fetchall()
    assert ("differences",) in rows
    connection.close()
    index.close()
