"""Names: which directory calls which inode what."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from agentfs.index.connection import IndexConnection
from agentfs.index.inodes import COLUMNS, Inodes
from agentfs.model import Inode


class Dentries:
    """Read and change names; callers bring the transaction where several rows change."""

    def __init__(self, index: IndexConnection, inodes: Inodes) -> None:
        self._index = index
        self._inodes = inodes
        self._execute = index.execute
        self._executemany = index.executemany

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        row = self._execute(
            f"SELECT {COLUMNS} FROM dentry JOIN inode ON inode.id = dentry.inode"
            " WHERE dentry.parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        if row is None:
            return None
        self._inodes.keep(row)
        return Inode(*row)

    def insert(self, parent: int, name: bytes, inode: int) -> None:
        """:raises FileExistsError: the name is taken"""
        try:
            self._execute("INSERT INTO dentry VALUES (?, ?, ?)", (parent, name, inode))
        except sqlite3.IntegrityError as error:
            raise FileExistsError(name) from error

    def insert_all(self, entries: Iterable[tuple[int, bytes, int]]) -> None:
        """(parent, name, inode) of names that are not taken."""
        self._executemany("INSERT INTO dentry VALUES (?, ?, ?)", entries)

    def point(self, parent: int, name: bytes, inode: int) -> None:
        """Make a name, new or not, mean *inode*."""
        self._execute("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", (parent, name, inode))

    def delete(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def delete_below_unlinked(self) -> list[int]:
        """Remove all names below directories without a name; the inode of each."""
        rows = self._execute(
            "WITH RECURSIVE doomed (id) AS (SELECT id FROM inode WHERE nlink = 0 UNION ALL"
            " SELECT dentry.inode FROM doomed JOIN dentry ON dentry.parent = doomed.id)"
            " DELETE FROM dentry WHERE parent IN doomed RETURNING inode"
        ).fetchall()
        return [row[0] for row in rows]

    def is_empty(self, parent: int) -> bool:
        return (
            self._execute("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)).fetchone()
            is None
        )

    def note_exchange(self, parent: int, request: int) -> None:
        """Remember the last exchange that was asked for in a directory: one more undoes it."""
        self._index.set_setting(f"exchange:{parent}", request)

    def last_exchange(self, parent: int) -> int | None:
        request = self._index.setting(f"exchange:{parent}")
        return None if request is None else int(request)

    def forget_exchanges(self) -> None:
        """At the start of a mount, whose requests are numbered anew."""
        self._execute("DELETE FROM setting WHERE name LIKE 'exchange:%'")

    def names_of(self, inode: int) -> list[tuple[int, bytes]]:
        """(parent, name) of every name of an inode; reads all names there are."""
        return self._execute("SELECT parent, name FROM dentry WHERE inode = ?", (inode,)).fetchall()

    def means(self, parent: int, name: bytes, inode: int) -> bool:
        """Whether a name leads to that inode."""
        row = self._execute(
            "SELECT inode FROM dentry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return row is not None and row[0] == inode

    def name_in(self, parent: int, inode: int) -> bytes | None:
        """A name that a directory has for an inode; reads its names up to there."""
        row = self._execute(
            "SELECT name FROM dentry WHERE parent = ? AND inode = ? LIMIT 1", (parent, inode)
        ).fetchone()
        return row[0] if row is not None else None

    def after(self, parent: int, name: bytes, limit: int) -> list[tuple[Any, ...]]:
        """Up to *limit* entries that sort after *name*, in byte order: the columns of their
        inodes in the order of `Inode`, then the name.
        """
        return self._execute(
            f"SELECT {COLUMNS}, name FROM dentry JOIN inode ON inode.id = dentry.inode"
            " WHERE dentry.parent = ? AND name > ? ORDER BY name LIMIT ?",
            (parent, name, limit),
        ).fetchall()

    def kept_after(self, parent: int, name: bytes, limit: int) -> list[tuple[Any, ...]] | None:
        """The same, in 0.6 us an entry instead of 1.3, if all their rows are remembered."""
        found = self._execute(
            "SELECT inode, name FROM dentry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
            (parent, name, limit),
        ).fetchall()
        kept = self._inodes.kept
        try:
            return [(*kept[inode], after) for inode, after in found]
        except KeyError:
            return None
