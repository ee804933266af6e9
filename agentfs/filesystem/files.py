"""Open files and their bytes: read, write, truncate, allocate, copy, seek.

A file is read from its staged copy when it has one, else from its sealed
content. The first change of a sealed file makes the staged copy. Nothing here
awaits between looking at a file's state and acting on it, except to make that
copy, which `LiveFile.lock` covers.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TypeVar

import trio

from agentfs.filesystem.contents import BytesLost, ContentReader
from agentfs.filesystem.grants import Grants
from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.filesystem.mutex import Mutex
from agentfs.filesystem.namespace import Namespace
from agentfs.filesystem.ranges import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    allocate,
    copy_data,
    copy_extents,
    make_hole,
    write_all,
)
from agentfs.filesystem.relatime import needs_atime
from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.model import Inode

_ALLOCATIONS = {
    0,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
}

_COPIED_AT_ONCE = 64 << 20
"""By one copy: 10 ms at the speed of memory."""

_COPIED_BY_LOOP = 8 << 20
"""By one that keeps the event loop busy."""

_WARMED_BYTES = 8 << 20
"""Read at once."""

_BRIEF_BYTES = 1 << 20
"""Moved or looked through within 100 us: a thread would cost as much."""

Result = TypeVar("Result")


async def _off_loop(size: int, work: Callable[..., Result], *args: object) -> Result:
    """Do work on so many bytes, in a thread if it may take long."""
    if size <= _BRIEF_BYTES:
        return work(*args)
    return await trio.to_thread.run_sync(work, *args)


async def _change(file: LiveFile, size: int, work: Callable[..., Result], *args: object) -> Result:
    """The same for work that changes the staged copy.

    What the kernel writes past us is neither moved nor shared with a clone while it is
    open for writing. Any other may be at every await, so it changes without one.
    """
    return await _off_loop(size if file.is_passed_through else 0, work, *args)


async def _turn(lock: Mutex) -> None:
    """Wait until whoever holds *lock* has let go."""
    async with lock:
        pass


class Handle:
    """One open(2) of a regular file, or several that are alike."""

    __slots__ = ("file", "is_noted", "is_privileged", "is_writer", "opens", "records_atime")

    def __init__(self, file: LiveFile, *, is_writer: bool, is_privileged: bool) -> None:
        self.file = file
        self.is_writer = is_writer
        self.is_privileged = is_privileged
        """Opened by root: writing leaves set-id bits alone."""
        self.records_atime = False
        self.is_noted = False
        """Bytes were read through it that the kernel did not have."""
        self.opens = 0
        """How many share it; not counted: those that another worker granted."""


class Files:
    """Regular files."""

    prepares: ClassVar = False
    """Whether `prepare` has anything to do."""

    def __init__(
        self,
        table: InodeTable,
        namespace: Namespace,
        staging: Staging,
        contents: ContentReader,
    ) -> None:
        self._table = table
        self._namespace = namespace
        self._staging = staging
        self._contents = contents
        self.grants = Grants(table)
        self.on_use: Callable[[LiveFile], None] = lambda file: None
        """Told of each file that a program begins to use, where the kernel has not all of it."""

    @property
    def has_writers(self) -> bool:
        """Whether a program has a file open for writing."""
        return any(file.writers for file in self._table.files())

    async def prepare(self, inode: Inode, flags: int, *, is_privileged: bool = True) -> None:
        """Make an inode ready to be opened; nothing to do when we serve reads and writes."""

    def inherit(self) -> None:
        """Go on where an earlier worker stopped; without the relay there is none."""

    def prepare_new(self, file: LiveFile, *, is_privileged: bool = True) -> None:
        """Make an inode just made ready to be opened."""

    def look_at_growth(self) -> None:
        """Called now and then: count what was written without our being asked."""

    async def tidy(self) -> None:
        """Called now and then: what can wait until then."""

    def cool(self, pace: float | None) -> None:
        """Drop what has cooled for all, so many times as fast; None: it stays, if there is room."""

    def is_hot(self, content: int) -> bool:
        """Whether a content lies on tmpfs, for all who have it, and is to stay."""
        return False

    def resident_digests(self) -> Iterable[bytes]:
        """The contents that lie on tmpfs, for all who have them."""
        return ()

    def closed(self, nodeid: int) -> None:
        """The relay says that nobody has an inode open any more."""
        file = self._table.live_at(nodeid)
        if file is not None:
            self._note_use(file)
            self.grants.closed(file)
            self._table.released(file)

    def close_kept(self, file: LiveFile | None = None) -> None:
        """Let go of files, or one, that no program writes, and that are kept open for the next."""

    def abandon(self) -> None:
        """The mount is gone."""
        self.grants.abandon()

    def open(self, inode: Inode, flags: int, *, is_privileged: bool) -> Handle:
        """A handle on a regular inode. O_TRUNC is the caller's to do, by `truncate`."""
        file = self._table.enliven(inode)
        is_writer = flags & os.O_ACCMODE != os.O_RDONLY
        handle = Handle(file, is_writer=is_writer, is_privileged=is_privileged)
        file.handles += 1
        if is_writer:
            file.note_writer()
            self.grants.end(file)
        if not flags & os.O_NOATIME and flags & os.O_ACCMODE != os.O_WRONLY:
            handle.records_atime = needs_atime(inode, time.time_ns())
        return handle

    def release(self, handle: Handle) -> None:
        file = handle.file
        self._note_use(file)
        file.handles -= 1
        file.writers -= handle.is_writer
        if handle.is_writer:
            file.changed_at = time.monotonic()
            if not file.writers:
                self.unstage_if_sealed(file)
        else:
            self.grants.give(file)
        self._table.released(file)

    def room_to_warm(self) -> float:
        """How many bytes can be warm at once."""
        return math.inf

    async def warm(self, inode: Inode, name: bytes) -> bool:
        """Bring a sealed file's bytes as near as may be; False: there is no room, or they are lost.

        Here that is the page cache of the segments.
        """
        assert inode.content is not None, "it is sealed"
        for offset in range(0, inode.size, _WARMED_BYTES):
            await self._contents.read(inode.content, offset, _WARMED_BYTES)
        return True

    async def bring(self, inode: Inode, name: bytes, likelihood: float) -> bool:
        """Bring a sealed file's bytes nearer that is likely to be used soon; False: they are there,
        or there is no room but that of what is likelier.

        Here that is the cache of decompressed blocks, of which the oldest go.
        """
        assert inode.content is not None, "it is sealed"
        return await self._contents.bring(inode.content)

    def _note_use(self, file: LiveFile) -> None:
        """A program has closed it."""
        self._table.note_use(file)

    def judge_anew(self) -> None:
        """Attributes have changed that say what files are to agents."""

    def unstage_if_sealed(self, file: LiveFile) -> None:
        """Drop the staged copy of a file that is sealed and that nobody writes."""
        if file.staged is not None and not file.writers and not file.is_dirty:
            self._staging.discard(file.staged)
            file.staged = None
            if not file.handles:
                self._table.released(file)

    # Reading

    async def read(self, handle: Handle, offset: int, size: int) -> bytes:
        """Up to *size* bytes from *offset* on; fewer only at the end of the file."""
        data = self._read_staged(handle, offset, size)
        if data is not None:
            return data
        file, content = handle.file, handle.file.inode.content
        assert content is not None, "it is sealed"
        try:
            return await self._contents.read(content, offset, size)
        except KeyError as error:
            if file.staged is None and file.inode.content == content:
                raise BytesLost(f"content {content} names what is not there") from error
            # It was replaced and collected while it was read: what is there now is as good.
            return await self.read(handle, offset, size)

    def read_at_once(self, handle: Handle, offset: int, size: int) -> bytes | None:
        """The same; None: it has to wait for the bytes."""
        data = self._read_staged(handle, offset, size)
        if data is not None:
            return data
        content = handle.file.inode.content
        assert content is not None, "it is sealed"
        return self._contents.read_at_once(content, offset, size)

    def _read_staged(self, handle: Handle, offset: int, size: int) -> bytes | None:
        """The same; None: the bytes are in no file of ours."""
        file = handle.file
        if not handle.is_noted:
            handle.is_noted = True
            self.on_use(file)
        if handle.records_atime:
            handle.records_atime = False
            self._note_read(file)
        if file.staged is not None:
            return os.pread(file.staged.descriptor(), size, offset)
        return b"" if file.inode.content is None or offset >= file.inode.size else None

    def _note_read(self, file: LiveFile) -> None:
        now = time.time_ns()
        if needs_atime(file.inode, now):
            self._table.note_read(file, now)
            self.grants.was_read(file)

    # Writing

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write all of *data*; returns its length."""
        if self.write_at_once(handle, offset, data):
            return len(data)
        file = handle.file
        staged = await self._own(file)
        if staged.on_disk:
            await self._staging.write_behind(staged, len(data))
            staged = await self._own(file)
        self._begin_to_write(handle, offset)
        end = offset + len(data)
        staged = await self._make_room(file, staged, end - file.inode.size)
        try:
            staged = await self._write_staged(file, staged, data, offset)
        except OSError:
            file.refresh()  # some of it may have been written
            file.note_change()
            raise
        self._written(file, staged, end)
        return len(data)

    def write_at_once(self, handle: Handle, offset: int, data: bytes | memoryview) -> bool:
        """The same; False: it may have to wait, for what the file lies on or for room."""
        file = handle.file
        end = offset + len(data)
        growth = end - file.inode.size
        if self._is_empty(file) and not self._staging.makes_wait and not file.lock.is_held:
            self._stage_empty(file)
        staged = file.staged
        if staged is None or staged.is_frozen or staged.is_moving or staged.on_disk:
            return False
        if growth > 0 and not self._has_room(growth):
            return False
        self._begin_to_write(handle, offset)
        try:
            write_all(staged.descriptor(), data, offset)
        except OSError:
            return False  # it is tried again where room can be made
        self._written(file, staged, end)
        return True

    def _has_room(self, growth: int) -> bool:
        """Whether tmpfs takes so much more, which the disk will take as well."""
        staging = self._staging
        return not staging.slows_writers and staging.fits(growth) and not staging.lacks_disk(growth)

    def _begin_to_write(self, handle: Handle, offset: int) -> None:
        if not handle.is_privileged:
            self._namespace.drop_privileges(handle.file.inode)
        if offset > handle.file.inode.size:
            handle.file.may_be_sparse = True

    def _written(self, file: LiveFile, staged: StagedFile, end: int) -> None:
        """A program wrote up to *end*."""
        self._touch(file, staged)
        file.inode.size = max(end, file.inode.size)
        self._recount(file, staged)

    @staticmethod
    def _touch(file: LiveFile, staged: StagedFile) -> None:
        """Its bytes changed now; a restart finds the time with the staged copy."""
        now_ns = time.time_ns()
        os.utime(staged.descriptor(), ns=(file.inode.atime_ns, now_ns))
        file.touch(now_ns)

    def _recount(self, file: LiveFile, staged: StagedFile) -> None:
        """Note what a staged copy takes that is as long as the file."""
        taken = file.inode.size
        if file.may_be_sparse:
            taken = self._staging.taken_bytes(staged)
            holes = file.inode.size - taken
            file.inode.holes = holes if holes > 0 else None
        self._staging.count(staged, taken)

    async def _make_room(self, file: LiveFile, staged: StagedFile, growth: int) -> StagedFile:
        """The staged copy, with room to grow by so many bytes, on tmpfs or on disk.

        :raises OSError: ENOSPC
        """
        if growth > 0:
            staged = await self._make_sure_of_disk(file, staged, growth)
        if growth > 0 and not staged.on_disk and not self._staging.takes(growth):
            await self._move_to_disk(file, staged)
            staged = await self._own(file)
        if staged.on_disk:
            self._staging.room.require(growth)
        return staged

    async def _make_sure_of_disk(
        self, file: LiveFile, staged: StagedFile, growth: int
    ) -> StagedFile:
        """Wait for room to seal what is staged, after growth; a copy on disk takes more until then.

        :raises OSError: ENOSPC
        """
        wanted = growth
        if staged.on_disk:
            wanted += growth
        elif self._staging.slows_writers or not self._staging.fits(growth):
            wanted += growth + self._staging.taken_bytes(staged)
        if not self._staging.lacks_disk(wanted):
            return staged
        await self._staging.wait_for_disk(wanted)
        return await self._own(file)

    async def _write_staged(
        self, file: LiveFile, staged: StagedFile, data: bytes, offset: int
    ) -> StagedFile:
        try:
            write_all(staged.descriptor(), data, offset)
            return staged
        except OSError as error:
            if error.errno != errno.ENOSPC or staged.on_disk:
                raise
            await self._move_to_disk(file, staged)
            staged = await self._own(file)
            write_all(staged.descriptor(), data, offset)
            return staged

    async def _move_to_disk(self, file: LiveFile, staged: StagedFile) -> None:
        async with file.lock:
            if staged.on_disk:
                return
            staged.is_moving = True
            try:
                fd = await trio.to_thread.run_sync(self._staging.copy_to_disk, staged)
                self._staging.switch_to_disk(staged, fd)
            finally:
                staged.is_moving = False

    async def _own(self, file: LiveFile, limit: int | None = None) -> StagedFile:
        """The staged copy, for a change that is made before anything is awaited.

        :param limit: only so many bytes of it matter, if it is to be made
        """
        while True:
            staged = file.staged
            if staged is None or staged.is_frozen:
                await self._stage(file, limit)
            elif staged.is_moving:
                await _turn(file.lock)
            else:
                return staged

    async def _stage(self, file: LiveFile, limit: int | None = None) -> StagedFile:
        """A staged copy that no clone shares, made if need be: all of it, or *limit* bytes."""
        if self._staging.makes_wait:
            await self._staging.wait_for_room()
        async with file.lock:
            frozen, inode = file.staged, file.inode
            if frozen is not None and not frozen.is_frozen:
                return frozen
            if frozen is None and (self._is_empty(file) or limit == 0):
                return self._stage_empty(file)
            staged = await self._copy_whole(file, limit)
            if file.staged is not None:  # if it was sealed, the last close may have dropped it
                self._staging.replace(file.staged, staged)
            file.staged = staged
            file.may_be_sparse = inode.holes is not None
            return staged

    @staticmethod
    def _is_empty(file: LiveFile) -> bool:
        """Whether it has no bytes anywhere."""
        return file.staged is None and file.inode.content is None

    def _stage_empty(self, file: LiveFile) -> StagedFile:
        inode = file.inode
        file.staged = staged = self._staging.create(inode.id)
        os.utime(staged.descriptor(), ns=(inode.atime_ns, inode.mtime_ns))
        return staged

    async def _copy_whole(self, file: LiveFile, limit: int | None) -> StagedFile:
        try:
            return await self._copy(file, limit, on_disk=False)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return await self._copy(file, limit, on_disk=True)

    async def _copy(self, file: LiveFile, limit: int | None, *, on_disk: bool) -> StagedFile:
        inode = file.inode
        size = inode.size if limit is None else min(limit, inode.size)
        staged = self._staging.create_incomplete(inode.id, size, on_disk=on_disk)
        try:
            if file.staged is not None:
                with file.staged.opened() as source:
                    await trio.to_thread.run_sync(copy_data, source, staged.descriptor(), size)
            elif inode.content is not None:
                await self._fill(staged.descriptor(), inode.content, size)
            os.utime(staged.descriptor(), ns=(inode.atime_ns, inode.mtime_ns))
            self._staging.complete(staged)
        except BaseException:
            self._staging.discard(staged)
            raise
        self._staging.count(staged, size)
        return staged

    async def _fill(self, fd: int, content: int, size: int) -> None:
        """Write the first *size* bytes of a content to an empty file."""
        await self._contents.copy_to(content, fd, size)

    async def truncate(self, file: LiveFile, size: int, *, is_privileged: bool) -> None:
        """Cut or extend to *size* bytes; what is added is a hole."""
        staged = await self._own(file, limit=size)
        os.truncate(staged.path if staged.fd is None else staged.fd, size)
        if not is_privileged:
            self._namespace.drop_privileges(file.inode)
            self._namespace.drop_capabilities(file.inode)
        if size > file.inode.size:
            file.may_be_sparse = True
        file.inode.size = size
        file.inode.holes = None
        self._recount(file, staged)
        self._touch(file, staged)
        self.grants.end(file)  # O_TRUNC comes with an open for reading, too

    def share(self, file: LiveFile, inode_id: int) -> StagedFile:
        """Give another inode the staged copy of a file; neither writes it in place any more."""
        assert file.staged is not None
        return self._staging.share(file.staged, inode_id)

    # What only some programs ask for

    async def allocate(
        self, file: LiveFile, mode: int, offset: int, length: int, *, is_privileged: bool
    ) -> None:
        """fallocate(2) of a file that is open for writing.

        Room is reserved in the staged copy: what is sealed takes what its bytes take.

        :raises OSError: ENOSPC, when all of it does not fit; nothing has changed then
        """
        if mode not in _ALLOCATIONS:
            raise OSError(errno.EOPNOTSUPP, "no such way to allocate")
        staged = await self._writable(file, is_privileged=is_privileged)
        if not mode & FALLOC_PUNCH_HOLE:
            most = max(file.inode.size, offset + length)
            growth = min(length, most - self._staging.taken_bytes(staged))
            staged = await self._make_room(file, staged, growth)
            if not staged.on_disk and growth > 0 and not self._staging.fits(growth):
                raise OSError(errno.ENOSPC, "no room to reserve")
        with self._rewriting(file, staged) as fd:
            await _change(file, length, allocate, fd, mode, offset, length)
            os.utime(fd, ns=(file.inode.atime_ns, time.time_ns()))

    async def copy_range(
        self,
        source: LiveFile,
        start: int,
        target: LiveFile,
        at: int,
        length: int,
        *,
        is_privileged: bool,
    ) -> int:
        """copy_file_range(2) to a file open for writing; how much, less than *length* if long."""
        if source.is_passed_through:
            source.refresh()
        most = _COPIED_AT_ONCE if target.is_passed_through else _COPIED_BY_LOOP
        end = min(start + min(length, most), source.inode.size)
        if end <= start:
            return 0
        await self._writable(target, is_privileged=is_privileged)
        with self._opened(source) as fd:
            if fd is not None:
                staged = await self._grown(target, at + end - start)
                with self._rewriting(target, staged) as to:
                    size = end - start
                    return await _change(target, size, copy_extents, fd, to, start, end, at - start)
        try:
            return await self._copy_content(source, start, end, target, at)
        except KeyError:
            # It was replaced and collected meanwhile: what is there now is as good.
            return await self.copy_range(
                source, start, target, at, length, is_privileged=is_privileged
            )

    async def _copy_content(
        self, source: LiveFile, start: int, end: int, target: LiveFile, at: int
    ) -> int:
        """Copy what is in no file: a hole, or some bytes."""
        content = source.inode.content
        assert content is not None, "it has bytes"
        size, data = await self._contents.read_extent(content, start, end - start)
        staged = await self._grown(target, at + size)
        with self._rewriting(target, staged) as to:
            if data is None:
                make_hole(to, at, size)
            else:
                write_all(to, data, at)
        return size

    async def _grown(self, file: LiveFile, end: int) -> StagedFile:
        """The staged copy, with room for a file that ends there."""
        return await self._make_room(file, await self._own(file), end - file.inode.size)

    async def seek(self, file: LiveFile, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE.

        :raises OSError: ENXIO, when there is none from *offset* on
        """
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "neither SEEK_DATA nor SEEK_HOLE")
        with self._opened(file) as fd:
            if fd is not None:
                return await _off_loop(file.inode.size - offset, os.lseek, fd, offset, whence)
        if file.inode.content is None:
            raise OSError(errno.ENXIO, "empty")
        return self._contents.seek(file.inode.content, offset, hole=whence == os.SEEK_HOLE)

    async def _writable(self, file: LiveFile, *, is_privileged: bool) -> StagedFile:
        """The staged copy of a file that is about to change."""
        staged = await self._own(file)
        if not is_privileged:
            self._namespace.drop_privileges(file.inode)
            self._namespace.drop_capabilities(file.inode)
        if file.is_passed_through:
            file.refresh()
        return staged

    @contextlib.contextmanager
    def _rewriting(self, file: LiveFile, staged: StagedFile) -> Iterator[int]:
        """A descriptor to change a staged copy by; then learn what became of it."""
        try:
            with staged.opened(os.O_RDWR) as fd:
                yield fd
        finally:
            file.may_be_sparse = True
            file.refresh()
            self._recount(file, staged)
            file.note_change()

    @contextlib.contextmanager
    def _opened(self, file: LiveFile) -> Iterator[int | None]:
        """A descriptor of all its bytes; None: they are in no file."""
        with contextlib.nullcontext() if file.staged is None else file.staged.opened() as fd:
            yield fd

    def attributes_set(self, file: LiveFile) -> None:
        """A program set times: carry them over to the staged file, where a restart finds them."""
        self.grants.end(file)
        if file.staged is not None and not file.staged.is_frozen:
            where = file.staged.path if file.staged.fd is None else file.staged.fd
            os.utime(where, ns=(file.inode.atime_ns, file.inode.mtime_ns))
