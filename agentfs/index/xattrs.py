"""Extended attributes."""

from __future__ import annotations

from agentfs.index.connection import IndexConnection


class Xattrs:
    """Read and change extended attributes of any inode."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute

    def get(self, inode: int, name: bytes) -> bytes | None:
        row = self._execute(
            "SELECT value FROM xattr WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return row[0] if row is not None else None

    def set(self, inode: int, name: bytes, value: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode, name, value))

    def names(self, inode: int) -> list[bytes]:
        rows = self._execute("SELECT name FROM xattr WHERE inode = ? ORDER BY name", (inode,))
        return [row[0] for row in rows]

    def remove(self, inode: int, name: bytes) -> bool:
        """True when there was one."""
        cursor = self._execute("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))
        return cursor.rowcount > 0
