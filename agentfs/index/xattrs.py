"""Extended attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from agentfs.index.connection import IndexConnection

CAPABILITY: Final = b"security.capability"
ACCESS_LIST: Final = b"system.posix_acl_access"
"""Permissions beside those of the mode; what a row of it has: filesystem/acl.py."""
DEFAULT_LIST: Final = b"system.posix_acl_default"
"""Of a directory: what files made in it get."""
LISTS: Final = (ACCESS_LIST, DEFAULT_LIST)

_ASKED_UNBIDDEN: Final = (CAPABILITY, *LISTS)
"""The kernel asks for capabilities before the first write of every file, and for access lists when
anybody but the owner uses one; most stores never hold any."""


class Xattrs:
    """Read and change extended attributes of any inode."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        self.any = index.execute("SELECT 1 FROM xattr LIMIT 1").fetchone() is not None
        """Whether any inode has any."""
        self._absent = set(_ASKED_UNBIDDEN) - self._present()
        self.appeared: Callable[[bytes], None] = lambda _: None
        """Called before the first inode gets one of those that most stores never hold."""

    def _present(self) -> set[bytes]:
        """Those of `_ASKED_UNBIDDEN` that any inode has."""
        if not self.any:
            return set()
        rows = self._execute(
            "SELECT DISTINCT name FROM xattr WHERE name IN (?, ?, ?)", _ASKED_UNBIDDEN
        )
        return {row[0] for row in rows}

    def may_have(self, name: bytes) -> bool:
        """Whether any inode has, or has had, an attribute of that name; of all but those that most
        stores never hold it may be true without.
        """
        return self.any and name not in self._absent

    def may_have_acl(self) -> bool:
        """Whether any inode has, or has had, an access list of either kind."""
        return any(map(self.may_have, LISTS))

    def get(self, inode: int, name: bytes) -> bytes | None:
        if not self.may_have(name):
            return None
        row = self._execute(
            "SELECT value FROM xattr WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return row[0] if row is not None else None

    def set(self, inode: int, name: bytes, value: bytes) -> None:
        self.any = True
        if name in self._absent:
            self._absent.discard(name)
            self.appeared(name)
        self._execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode, name, value))

    def names(self, inode: int) -> list[bytes]:
        rows = self._execute("SELECT name FROM xattr WHERE inode = ? ORDER BY name", (inode,))
        return [row[0] for row in rows]

    def inodes_with(self, name: bytes) -> list[int]:
        """Those that have an attribute of that name; reads all attributes there are."""
        return [row[0] for row in self._execute("SELECT inode FROM xattr WHERE name = ?", (name,))]

    def remove(self, inode: int, name: bytes) -> bool:
        """True when there was one."""
        if not self.may_have(name):
            return False
        cursor = self._execute("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))
        return cursor.rowcount > 0

    def copy_all(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Give the second inode of each pair what the first one has."""
        if self.any:
            self._executemany(
                "INSERT INTO xattr SELECT ?2, name, value FROM xattr WHERE inode = ?1", pairs
            )

    def remove_all(self, inode: int) -> None:
        """Of an inode that is removed."""
        if self.any:
            self._execute("DELETE FROM xattr WHERE inode = ?", (inode,))
