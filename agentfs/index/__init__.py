"""What the store knows, in SQLite: names, attributes, recipes and places. No chunk bytes."""

from __future__ import annotations

from pathlib import Path

from agentfs.index.connection import (
    INDEX_NAME,
    IndexConnection,
    Unreadable,
    damaged_pages,
    disk_error,
)
from agentfs.index.contents import ChunkLost, Contents
from agentfs.index.dentries import Dentries
from agentfs.index.inodes import Inodes
from agentfs.index.xattrs import Xattrs

__all__ = ["INDEX_NAME", "ChunkLost", "Index", "Unreadable", "damaged_pages", "disk_error"]


class Index(IndexConnection):
    """An open index with its tables by noun."""

    def __init__(self, store: Path, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        with self.starting():
            self.inodes = Inodes(self)
            self.dentries = Dentries(self)
            self.xattrs = Xattrs(self)
            self.contents = Contents(self)

    def remove_inode(self, inode_id: int) -> None:
        """Remove an inode with all that is its own. In a transaction."""
        self.contents.release(self.inodes.delete(inode_id))
        self.xattrs.remove_all(inode_id)

    def remove_unlinked(self) -> None:
        """Remove the inodes without a name, and all below directories among them.

        Such a directory is a tree that was being made, or removed. In a transaction.
        """
        self.inodes.drop_links(self.dentries.delete_below_unlinked())
        for inode_id in self.inodes.unlinked():
            self.remove_inode(inode_id)
