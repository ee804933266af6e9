"""What the store knows, in SQLite: names, attributes, recipes and places. No chunk bytes."""

from __future__ import annotations

from pathlib import Path

from agentfs.index.agents import Agents
from agentfs.index.connection import (
    CACHE_KIB,
    COPIES_DIRECTORY,
    INDEX_NAME,
    IndexConnection,
    Unreadable,
    commits_behind_end,
    damaged_pages,
    disk_error,
)
from agentfs.index.contents import ChunkLost, Contents
from agentfs.index.dentries import Dentries
from agentfs.index.inodes import Inodes
from agentfs.index.loans import Loans
from agentfs.index.xattrs import Xattrs

__all__ = [
    "CACHE_KIB",
    "COPIES_DIRECTORY",
    "INDEX_NAME",
    "ChunkLost",
    "Index",
    "Unreadable",
    "commits_behind_end",
    "damaged_pages",
    "disk_error",
]


class Index(IndexConnection):
    """An open index with its tables by noun."""

    def __init__(self, store: Path, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        with self.starting():
            self.store_id = self._read_store_id()
            """32 hexadecimal digits made with the store."""
            self.inodes = Inodes(self)
            self.dentries = Dentries(self, self.inodes)
            self.xattrs = Xattrs(self)
            self.contents = Contents(self)
            self.loans = Loans(self)
            self.agents = Agents(self, self.xattrs)

    def _read_store_id(self) -> str:
        (value,) = self.execute("SELECT value FROM setting WHERE name = 'store_id'").fetchone()
        return str(value)

    def renew_store_id(self) -> None:
        """For a store that was copied: what lies elsewhere under its id is the other's."""
        self.execute(
            "UPDATE setting SET value = lower(hex(randomblob(16))) WHERE name = 'store_id'"
        )
        self.store_id = self._read_store_id()

    @property
    def secret(self) -> bytes:
        """32 bytes made with the store, of which the keys of domains are made."""
        return bytes.fromhex(self.setting("secret"))

    @property
    def trained_contents(self) -> int:
        """How many contents had been made when dictionaries were trained; 0: never."""
        return int(self.setting("trained_contents") or 0)

    def note_training(self, contents: int) -> None:
        """In a transaction."""
        self.set_setting("trained_contents", contents)

    @property
    def lost_commits(self) -> int:
        """Transactions that are known to be lost, and nobody has repaired the store since."""
        return int(self.setting("lost_commits") or 0)

    def note_lost_commits(self, count: int) -> None:
        """So many more."""
        self.set_setting("lost_commits", self.lost_commits + count)

    def forget_lost_commits(self) -> None:
        """Somebody has been told, and has had the store repaired."""
        self.execute("DELETE FROM setting WHERE name = 'lost_commits'")

    def remove_inode(self, inode_id: int) -> None:
        """Remove an inode with all that is its own. In a transaction."""
        self.contents.release(self.inodes.delete(inode_id))
        self.xattrs.remove_all(inode_id)
        self.loans.end(inode_id)

    def remove_unlinked(self) -> None:
        """Remove the inodes without a name, and all below directories among them.

        Such a directory is a tree that was being made, or removed. In a transaction.
        """
        self.inodes.drop_links(self.dentries.delete_below_unlinked())
        for inode_id in self.inodes.unlinked():
            self.remove_inode(inode_id)
