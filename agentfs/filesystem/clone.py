"""Cloning: a file or a tree once more, by rows alone. No byte is read or copied.

A sealed file's new inode names the same content. A file that is staged and not
sealed yet shares its staged copy, which is frozen by that (see staging.py): who
writes either of the two makes a copy first. Only a file that a program has open
and can write past us is sealed as it is now, which reads its bytes.

A tree is made below a directory that has no name, so nobody sees it before it is
whole, in transactions of a few ms with a turn for others between them; the last
one gives it its name. A tree of up to `_BATCH` names takes one transaction. Until
it has its name, a kill leaves a directory without one, which the next mount
removes with all below it (`Index.remove_unlinked`). What a clone replaces loses
its name in the same transaction, and is removed afterwards by the same rule.

Each batch shows its files as they are at one moment: a tree of several batches
that programs change meanwhile may have been at no time what its clone is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import trio

from agentfs.filesystem.files import Files
from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.filesystem.namespace import Detached, Namespace
from agentfs.filesystem.seal import Sealer
from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.index import Index
from agentfs.model import NAME_BYTES_MAX, Inode

log = logging.getLogger(__name__)

_BATCH = 512
"""Names made in one transaction, about 5 ms; names removed in one, about 5 ms."""

Announce = Callable[[int, bytes, bool], Awaitable[None]]
"""Tells the kernel of a name that we made in a directory, and whether there was none. See
`Cloner.announce`."""

WriteBack = Callable[[int], Awaitable[None]]
"""Has the kernel send us what it has of a nodeid. See `Cloner.write_back`."""


async def _without_a_kernel(*_: object) -> None:
    """There is nobody to tell or to ask."""


@dataclass(slots=True)
class Cloned:
    """What one clone made."""

    inode: int = 0
    files: int = 0
    """Anything but directories."""
    directories: int = 0
    logical_bytes: int = 0
    """Of regular files: what the clone would take as a copy."""


@dataclass(slots=True)
class _Job:
    """One clone under way."""

    source: int
    parent: int
    name: bytes
    replaces: bool
    agent: tuple[bytes, bytes] | None
    """(name of the source's agent, of the clone's): the clone is a new agent's."""
    root: Inode | None = None
    """The clone of the source. Its links are counted here; its row has 0 until it has a name."""
    pending: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(directory, its clone, last name done) of those that may hold more names."""
    linked: dict[int, int] = field(default_factory=dict)
    """Clones by their sources, of files with several names."""
    cloned: Cloned = field(default_factory=Cloned)


@dataclass(slots=True)
class _Batch:
    """What the next transaction is to make. Gathering it changes nothing."""

    now_ns: int
    pending: list[tuple[int, int, bytes]]
    root: Inode | None
    made: dict[int, Inode] = field(default_factory=dict)
    """New inodes by number."""
    sources: list[tuple[int, int]] = field(default_factory=list)
    """(source, its clone)."""
    names: list[tuple[int, bytes, int]] = field(default_factory=list)
    more_links: Counter[int] = field(default_factory=Counter)
    """To add to clones that earlier batches made."""
    linked: dict[int, int] = field(default_factory=dict)
    staged: list[tuple[LiveFile, Inode]] = field(default_factory=list)
    """(file, its clone) of those that are to share a staged copy."""
    written: list[LiveFile] = field(default_factory=list)
    """Files that are open for writing: see `_settle`."""


class Cloner:
    """Makes clones, any number of them at once."""

    def __init__(
        self,
        index: Index,
        table: InodeTable,
        namespace: Namespace,
        staging: Staging,
        files: Files,
        sealer: Sealer,
    ) -> None:
        self._index = index
        self._table = table
        self._namespace = namespace
        self._staging = staging
        self._files = files
        self._sealer = sealer
        self.announce: Announce = _without_a_kernel
        """Called when a clone has its name; returns when programs see what it means now."""
        self.write_back: WriteBack = _without_a_kernel
        """Called for a file that is open for writing: a mapping may hold bytes that we have not."""

    async def clone(
        self,
        source: bytes,
        target: bytes,
        *,
        replaces: bool,
        progress: Callable[[int, int], None],
        agent: tuple[bytes, bytes] | None = None,
    ) -> Cloned:
        """Make *target* a copy of *source*; both are paths below the root.

        The copy keeps owners, modes, times and extended attributes; its ctime is now.

        :param replaces: *target* may exist; the name changes its meaning at one moment, and
            what it meant is removed then
        :param agent: (name, new name): what of the source is marked as that agent's is, in the
            clone, the new one's; so is all of it. It is not paused
        :param progress: called with (names made, 0)
        :raises OSError: ENOENT, ENOTDIR: a path leads nowhere; EEXIST: the target is there;
            EINVAL: one is within the other. Nothing is left of the clone then
        """
        job = self._check(source, target, replaces=replaces, agent=agent)
        try:
            replaced = await self._make(job, progress)
        except BaseException:
            if job.root is not None:
                job.root.nlink = 0
                with trio.CancelScope(shield=True):
                    await self._remove(job.root)
            raise
        assert job.root is not None
        job.cloned.inode = job.root.id
        await self.announce(job.parent, job.name, replaced is None)
        if replaced is not None and replaced.is_directory:
            await self._remove(replaced)
        return job.cloned

    def _check(
        self, source: bytes, target: bytes, *, replaces: bool, agent: tuple[bytes, bytes] | None
    ) -> _Job:
        above, _, name = target.rstrip(b"/").rpartition(b"/")
        source_way = self._namespace.walk(source)
        target_way = self._namespace.walk(above)
        if not name:
            raise OSError(errno.EEXIST, "the mounted directory itself cannot be replaced")
        if len(name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        if not target_way[-1].is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        victim = self._namespace.lookup(target_way[-1].id, name)
        if victim is not None and not replaces:
            raise OSError(errno.EEXIST, "name is taken")
        if any(inode.id == source_way[-1].id for inode in target_way):
            raise OSError(errno.EINVAL, "the target is within the source")
        if victim is not None and any(inode.id == victim.id for inode in source_way):
            raise OSError(errno.EINVAL, "the target is the source, or holds it")
        return _Job(source_way[-1].id, target_way[-1].id, name, replaces, agent)

    async def _make(self, job: _Job, progress: Callable[[int, int], None]) -> Inode | None:
        settled: set[LiveFile] = set()
        while True:
            batch = self._gather(job)
            unsettled = [file for file in batch.written if file not in settled]
            if unsettled:
                await self._settle(unsettled)
                settled.update(unsettled)
                continue  # anything may have changed meanwhile
            settled.clear()
            replaced = self._commit(job, batch)
            if not job.pending:
                return replaced
            progress(job.cloned.files + job.cloned.directories, 0)
            await trio.lowlevel.checkpoint()

    async def _settle(self, files: list[LiveFile]) -> None:
        """Get hold of the bytes of files that are open for writing."""
        for file in files:
            if not file.is_passed_through:
                await self.write_back(file.nodeid)
        await self._sealer.seal([file for file in files if file.is_passed_through], wait=True)

    async def _remove(self, directory: Inode) -> None:
        """Remove a directory without a name, and all below it."""
        pending = [directory]
        try:
            while pending:
                detached = self._namespace.empty(pending[-1].id, _BATCH)
                if not detached:
                    self._namespace.let_go(Detached(pending.pop(), is_removed=False))
                for one in detached:
                    if one.inode.is_directory:
                        pending.append(one.inode)
                    else:
                        self._namespace.let_go(one)
                await trio.lowlevel.checkpoint()
        except OSError as error:
            log.error("cannot remove a tree: %s; the next mount removes the rest", error)

    # One batch: nothing from here on awaits

    def _gather(self, job: _Job) -> _Batch:
        batch = _Batch(time.time_ns(), list(job.pending), job.root)
        if batch.root is None:
            source = self._index.inodes.get(job.source)
            if source is None or source.nlink == 0:
                raise OSError(errno.ENOENT, "the source is gone")
            source.nlink = min(source.nlink, 1)  # other names of it are not in the tree
            batch.root = batch.made[self._twin(job, batch, source)]
        while batch.pending and len(batch.names) < _BATCH:
            directory, clone, last = batch.pending.pop()
            limit = _BATCH - len(batch.names)
            rows = self._index.dentries.after(directory, last, limit)
            if len(rows) == limit:
                batch.pending.append((directory, clone, rows[-1][-1]))
            for row in rows:
                twin = self._twin(job, batch, Inode(*row[:-1]), clone)
                batch.names.append((clone, row[-1], twin))
        return batch

    def _twin(self, job: _Job, batch: _Batch, inode: Inode, parent: int | None = None) -> int:
        """Plan the clone of *inode*, which is a row just read and becomes the clone's."""
        source, number = inode.id, self._index.inodes.allocate()
        if source in self._index.loans:
            inode.content, inode.size, inode.holes = None, 0, None
        inode.parent = parent
        if inode.is_directory:
            inode.nlink = 2
            if parent is not None:
                _add_link(batch, parent)
            batch.pending.append((source, number, b""))
        elif inode.nlink > 1:
            known = job.linked.get(source) or batch.linked.get(source)
            if known is not None:
                _add_link(batch, known)
                return known
            inode.nlink = 1
            batch.linked[source] = number
        inode.id = number
        inode.ctime_ns = batch.now_ns
        batch.made[number] = inode
        batch.sources.append((source, number))
        if inode.is_regular:
            self._consider_staged(batch, source, inode)
        return number

    def _consider_staged(self, batch: _Batch, source: int, clone: Inode) -> None:
        file = self._table.live(source)
        if file is None:
            return
        self._files.close_kept(file)
        if file.writers:
            batch.written.append(file)
        if file.staged is None or not file.is_dirty:
            return  # the row says it all
        if file.is_passed_through:
            if file.writers:
                return  # so it does when the file has been sealed
            file.refresh()
        batch.staged.append((file, clone))
        clone.atime_ns, clone.mtime_ns = file.inode.atime_ns, file.inode.mtime_ns

    def _commit(self, job: _Job, batch: _Batch) -> Inode | None:
        """Make what was gathered; what the last batch of all has replaced."""
        assert batch.root is not None
        detached = None
        shared: list[tuple[LiveFile, Inode, StagedFile]] = []
        with contextlib.ExitStack() as undo:
            if batch.staged:
                with self._index.transaction:  # their times are no longer kept by the staged copy
                    for file, _ in batch.staged:
                        self._index.inodes.update_attributes(file.inode)
            for file, clone in batch.staged:
                staged = self._files.share(file, clone.id)
                undo.callback(self._staging.discard, staged)
                shared.append((file, clone, staged))
            batch.root.nlink += batch.more_links.pop(batch.root.id, 0)
            with self._index.transaction:
                self._insert(batch)
                if job.agent is not None:
                    self._index.agents.rename(batch.made, *job.agent)
                if not batch.pending:
                    root = batch.root
                    if job.agent is not None:
                        self._index.agents.adopt(root.id, job.parent, job.agent[1])
                    self._index.inodes.set_links(root.id, root.nlink, root.ctime_ns)
                    detached = self._namespace.attach(
                        root, job.parent, job.name, replaces=job.replaces
                    )
            undo.pop_all()
        for file, clone, staged in shared:
            self._enliven(file, clone, staged)
        self._note(job, batch)
        if detached is not None and not detached.inode.is_directory:
            self._namespace.let_go(detached)
        return detached.inode if detached is not None else None

    def _insert(self, batch: _Batch) -> None:
        """In a transaction."""
        index = self._index
        root = batch.root
        hidden = (replace(one, nlink=0) if one is root else one for one in batch.made.values())
        index.inodes.insert_all(hidden)
        index.dentries.insert_all(batch.names)
        index.xattrs.copy_all(batch.sources)
        contents = (one.content for one in batch.made.values())
        index.contents.reference_all(Counter(one for one in contents if one is not None))
        index.inodes.add_links(batch.more_links)

    def _enliven(self, file: LiveFile, clone: Inode, staged: StagedFile) -> None:
        inode = replace(clone, size=file.inode.size, holes=file.inode.holes)
        twin = self._table.enliven(inode)
        twin.staged = staged
        twin.may_be_sparse = file.may_be_sparse
        twin.name = file.name
        twin.note_change()
        twin.changed_at, twin.dirty_since = file.changed_at, file.dirty_since

    def _note(self, job: _Job, batch: _Batch) -> None:
        job.root = batch.root
        job.pending = batch.pending
        job.linked.update(batch.linked)
        for number, more in batch.more_links.items():
            live = self._table.live(number)
            if live is not None:
                live.inode.nlink += more
        for inode in batch.made.values():
            if inode.is_directory:
                job.cloned.directories += 1
            else:
                job.cloned.files += 1
            if inode.is_regular:
                live = self._table.live(inode.id)
                job.cloned.logical_bytes += inode.size if live is None else live.inode.size


def _add_link(batch: _Batch, clone: int) -> None:
    """One more name, or subdirectory, of a clone."""
    inode = batch.made.get(clone)
    if inode is not None:
        inode.nlink += 1
    else:
        batch.more_links[clone] += 1
