"""Regular files that are open or staged, and which inodes the kernel knows.

All of this is touched on the event loop's thread only. An inode's attributes
live in its row; while it is here, `LiveFile.inode` is the one copy in memory
that every handler works on, and overrides the row's size, content and times.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator

import trio

from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.index import Index
from agentfs.model import Inode

_DIRECTORIES_KEPT = 4096

_REAP_AT = 256
"""Unlinked inodes are removed this many at a time: one transaction instead of one each."""


class LiveFile:
    """A regular file while it is open or staged."""

    __slots__ = (
        "changed_at",
        "dirty_since",
        "handles",
        "inode",
        "lock",
        "may_be_sparse",
        "name",
        "sealed_version",
        "staged",
        "version",
        "writers",
    )

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.staged: StagedFile | None = None
        self.handles = 0
        self.writers = 0
        """Handles among them that are open for writing."""
        self.lock = trio.Lock()
        """Held while the file changes between staged and sealed."""
        self.may_be_sparse = False
        """The staged copy may have holes."""
        self.version = 0
        """Counts changes of the bytes; equal to sealed_version: nothing to seal."""
        self.sealed_version = 0
        self.changed_at = 0.0
        """time.monotonic() of the last change, or of the last close after one."""
        self.dirty_since = 0.0
        """time.monotonic() of the first change after the last seal."""
        self.name: tuple[int, bytes] = (0, b"")
        """(parent, name) it was made under, when known: similar files are sealed together."""

    @property
    def is_dirty(self) -> bool:
        return self.version != self.sealed_version

    def touch(self, now_ns: int) -> None:
        """Note that the bytes changed."""
        inode = self.inode
        inode.mtime_ns = inode.ctime_ns = now_ns
        self.changed_at = time.monotonic()
        if self.version == self.sealed_version:
            self.dirty_since = self.changed_at
        self.version += 1


class InodeTable:
    """Finds inodes, live or not, and removes those that neither a name nor the kernel holds."""

    def __init__(self, index: Index, staging: Staging) -> None:
        self._index = index
        self._staging = staging
        self._live: dict[int, LiveFile] = {}
        self._directories: dict[int, Inode] = {}
        """Recently used ones: the kernel asks for a directory after each change in it."""
        self._lookups: dict[int, int] = {}
        self._unlinked: set[int] = set()
        """Known to the kernel or open, without a name."""
        self._ghosts: dict[int, Inode] = {}
        """Those of them whose rows are gone already, because they were not open."""
        self._reapable: list[int] = []

    def get(self, inode_id: int) -> Inode:
        """:raises OSError: ESTALE, when the inode is gone"""
        live = self._live.get(inode_id)
        if live is not None:
            return live.inode
        directory = self._directories.get(inode_id)
        if directory is not None:
            return directory
        inode = self._index.inodes.get(inode_id) or self._ghosts.get(inode_id)
        if inode is None:
            raise OSError(errno.ESTALE, "inode is gone", inode_id)
        if inode.is_directory:
            self._remember(inode)
        return inode

    def _remember(self, directory: Inode) -> None:
        if len(self._directories) >= _DIRECTORIES_KEPT:
            del self._directories[next(iter(self._directories))]
        self._directories[directory.id] = directory

    def current(self, inode: Inode) -> Inode:
        """The live copy of an inode just read from its row, or the row."""
        live = self._live.get(inode.id)
        if live is not None:
            return live.inode
        return self._directories.get(inode.id, inode)

    def is_open(self, inode_id: int) -> bool:
        live = self._live.get(inode_id)
        return live is not None and live.handles > 0

    def live(self, inode_id: int) -> LiveFile | None:
        return self._live.get(inode_id)

    def enliven(self, inode: Inode) -> LiveFile:
        """The live file of a regular inode, made when there is none."""
        live = self._live.get(inode.id)
        if live is None:
            live = self._live[inode.id] = LiveFile(inode)
        return live

    def files(self) -> Iterable[LiveFile]:
        return self._live.values()

    # Lookup counts

    def looked_up(self, inode_id: int) -> None:
        """The kernel was told of this inode once more."""
        lookups = self._lookups
        lookups[inode_id] = lookups.get(inode_id, 0) + 1

    def forget(self, inode_id: int, count: int) -> None:
        left = self._lookups.get(inode_id, 0) - count
        if left > 0:
            self._lookups[inode_id] = left
            return
        self._lookups.pop(inode_id, None)
        if inode_id in self._unlinked:
            self._retire(inode_id)

    # Ends

    def unlinked(self, inode: Inode, *, is_removed: bool) -> None:
        """The last name of an inode has gone, and its row as well if *is_removed*."""
        self._unlinked.add(inode.id)
        if is_removed:
            self._ghosts[inode.id] = inode
        self._retire(inode.id)

    def is_ghost(self, inode_id: int) -> bool:
        """Known to the kernel, but without a row."""
        return inode_id in self._ghosts

    def ghost_contents(self) -> set[int]:
        """Contents that a path like /proc/self/fd may still open, though no row names them."""
        return {inode.content for inode in self._ghosts.values() if inode.content is not None}

    def released(self, live: LiveFile) -> None:
        """A handle was closed: let go of what only open files need."""
        if live.handles:
            return
        if live.staged is not None:
            live.staged.close()
        if live.inode.id in self._unlinked:
            self._retire(live.inode.id)
        elif live.staged is None:
            self._live.pop(live.inode.id, None)

    def _retire(self, inode_id: int) -> None:
        live = self._live.get(inode_id)
        if inode_id in self._lookups or (live is not None and live.handles):
            return
        self._unlinked.discard(inode_id)
        if live is not None:
            del self._live[inode_id]
            if live.staged is not None:
                self._staging.discard(live.staged)
                live.staged = None
        self._directories.pop(inode_id, None)
        if self._ghosts.pop(inode_id, None) is not None:
            return
        self._reapable.append(inode_id)
        if len(self._reapable) >= _REAP_AT:
            self.reap()

    def reap(self) -> None:
        """Remove the rows of inodes that nothing holds any more."""
        if self._reapable:
            reapable, self._reapable = self._reapable, []
            with self._index.transaction:
                for inode_id in reapable:
                    self._index.remove_inode(inode_id)

    def abandon_kernel_state(self) -> None:
        """The mount is gone: nothing is open, nothing is known to the kernel."""
        self._lookups.clear()
        for live in list(self._live.values()):
            live.handles = live.writers = 0
            self.released(live)
        for inode_id in list(self._unlinked):
            self._retire(inode_id)
        self.reap()

    def drop_all_unlinked(self) -> None:
        """At the start and the end of a mount, no unlinked inode can be in use."""
        with self._index.transaction:
            for inode_id in self._index.inodes.unlinked():
                self._index.remove_inode(inode_id)

    def staged_files(self) -> Iterator[LiveFile]:
        return (live for live in self._live.values() if live.staged is not None)
