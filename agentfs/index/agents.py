"""Agents: which directories are theirs, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agentfs.index.connection import IndexConnection
from agentfs.index.schema import IS_AGENT
from agentfs.index.xattrs import Xattrs
from agentfs.model import AGENT_ATTRIBUTE, ROOT_INODE

AGENTS_DIRECTORY: Final = b"agents"
"""Each directory in this one, which lies in the root, is an agent's, as any other that says so
(AGENT_ATTRIBUTE)."""

STATE_ATTRIBUTE: Final = b"user.agentfs.state"
"""Of an agent's directory: it is paused; absent: what it is shows in what it does."""

_DIRECTORY, _REGULAR = 0o040000, 0o100000
_TYPE = "mode & 61440"  # S_IFMT


class AgentFile(NamedTuple):
    """A regular file below a directory of an agent, as its row has it."""

    directory: int
    inode: int
    size: int
    content: int | None
    parent: int | None
    atime_ns: int
    mtime_ns: int


class Agents:
    """Look agents up by the directories that are theirs."""

    def __init__(self, index: IndexConnection, xattrs: Xattrs) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        self._xattrs = xattrs

    def directory(self) -> int | None:
        """The inode of /agents."""
        row = self._execute(
            "SELECT inode FROM dentry WHERE parent = ? AND name = ?", (ROOT_INODE, AGENTS_DIRECTORY)
        ).fetchone()
        return row[0] if row is not None else None

    def directories(self) -> list[tuple[int, bytes]]:
        """(inode, name of the agent) of every directory that is an agent's."""
        marked = dict(
            self._execute(
                "SELECT inode, value FROM xattr JOIN inode ON inode.id = xattr.inode"
                f" WHERE {IS_AGENT} AND {_TYPE} = {_DIRECTORY} AND nlink > 0"
            )
        )
        placed = self._execute(
            "SELECT inode, name FROM dentry JOIN inode ON inode.id = dentry.inode"
            f" WHERE dentry.parent = ? AND {_TYPE} = {_DIRECTORY}",
            (self.directory(),),
        )
        return [*(row for row in placed if row[0] not in marked), *marked.items()]

    def directories_of(self, name: bytes) -> list[int]:
        """Those of one agent. What lies in /agents is not read for it: 20 us."""
        marked = self._execute(
            "SELECT inode FROM xattr JOIN inode ON inode.id = xattr.inode"
            f" WHERE {IS_AGENT} AND value = ? AND {_TYPE} = {_DIRECTORY} AND nlink > 0",
            (name,),
        )
        placed = self._execute(
            "SELECT inode FROM dentry JOIN inode ON inode.id = dentry.inode"
            f" WHERE dentry.parent = ? AND dentry.name = ? AND {_TYPE} = {_DIRECTORY}",
            (self.directory(), name),
        )
        unmarked = (row[0] for row in placed if self._xattrs.get(row[0], AGENT_ATTRIBUTE) is None)
        return [*unmarked, *(row[0] for row in marked)]

    def rename(self, directories: Iterable[int], name: bytes, new: bytes) -> None:
        """Let those directories that are marked as one agent's be another's. In a transaction."""
        self._executemany(
            "UPDATE xattr SET value = ? WHERE inode = ? AND name = ? AND value = ?",
            ((new, directory, AGENT_ATTRIBUTE, name) for directory in directories),
        )

    def adopt(self, directory: int, parent: int, name: bytes) -> None:
        """Make a directory an agent's, who is not paused. In a transaction."""
        if parent == self.directory():
            self._xattrs.remove(directory, AGENT_ATTRIBUTE)  # its place says so, and its name
        else:
            self._xattrs.set(directory, AGENT_ATTRIBUTE, name)
        self._xattrs.remove(directory, STATE_ATTRIBUTE)

    def files(self, directories: Sequence[int]) -> Iterable[AgentFile]:
        """All regular files below some directories that are agents', by each of their names.

        What lies below another agent's directory is that one's. Some 3 us each.
        """
        rows = self._execute(
            "WITH RECURSIVE below (agent, id) AS ("
            "SELECT value, value FROM json_each(?1) UNION ALL"
            " SELECT agent, dentry.inode FROM below JOIN dentry ON dentry.parent = below.id"
            " WHERE dentry.parent IS NOT ?2 AND NOT EXISTS"
            f" (SELECT 1 FROM xattr WHERE xattr.inode = dentry.inode AND {IS_AGENT}))"
            " SELECT agent, inode.id, size, content, parent, atime, mtime"
            f" FROM below JOIN inode ON inode.id = below.id WHERE {_TYPE} = {_REGULAR}",
            (json.dumps(list(directories)), self.directory()),
        )
        return map(AgentFile._make, rows)
