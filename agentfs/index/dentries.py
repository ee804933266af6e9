"""Names: which directory calls which inode what."""

from __future__ import annotations

import sqlite3
from typing import Any

from agentfs.index.connection import IndexConnection
from agentfs.index.inodes import COLUMNS
from agentfs.model import Inode


class Dentries:
    """Read and change names; callers bring the transaction where several rows change."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        row = self._execute(
            f"SELECT {COLUMNS} FROM dentry JOIN inode ON inode.id = dentry.inode"
            " WHERE dentry.parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        return Inode(*row) if row is not None else None

    def insert(self, parent: int, name: bytes, inode: int) -> None:
        """:raises FileExistsError: the name is taken"""
        try:
            self._execute("INSERT INTO dentry VALUES (?, ?, ?)", (parent, name, inode))
        except sqlite3.IntegrityError as error:
            raise FileExistsError(name) from error

    def point(self, parent: int, name: bytes, inode: int) -> None:
        """Make a name, new or not, mean *inode*."""
        self._execute("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", (parent, name, inode))

    def delete(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def is_empty(self, parent: int) -> bool:
        return (
            self._execute("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)).fetchone()
            is None
        )

    def names_of(self, inode: int) -> list[tuple[int, bytes]]:
        """(parent, name) of every name of an inode; reads all names there are."""
        return self._execute("SELECT parent, name FROM dentry WHERE inode = ?", (inode,)).fetchall()

    def after(self, parent: int, name: bytes, limit: int) -> list[tuple[Any, ...]]:
        """Up to *limit* entries that sort after *name*, in byte order: the columns of their
        inodes in the order of `Inode`, then the name.
        """
        return self._execute(
            f"SELECT {COLUMNS}, name FROM dentry JOIN inode ON inode.id = dentry.inode"
            " WHERE dentry.parent = ? AND name > ? ORDER BY name LIMIT ?",
            (parent, name, limit),
        ).fetchall()
