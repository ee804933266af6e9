"""A damaged index written anew: from what can be read of it, and from a copy of its rows.

Pages have checksums, so a row that can be read is right. A row of the copy is taken where the
page that it should be on cannot be read; where it can be and lacks the row, that was removed since.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentfs.errors import StoreDamaged
from agentfs.index import dump, packing
from agentfs.index._pages import PACKED_SUFFIX
from agentfs.index.connection import INDEX_NAME, IndexConnection, connect
from agentfs.index.contents import UNKNOWN_CHUNK_DIGEST, UNKNOWN_CONTENT_DIGEST
from agentfs.index.runs import list_chunks
from agentfs.index.schema import add_secret

_KEYS = {
    "setting": ("name",),
    "inode": ("id",),
    "dentry": ("parent", "name"),
    "xattr": ("inode", "name"),
    "content": ("id",),
    "chunk": ("id",),
    "block": ("id",),
    "damaged": ("block",),
    "loan": ("inode",),
}

_PLACE = {table: len(columns) for table, columns in _KEYS.items()}
"""How many of the first columns are the key."""

_COLUMNS_ADDED_TO = {"block": 8, "content": 7, "chunk": 7}
"""How many columns a table has by now that had fewer: an index is mended before it is migrated."""

_NUMBER_MAX = (1 << 63) - 1

Row = tuple[Any, ...]


@dataclass(slots=True)
class Salvaged:
    """How many rows of each table came from where."""

    read: dict[str, int] = field(default_factory=dict)
    from_copy: dict[str, int] = field(default_factory=dict)


def rebuild(store: Path, copy: Iterable[bytes]) -> Salvaged:
    """Put a new index in the place of the damaged one, which is kept as `index.db.damaged`.

    :param copy: batches of `dump`; may be empty
    :raises StoreDamaged: there is nothing to make an index of
    """
    old_path = store / INDEX_NAME
    work = store / "rebuilt"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    fresh = IndexConnection(work)
    try:
        old = _opened(old_path)
        try:
            result = _fill(fresh, old, copy)
        finally:
            if old is not None:
                old.close()
    finally:
        fresh.close()
    if not result.read.get("inode") and not result.from_copy.get("inode"):
        shutil.rmtree(work)
        raise StoreDamaged(
            f"{old_path} cannot be read and no copy of the namespace holds; "
            "restore the store from a backup"
        )
    for suffix in ("-wal", "", PACKED_SUFFIX):  # the log first: it must never meet the new index
        if os.path.exists(f"{old_path}{suffix}"):
            os.replace(f"{old_path}{suffix}", f"{old_path}.damaged{suffix}")
    Path(f"{old_path}-shm").unlink(missing_ok=True)
    os.replace(work / INDEX_NAME, old_path)
    work.rmdir()
    directory = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return result


def _opened(path: Path) -> sqlite3.Connection | None:
    try:
        connection = connect(path, "ro")
    except sqlite3.DatabaseError:
        return None
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        is_its_own = packing.belong_together(connection)
    except sqlite3.DatabaseError:
        connection.close()
        return None
    packed = packing.packed_path(path)
    if is_its_own or not packed.exists():
        return connection
    connection.close()  # it would take the pages of another index for its own
    os.replace(packed, f"{path}.damaged{PACKED_SUFFIX}")
    return _opened(path)


def _fill(
    fresh: IndexConnection, old: sqlite3.Connection | None, copy: Iterable[bytes]
) -> Salvaged:
    result = Salvaged()
    copied: dict[str, list[Row]] = {}
    reader = dump.Reader()
    for batch in copy:
        table, rows = reader.read(batch)
        copied.setdefault(table, []).extend(rows)
    with fresh.transaction:
        for table in _KEYS:
            fresh.execute(f"DELETE FROM {table}")
            count, read = 0, set[Row]()
            for row in _readable(old, table) if old is not None else ():
                read.add(row[: _PLACE[table]])
                _insert(fresh, table, row)
                count += 1
            result.read[table] = count
            missing = [row for row in copied.get(table, ()) if row[: _PLACE[table]] not in read]
            for row in missing:
                there = _looked_up(old, table, row)
                if there is not None:
                    _insert(fresh, table, there)
                    result.from_copy[table] = result.from_copy.get(table, 0) + (there is row)
        fresh.execute(
            "INSERT OR IGNORE INTO setting VALUES ('store_id', lower(hex(randomblob(16))))"
        )
        fresh.execute("DELETE FROM setting WHERE name = ?", (packing.SETTING,))
        if add_secret(fresh.execute):
            _forget_keyed_digests(fresh)
        fresh.execute("UPDATE chunk SET digest = substr(digest, 1, 16) WHERE length(digest) > 16")
        list_chunks(fresh.execute)
    return result


def _forget_keyed_digests(fresh: IndexConnection) -> None:
    """The secret they were made with is lost: they are made anew from the bytes."""
    for table, unknown in (("chunk", UNKNOWN_CHUNK_DIGEST), ("content", UNKNOWN_CONTENT_DIGEST)):
        fresh.execute(f"UPDATE {table} SET digest = ? WHERE domain IS NOT NULL", (unknown,))


def _insert(fresh: IndexConnection, table: str, row: Row) -> None:
    row += (None,) * (_COLUMNS_ADDED_TO.get(table, len(row)) - len(row))
    places = ", ".join("?" * len(row))
    fresh.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row)


def _looked_up(old: sqlite3.Connection | None, table: str, row: Row) -> Row | None:
    """What takes the place of a row of the copy: itself, its newer version, or nothing."""
    if old is None:
        return row
    where = " AND ".join(f"{column} = ?" for column in _KEYS[table])
    try:
        there: Row | None = old.execute(
            f"SELECT * FROM {table} WHERE {where}", row[: _PLACE[table]]
        ).fetchone()
    except sqlite3.DatabaseError:
        return row
    return there


# Reading past what is damaged


def _readable(old: sqlite3.Connection, table: str) -> Iterator[Row]:
    """All rows that can be read, in the order of their keys."""
    keys = ", ".join(_KEYS[table])
    places = ", ".join("?" * len(_KEYS[table]))
    start: Row | None = None
    relation = ">="
    while True:
        where = f" WHERE ({keys}) {relation} ({places})" if start is not None else ""
        cursor = None
        try:
            cursor = old.execute(f"SELECT * FROM {table}{where} ORDER BY {keys}", start or ())
        except sqlite3.DatabaseError:
            pass
        while cursor is not None:
            try:
                row = cursor.fetchone()
            except sqlite3.DatabaseError:
                break
            if row is None:
                return
            start, relation = row[: _PLACE[table]], ">"
            yield row
        start = _beyond(old, table, start)
        relation = ">="
        if start is None:
            return


def _beyond(old: sqlite3.Connection, table: str, last: Row | None) -> Row | None:
    """The first key behind a damaged page from which on rows can be read; None: there is none.

    :param last: the last key before it; None: the first page is damaged
    """
    keys = ", ".join(_KEYS[table])
    places = ", ".join("?" * len(_KEYS[table]))

    def is_readable(key: Row) -> bool:
        try:
            old.execute(
                f"SELECT 1 FROM {table} WHERE ({keys}) >= ({places}) ORDER BY {keys} LIMIT 1", key
            ).fetchone()
            return True
        except sqlite3.DatabaseError:
            return False

    if table == "setting":
        return None
    if len(_KEYS[table]) == 1:
        return _next_number(last[0] if last else 0, lambda number: is_readable((number,)))
    if last is not None:
        for name in _names_above(last[1]):
            if is_readable((last[0], name)):
                return (last[0], name)
    found = _next_number(last[0] if last else 0, lambda number: is_readable((number, b"")))
    return (found[0], b"") if found is not None else None


def _next_number(last: int, is_readable: Callable[[int], bool]) -> Row | None:
    step, low = 1, last
    while not is_readable(last + step):
        low = last + step
        step *= 2
        if last + step > _NUMBER_MAX:
            return None
    high = last + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_readable(middle) else (middle, high)
    return (high,)


def _names_above(name: bytes) -> Iterator[bytes]:
    """Names that sort behind *name*, nearer ones first."""
    for length in range(len(name), 0, -1):
        last = name[length - 1]
        for byte in range(last + 1, 256, 16):
            yield name[: length - 1] + bytes([byte])
