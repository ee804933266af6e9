"""Loans: files that name the content of what they replaced until their own bytes are sealed."""

from __future__ import annotations

from collections.abc import Container

from agentfs.index.connection import IndexConnection


class Loans:
    """The numbers of such inodes; known without a query, as nearly all inodes have none."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._inodes: set[int] = set()
        self.reread()

    def reread(self) -> None:
        """After a transaction that was rolled back."""
        self._inodes = {row[0] for row in self._execute("SELECT inode FROM loan")}

    def __contains__(self, inode_id: int) -> bool:
        return inode_id in self._inodes

    def add(self, inode_id: int) -> None:
        """In a transaction."""
        self._execute("INSERT OR IGNORE INTO loan VALUES (?)", (inode_id,))
        self._inodes.add(inode_id)

    def end(self, inode_id: int) -> None:
        """The inode's content is its own, or it has none. In a transaction."""
        if inode_id in self._inodes:
            self._execute("DELETE FROM loan WHERE inode = ?", (inode_id,))
            self._inodes.discard(inode_id)

    def keep_only(self, inode_ids: Container[int]) -> None:
        """End all others. In a transaction."""
        for inode_id in [one for one in self._inodes if one not in inode_ids]:
            self.end(inode_id)
