"""/.agentfs: what the daemon knows, as files that nobody can change.

    stats.json           what `agentfs stats --json` says
    metrics              the same for Prometheus
    agents/NAME.json     one agent each
    by-hash/DIGEST       every content, under its BLAKE3

None of it has rows, and no listing of the root shows it: a name that the root does not
have is looked up here, and only then. So a file of that name which a store has already goes
before the view. Nothing can be made under the name.

Nodeids say what they mean, so any worker knows them: the first few are the fixed names, an
agent's is that of its directory and a content's its id, each from a base on. As ids of contents
may be given again, a content stays in the store for as long as the kernel knows it here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from agentfs.filesystem import metrics
from agentfs.filesystem.census import Census
from agentfs.filesystem.livefile import InodeTable
from agentfs.index import Index
from agentfs.model import NAME_BYTES_MAX, ROOT_INODE, VIEW_FIRST, AgentUse, Inode

_TOP, _AGENTS, _BY_HASH, _STATS, _METRICS = range(VIEW_FIRST, VIEW_FIRST + 5)
_AGENT_FIRST: Final = VIEW_FIRST + (1 << 37)
_CONTENT_FIRST: Final = VIEW_FIRST + (1 << 38)

_FIXED: Final = {
    b"agents": _AGENTS,
    b"by-hash": _BY_HASH,
    b"metrics": _METRICS,
    b"stats.json": _STATS,
}
_MODES: Final = {
    _TOP: stat.S_IFDIR | 0o555,
    # Names and contents that file modes may hide from others; sums that say whether bytes were new.
    _AGENTS: stat.S_IFDIR | 0o500,
    _BY_HASH: stat.S_IFDIR | 0o500,
    _STATS: stat.S_IFREG | 0o400,
    _METRICS: stat.S_IFREG | 0o400,
}
_SUFFIX: Final = b".json"
_DIGEST: Final = re.compile(rb"[0-9a-f]{64}")
_BATCH: Final = 128

Entry = tuple[int, bytes, Inode]
"""(position after it, name, inode) of one name of a directory."""


class View:
    """The view of one volume."""

    def __init__(self, index: Index, table: InodeTable, census: Census) -> None:
        self._index = index
        self._table = table
        self._census = census
        self._began_ns = time.time_ns()
        self._owner = os.geteuid(), os.getegid()
        self._contents: set[int] = set()
        """That the kernel may know here."""
        self.stats: Callable[[], dict[str, Any]]
        """What `agentfs stats` says; set by who knows."""

    # Names

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """What a name means for which `is_in_view` is true; None: nothing."""
        if parent == ROOT_INODE:
            return self.inode(_TOP)
        if parent == _TOP and name in _FIXED:
            return self.inode(_FIXED[name])
        if parent == _AGENTS:
            found = (self._agent_inode(id_) for id_, one in self._agents() if one == name)
            return next(found, None)
        if parent == _BY_HASH and _DIGEST.fullmatch(name):
            content = self._index.contents.find(bytes.fromhex(name.decode()))
            return None if content is None else self.inode(_CONTENT_FIRST + content)
        return None

    def inode(self, nodeid: int) -> Inode | None:
        """What a nodeid from VIEW_FIRST on means; None: nothing, or nothing any more."""
        if nodeid in _MODES:
            return self._inode(nodeid, _MODES[nodeid], _TOP if nodeid != _TOP else ROOT_INODE)
        if nodeid < _CONTENT_FIRST:
            is_there = any(id_ == nodeid for id_, _ in self._agents())
            return self._agent_inode(nodeid) if is_there else None
        content = nodeid - _CONTENT_FIRST
        size = self._index.contents.size(content)
        if not size:
            return None
        self._contents.add(content)
        inode = self._inode(nodeid, stat.S_IFREG | 0o400, _BY_HASH)
        inode.size, inode.content = size, content
        return inode

    def _agent_inode(self, nodeid: int) -> Inode:
        return self._inode(nodeid, stat.S_IFREG | 0o400, _AGENTS)

    def _inode(self, nodeid: int, mode: int, parent: int) -> Inode:
        is_directory = stat.S_ISDIR(mode)
        return Inode(
            id=nodeid,
            mode=mode,
            uid=self._owner[0],
            gid=self._owner[1],
            nlink=2 if is_directory else 1,
            size=0,  # of a text too, as in /proc: it is made when it is opened
            atime_ns=time.time_ns(),
            mtime_ns=self._began_ns,
            ctime_ns=self._began_ns,
            parent=parent if is_directory else None,  # an open of it says nothing of an agent
        )

    def _agents(self) -> list[tuple[int, bytes]]:
        """(nodeid, name of its file) of each agent, by name."""
        first: dict[bytes, int] = {}
        for directory, name in sorted(self._index.agents.directories()):
            if b"/" not in name and 0 < len(name) + len(_SUFFIX) <= NAME_BYTES_MAX:
                first.setdefault(name, directory)
        return [(_AGENT_FIRST + first[name], name + _SUFFIX) for name in sorted(first)]

    def entries(self, directory: int, position: int) -> Iterator[Entry]:
        """The names of one of its directories from a position on."""
        here = self._table.get(directory)
        above = self._table.get(here.parent or ROOT_INODE)
        for after, name, inode in ((1, b".", here), (2, b"..", above)):
            if position < after:
                yield after, name, inode
        start = max(position, 2)
        if directory == _BY_HASH:
            yield from self._contents_after(start - 2)
            return
        named = (
            [(name, self._inode(id_, _MODES[id_], _TOP)) for name, id_ in _FIXED.items()]
            if directory == _TOP
            else [(name, self._agent_inode(id_)) for id_, name in self._agents()]
        )
        for after, (name, inode) in enumerate(named[start - 2 :], start + 1):
            yield after, name, inode

    def _contents_after(self, content: int) -> Iterator[Entry]:
        """A position is the id of a content, so it stays good while others come and go."""
        while batch := self._index.contents.digests_after(content, _BATCH):
            for content, digest in batch:
                inode = self.inode(_CONTENT_FIRST + content)
                if inode is not None:
                    yield content + 2, digest.hex().encode(), inode

    # Bytes

    def is_text(self, nodeid: int) -> bool:
        """Whether it is a file that `text` makes; else it has a content."""
        return nodeid < _CONTENT_FIRST

    async def text(self, nodeid: int) -> bytes:
        """A file as it is now.

        :raises OSError: ESTALE, the agent has gone
        """
        if nodeid == _STATS:
            return _json(self.stats())
        if nodeid == _METRICS:
            return metrics.exposition(self.stats(), await self._census.uses())
        use = await self._use(nodeid)
        if use is None:
            raise OSError(errno.ESTALE, "no such agent any more")
        return _json(asdict(use))

    async def _use(self, nodeid: int) -> AgentUse | None:
        name = next((name for id_, name in self._agents() if id_ == nodeid), b"")
        wanted = name.removesuffix(_SUFFIX).decode(errors="backslashreplace")
        return next((use for use in await self._census.uses() if use.name == wanted), None)

    def contents_in_use(self) -> set[int]:
        """Contents that programs may have open here, though no inode names them."""
        self._contents = {
            content for content in self._contents if self._table.is_known(_CONTENT_FIRST + content)
        }
        return self._contents


class ViewStream:
    """One of its directories, open."""

    def __init__(self, view: View, directory: int) -> None:
        self._view = view
        self._directory = directory

    def entries(self, position: int) -> Iterator[Entry]:
        """See `View.entries`."""
        return self._view.entries(self._directory, position)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, default=str).encode() + b"\n"
