"""Extended attributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentfs.index.connection import IndexConnection

CAPABILITY: Final = b"security.capability"


class Xattrs:
    """Read and change extended attributes of any inode."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        self.any = index.execute("SELECT 1 FROM xattr LIMIT 1").fetchone() is not None
        """Whether any inode has any."""
        self.any_capability = self.any and self._has_capability()
        """Whether any has had capabilities. The kernel asks for them before the first write of
        every file, and most stores never hold one."""

    def _has_capability(self) -> bool:
        row = self._execute("SELECT 1 FROM xattr WHERE name = ? LIMIT 1", (CAPABILITY,)).fetchone()
        return row is not None

    def get(self, inode: int, name: bytes) -> bytes | None:
        if not self.any or (name == CAPABILITY and not self.any_capability):
            return None
        row = self._execute(
            "SELECT value FROM xattr WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return row[0] if row is not None else None

    def set(self, inode: int, name: bytes, value: bytes) -> None:
        self.any = True
        self.any_capability = self.any_capability or name == CAPABILITY
        self._execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode, name, value))

    def names(self, inode: int) -> list[bytes]:
        rows = self._execute("SELECT name FROM xattr WHERE inode = ? ORDER BY name", (inode,))
        return [row[0] for row in rows]

    def inodes_with(self, name: bytes) -> list[int]:
        """Those that have an attribute of that name; reads all attributes there are."""
        return [row[0] for row in self._execute("SELECT inode FROM xattr WHERE name = ?", (name,))]

    def remove(self, inode: int, name: bytes) -> bool:
        """True when there was one."""
        if not self.any or (name == CAPABILITY and not self.any_capability):
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
