"""Regular files that are open or staged, and which inodes the kernel knows.

All of this is touched on the event loop's thread only. An inode's attributes
live in its row; while it is here, `LiveFile.inode` is the one copy in memory
that every handler works on, and overrides the row's size, content and times.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from agentfs.filesystem.mutex import Mutex
from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.index import Index
from agentfs.model import SECTOR_BYTES, VIEW_FIRST, Inode

if TYPE_CHECKING:
    from agentfs.filesystem.images import Image

log = logging.getLogger(__name__)

_Row = TypeVar("_Row")

_DIRECTORIES_KEPT = 4096

_MISSING_KEPT = 8192
"""Names, in 1.5 MB."""

_USES_KEPT = 65_536
"""Directories, in 8 MB."""

_UNKNOWN_LOOKUPS = 1 << 62

_PATIENCE_MAX_S = 480.0
"""A thousand files of 10 MB that are held open are then hashed in 2 % of a core."""

_REAP_AT = 256
"""Unlinked inodes are removed this many at a time: one transaction instead of one each."""

_READS_AT = 256
"""So many times of access are written at a time, or those of half a second."""


class LiveFile:
    """A regular file while it is open or staged."""

    __slots__ = (
        "_lock",
        "_opening",
        "backing",
        "changed_at",
        "closed_at",
        "dirty_since",
        "handles",
        "image",
        "inode",
        "is_attached",
        "is_passed_through",
        "may_be_sparse",
        "name",
        "nodeid",
        "reopened",
        "sealed_version",
        "staged",
        "taken_bytes",
        "unchanged_since",
        "version",
        "was_written",
        "writers",
    )

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.nodeid = inode.id
        """By which the kernel knows it; differs from the inode's number after a split."""
        self.staged: StagedFile | None = None
        self.image: Image | None = None
        """The resident image that the kernel reads instead of asking us."""
        self.backing: int | None = None
        """Number under which the relay knows the staged copy."""
        self.is_passed_through = False
        """The kernel reads and writes the staged copy itself: sizes and times are its."""
        self.is_attached = False
        """The relay knows it although we serve it; see `Grants`."""
        self.handles = 0
        self.writers = 0
        """Handles among them that are open for writing, and one more while it is kept open."""
        self.closed_at = -math.inf
        """When who had it open for writing last closed it."""
        self.reopened = 0
        """How often in a row it was opened for writing soon after that."""
        self._lock: Mutex | None = None
        self._opening: Mutex | None = None
        self.may_be_sparse = False
        """The staged copy may have holes."""
        self.taken_bytes = 0
        """What the staged copy took when it was refreshed, with what is reserved beyond its end."""
        self.was_written = False
        """`refresh` found what the kernel has written, since somebody last asked for that."""
        self.version = 0
        """Counts changes of the bytes; equal to sealed_version: nothing to seal."""
        self.sealed_version = 0
        self.changed_at = 0.0
        """time.monotonic() of the last change, or of the last close after one."""
        self.dirty_since = 0.0
        """time.monotonic() of the first change after the last seal, of the file or its name; or of
        when there may have been one."""
        self.unchanged_since = 0.0
        """The same of the first seal that found what the last has found, and nothing new is known;
        else not before `dirty_since`."""
        self.name: tuple[int, bytes] = (0, b"")
        """(parent, name) it was made under, when known: similar files are sealed together."""

    @property
    def lock(self) -> Mutex:
        """Held while the file changes between staged and sealed."""
        if self._lock is None:  # most files never need one, and a lock costs as much as a file
            self._lock = Mutex()
        return self._lock

    @property
    def opening(self) -> Mutex:
        """Held while it is decided what an opening program reads and writes; before `lock`."""
        if self._opening is None:
            self._opening = Mutex()
        return self._opening

    @property
    def is_being_opened(self) -> bool:
        """A program is about to have it open: it is to stay the one live file of its inode."""
        return self._opening is not None and self._opening.is_held

    @property
    def is_dirty(self) -> bool:
        return self.version != self.sealed_version or (self.is_passed_through and self.writers > 0)

    @property
    def was_sealed(self) -> bool:
        """It, or what it was renamed over, is known to the store in an earlier state."""
        return self.inode.content is not None or self.sealed_version > 0

    def refresh(self, measured: tuple[int, int, int] | None = None) -> None:
        """Learn size and times from the staged copy, which the kernel writes.

        :param measured: its bytes, sectors and mtime in ns, if they are known already
        """
        if self.staged is None or self.staged.is_frozen:
            return
        if measured is None:
            status = os.stat(self.staged.path if self.staged.fd is None else self.staged.fd)
            measured = status.st_size, status.st_blocks, status.st_mtime_ns
        size, sectors, mtime_ns = measured
        inode = self.inode
        self.taken_bytes = sectors * SECTOR_BYTES
        holes = size - self.taken_bytes
        inode.holes = holes if holes > 0 else None
        if size == inode.size and mtime_ns == inode.mtime_ns:
            return
        inode.size = size
        inode.mtime_ns = mtime_ns
        inode.ctime_ns = max(inode.ctime_ns, mtime_ns)
        self.was_written = True
        self._begin_to_be_dirty()

    def touch(self, now_ns: int) -> None:
        """Note that the bytes changed, and when."""
        self.inode.mtime_ns = self.inode.ctime_ns = now_ns
        self.note_change()

    @property
    def patience_s(self) -> float:
        """For how long who has it open has not written it, as far as is known: it may be dirty for
        as long again, within limits.
        """
        return min(max(self.dirty_since - self.unchanged_since, 0.0), _PATIENCE_MAX_S)

    def _begin_to_be_dirty(self) -> None:
        """It may have changed: count from now on, unless it may have since the last seal."""
        if not self.is_dirty or self.patience_s:
            self.dirty_since = self.unchanged_since = time.monotonic()

    def note_writer(self) -> None:
        """Somebody more may write it: the kernel does not tell when that is done."""
        self._begin_to_be_dirty()
        self.writers += 1

    def note_change(self) -> None:
        """Note that the bytes may have changed."""
        self.changed_at = time.monotonic()
        if self.version == self.sealed_version:
            self._begin_to_be_dirty()
        self.version += 1

    def retry_later(self) -> None:
        """Wait with the next seal as if it had changed just now."""
        self.changed_at = self.dirty_since = self.unchanged_since = time.monotonic()

    def note_sealed(self, content: int | None, version: int, at: float) -> None:
        """Note that what it was at a time, by time.monotonic(), is in the store.

        What is open for writing is sealed now and then, as nobody tells when a mapping is written.
        If in vain, the next time after twice as long.
        """
        is_unchanged = version == self.version and content == self.inode.content
        self.inode.content = content
        self.sealed_version = version
        if self.dirty_since <= at or version != self.version:
            self.dirty_since = max(self.changed_at, at)
        if not is_unchanged:
            self.unchanged_since = self.dirty_since


class StaleNode(OSError):
    """The kernel is to look the name up again: it means another nodeid now."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "name has moved to another nodeid")


class Unlisted(Protocol):
    """Inodes that have no rows; their nodeids begin at VIEW_FIRST."""

    def inode(self, nodeid: int) -> Inode | None: ...
    def contents_in_use(self) -> set[int]: ...


class MissingNames:
    """Names of which the kernel was told that there are none, which it believes for a day."""

    def __init__(self) -> None:
        self._names: set[tuple[int, bytes]] = set()
        self._are_all = True

    def forget(self) -> None:
        """There may be others."""
        self._are_all = False
        self._names.clear()

    def note(self, parent: int, name: bytes) -> None:
        if len(self._names) >= _MISSING_KEPT:
            self.forget()
        if self._are_all:
            self._names.add((parent, name))

    def may_hold(self, parent: int, name: bytes) -> bool:
        return not self._are_all or (parent, name) in self._names


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
        self._read: dict[int, LiveFile] = {}
        """By inode: read since their times of access were written."""
        self._moved: dict[int, int] = {}
        """Inode by nodeid, of those that have been split."""
        index.transaction.on_failure = self._reread
        self.used_ns: dict[int, int] = {}
        """When a file was last closed in a directory, since the epoch; the oldest are dropped."""
        self._left: dict[int, LiveFile] = {}
        """By nodeid that its name has left: the file as those see it who have it open."""
        self.unlisted: Unlisted | None = None
        self.missing = MissingNames()
        self.watch()

    def watch(
        self,
        opens: Callable[[int], int] = lambda nodeid: 0,
        changed: Callable[[int], None] = lambda nodeid: None,
        forgotten: Callable[[LiveFile], None] = lambda live: None,
        directory_changed: Callable[[Inode], None] = lambda directory: None,
        moved_back: Callable[[int], None] = lambda nodeid: None,
    ) -> None:
        """Ask and tell the relay; without arguments, no more.

        :param opens: how many programs have a nodeid open
        :param changed: attributes of a nodeid changed by another way than through it
        :param forgotten: the kernel has forgotten a file
        :param directory_changed: entries did; the kernel will ask for its attributes
        :param moved_back: a nodeid means no inode any more
        """
        self._moved_back = moved_back
        self._opens = opens
        self._changed = changed
        self.directory_changed = directory_changed
        self._forgotten = forgotten

    def get(self, nodeid: int) -> Inode:
        """:raises OSError: ESTALE, when the inode is gone"""
        if nodeid in self._left:
            return self._left[nodeid].inode
        inode_id = self._moved.get(nodeid, nodeid)
        known = self.current(inode_id, None)
        if known is not None:
            return known
        inode = self._row_of(inode_id) or self._ghosts.get(inode_id)
        if inode is None:
            raise OSError(errno.ESTALE, "inode is gone", inode_id)
        if inode.is_directory and inode_id < VIEW_FIRST:
            self._remember(inode)
        return inode

    def _row_of(self, inode_id: int) -> Inode | None:
        """The inode as its row has it, or as is made up where there are none."""
        if inode_id < VIEW_FIRST or self.unlisted is None:
            return self._index.inodes.get(inode_id)
        return self.unlisted.inode(inode_id)

    def is_known(self, nodeid: int) -> bool:
        """Whether the kernel may know a nodeid, or somebody has it open."""
        return nodeid in self._lookups or self.live_at(nodeid) is not None

    def _remember(self, directory: Inode) -> None:
        if len(self._directories) >= _DIRECTORIES_KEPT:
            del self._directories[next(iter(self._directories))]
        self._directories[directory.id] = directory
        self._index.inodes.let_go(directory.id)

    def current(self, inode_id: int, row: _Row) -> Inode | _Row:
        """The live copy of an inode; else *row*, which has just been read, in whatever form."""
        live = self._live.get(inode_id)
        if live is None:
            return self._directories.get(inode_id, row)
        if live.is_passed_through:
            live.refresh()
        return live.inode

    def _reread(self) -> None:
        """A change was not recorded: let no inode in memory say that it was."""
        for directory in self._directories:
            self._changed(directory)
        self._directories.clear()
        self._index.loans.reread()
        for live in self._live.values():
            row = self._index.inodes.get(live.inode.id)
            if row is not None:
                live.inode.mode = row.mode
                live.inode.nlink = row.nlink
                live.inode.content = row.content
                live.inode.parent = row.parent

    def is_open(self, inode_id: int) -> bool:
        live = self._live.get(inode_id)
        return live is not None and (live.handles > 0 or self._opens(live.nodeid) > 0)

    def live(self, inode_id: int) -> LiveFile | None:
        return self._live.get(inode_id)

    def live_at(self, nodeid: int) -> LiveFile | None:
        live = self._live.get(self._moved.get(nodeid, nodeid))
        return live if live is not None and live.nodeid == nodeid else None

    def opened(self, nodeid: int) -> LiveFile:
        """The file that who has *nodeid* open reads and writes.

        :raises OSError: ESTALE, when nobody has
        """
        live = self._left.get(nodeid) or self.live_at(nodeid)
        if live is None:
            raise OSError(errno.ESTALE, "file is not open", nodeid)
        return live

    @property
    def has_moved(self) -> bool:
        """Whether any nodeid differs from the number of its inode."""
        return bool(self._moved)

    def nodeid(self, inode_id: int) -> int:
        """By which the kernel is to know an inode."""
        if not self._moved:
            return inode_id
        live = self._live.get(inode_id)
        return live.nodeid if live is not None else inode_id

    def changed(self, inode_id: int) -> None:
        """Attributes changed that the kernel did not ask to change."""
        self._changed(self.nodeid(inode_id))

    def split(self, live: LiveFile) -> LiveFile:
        """Give the name of an open file a fresh nodeid; who has it open keeps the old one.

        What is not sealed yet goes along with the name.
        """
        self._left[live.nodeid] = live
        fresh = LiveFile(live.inode)
        fresh.nodeid = self._index.inodes.allocate()
        fresh.name = live.name
        fresh.version, fresh.sealed_version = live.version, live.sealed_version
        fresh.changed_at, fresh.dirty_since = live.changed_at, live.dirty_since
        fresh.unchanged_since = fresh.dirty_since
        fresh.may_be_sparse = live.may_be_sparse
        fresh.staged, live.staged = live.staged, None
        live.sealed_version = live.version
        live.inode = replace(live.inode)
        self._moved[fresh.nodeid] = fresh.inode.id
        self._live[fresh.inode.id] = fresh
        return fresh

    def _move_back(self, live: LiveFile) -> None:
        """When the kernel has forgotten its nodeids a split file's own number will do again."""
        number = live.inode.id
        known = (live.nodeid in self._lookups, number in self._lookups, number in self._left)
        if live.nodeid != number and not any(known):
            self._end_nodeid(live.nodeid)
            live.nodeid = number

    def _end_nodeid(self, nodeid: int) -> None:
        """A nodeid means no inode any more; its inode's own number always does."""
        if self._moved.pop(nodeid, None) is not None:
            self._moved_back(nodeid)

    def inode_id(self, nodeid: int) -> int:
        """The inode that a nodeid means, or meant before its name left it."""
        return self._moved.get(nodeid, nodeid)

    def named(self, nodeid: int) -> Inode:
        """The inode of a nodeid that names still lead to.

        :raises StaleNode: they lead to another one now
        """
        if nodeid in self._left or self.nodeid(self.inode_id(nodeid)) != nodeid:
            raise StaleNode
        return self.get(nodeid)

    def enliven(self, inode: Inode) -> LiveFile:
        """The live file of a regular inode, made when there is none."""
        live = self._live.get(inode.id)
        if live is None:
            live = self._live[inode.id] = LiveFile(inode)
        return live

    def note_use(self, live: LiveFile) -> None:
        """Remember that somebody has used a file: times of access are seldom recorded."""
        parent = live.inode.parent
        if parent is not None:
            self.used_ns.pop(parent, None)  # the latest comes last
            self.used_ns[parent] = time.time_ns()
            if len(self.used_ns) > _USES_KEPT:
                del self.used_ns[next(iter(self.used_ns))]

    def files(self) -> Iterable[LiveFile]:
        return self._live.values()

    # Lookup counts

    def looked_up(self, nodeid: int) -> None:
        """The kernel was told of this inode once more."""
        lookups = self._lookups
        lookups[nodeid] = lookups.get(nodeid, 0) + 1

    def told_of(self, inode: Inode) -> int:
        """The nodeid of an inode, of which the kernel is told once more."""
        nodeid = self.nodeid(inode.id)
        self.looked_up(nodeid)
        return nodeid

    def all_looked_up(self, nodeids: list[int]) -> None:
        """The kernel was told of these once more."""
        lookups = self._lookups
        for nodeid in nodeids:
            lookups[nodeid] = lookups.get(nodeid, 0) + 1

    def forget(self, nodeid: int, count: int) -> None:
        left = self._lookups.get(nodeid, 0) - count
        if left > 0:
            self._lookups[nodeid] = left
            return
        self._lookups.pop(nodeid, None)
        inode_id = nodeid
        if self._moved or self._left:
            inode_id = self.inode_id(nodeid)
            abandoned = self._left.pop(nodeid, None)
            if abandoned is not None:
                self._forgotten(abandoned)
                self._end_nodeid(nodeid)
        live = self._live.get(inode_id)
        if live is not None and live.nodeid not in self._lookups:
            self._forgotten(live)
        if inode_id in self._unlinked:
            self._retire(inode_id)
        elif live is not None:
            if live.nodeid != inode_id:
                self._move_back(live)
            self.released(live)

    # Ends

    def opened_unnamed(self, inode: Inode) -> None:
        """An inode was made that has no name, and is being opened."""
        self._unlinked.add(inode.id)

    def unlinked(self, inode: Inode, *, is_removed: bool) -> None:
        """The last name of an inode has gone, and its row as well if *is_removed*."""
        self._unlinked.add(inode.id)
        if is_removed:
            self._ghosts[inode.id] = inode
        self._retire(inode.id)

    def linked(self, inode: Inode) -> None:
        """An inode that was opened without a name has got one."""
        self._unlinked.discard(inode.id)

    def is_ghost(self, inode_id: int) -> bool:
        """Known to the kernel, but without a row."""
        return inode_id in self._ghosts

    def ghost_contents(self) -> set[int]:
        """Contents that a path like /proc/self/fd may still open, though no row names them."""
        ghosts = {inode.content for inode in self._ghosts.values() if inode.content is not None}
        return ghosts if self.unlisted is None else ghosts | self.unlisted.contents_in_use()

    def released(self, live: LiveFile) -> None:
        """A handle was closed: let go of what only open files need."""
        if live.handles or self._opens(live.nodeid) or self._live.get(live.inode.id) is not live:
            return
        if live.is_being_opened:
            return
        if live.staged is not None and not live.is_passed_through:
            live.staged.close()
        if live.inode.id in self._unlinked:
            self._retire(live.inode.id)
        elif (
            live.staged is None
            and live.image is None
            and not live.is_attached
            and live.nodeid == live.inode.id
            and live.inode.id not in self._read
        ):
            del self._live[live.inode.id]

    def _retire(self, inode_id: int) -> None:
        live = self._live.get(inode_id)
        if self.nodeid(inode_id) in self._lookups or self.is_open(inode_id):
            return
        if live is not None and live.is_being_opened:
            return
        self._unlinked.discard(inode_id)
        self._read.pop(inode_id, None)
        if live is not None:
            self._forgotten(live)
            del self._live[inode_id]
            self._end_nodeid(live.nodeid)
            if live.staged is not None:
                self._staging.discard(live.staged)
                live.staged = None
        self._directories.pop(inode_id, None)
        if self._ghosts.pop(inode_id, None) is not None:
            return
        self._reapable.append(inode_id)
        if len(self._reapable) >= _REAP_AT:
            try:
                self.reap()
            except OSError as error:
                log.error("cannot remove unlinked files: %s; later", error)

    def reap(self) -> None:
        """Remove the rows of inodes that nothing holds any more."""
        if self._reapable:
            with self._index.transaction:
                for inode_id in self._reapable:
                    self._index.remove_inode(inode_id)
            self._reapable = []

    def note_read(self, live: LiveFile, now_ns: int) -> None:
        """A program has read a file: that is written with others' reads, half a second later."""
        live.inode.atime_ns = now_ns
        self._read[live.inode.id] = live
        if len(self._read) >= _READS_AT:
            self.record_reads()

    def record_reads(self) -> None:
        """Write the times of access that their rows lack; they are lost if the disk fails."""
        read, self._read = self._read, {}
        if not read:
            return
        try:
            with self._index.transaction:
                for live in read.values():
                    self._index.inodes.set_atime(live.inode.id, live.inode.atime_ns)
        except OSError as error:
            log.error("cannot record times of access: %s", error)
        for live in read.values():
            self.released(live)

    def abandon_kernel_state(self) -> None:
        """The mount is gone: nothing is open, nothing is known to the kernel."""
        self.record_reads()
        self._lookups.clear()
        for live in list(self._live.values()):
            live.handles = live.writers = 0
            self.released(live)
        for inode_id in list(self._unlinked):
            self._retire(inode_id)
        self.reap()

    def drop_unlinked(self) -> None:
        """At the start of a mount no unlinked inode can be in use."""
        with self._index.transaction:
            self._index.remove_unlinked()

    # Taking over from another worker, before any request

    def inherit_unlinked(self, is_open: Container[int]) -> None:
        """Keep what has no name and is open, or is a directory, which may be somebody's own.

        The kernel may still know the others; it cannot open them any more.
        """
        with self._index.transaction:  # trees that were being made, or removed
            self._index.inodes.drop_links(self._index.dentries.delete_below_unlinked())
        for inode_id in self._index.inodes.unlinked():
            inode = self._index.inodes.get(inode_id)
            self._unlinked.add(inode_id)
            if inode is None or not (inode.is_directory or inode_id in is_open):
                self._retire(inode_id)
        self.reap()

    def inherit_nodeid(self, nodeid: int, inode_id: int, *, is_newest: bool) -> None:
        """An inode had got another nodeid. How often the kernel was told of it is unknown."""
        self._moved[nodeid] = inode_id
        self._lookups[nodeid] = _UNKNOWN_LOOKUPS
        inode = self._index.inodes.get(inode_id)
        if is_newest and inode is not None:
            self.enliven(inode).nodeid = nodeid

    def inherit_open(self, nodeid: int, size: int | None) -> LiveFile:
        """The file that is open under a nodeid; made up if its row is gone.

        :param size: of the image through which it is open, None: it is not
        """
        inode_id = self.inode_id(nodeid)
        inode = self._row_of(inode_id)
        if inode is None:
            inode = Inode(inode_id, stat.S_IFREG | 0o644, 0, 0, 0, size or 0, 0, 0, 0)
            self._unlinked.add(inode_id)
            self._ghosts[inode_id] = inode
        if self.nodeid(inode_id) == nodeid:
            return self.enliven(inode)
        left = LiveFile(inode)
        left.nodeid = nodeid
        if size is not None:
            inode.size = size
        self._left[nodeid] = left
        return left

    def staged_files(self) -> Iterator[LiveFile]:
        return (live for live in self._live.values() if live.staged is not None)
