"""Files whose bytes the kernel moves without us: opening them, and letting them go.

Before a program gets its descriptor, its inode is attached to a file on our
tmpfs: to its staged copy when it is written, else to the resident image of its
content. From then on the kernel reads and writes that file itself. What is left
to decide here is which file that is, since the kernel keeps to one per inode for
as long as anybody has the inode open:

- not open: any; a writer gets a staged copy, a reader the image.
- open for reading through an image that no other file uses: a writer gets that
  very image, which thereby becomes the staged copy. Readers see what is written.
- open for reading through an image that other files use: the name moves to a
  fresh nodeid with a staged copy of its own, and the kernel is told to look the
  name up again (ESTALE). Readers keep the bytes they have, as after a rename over it.
- open for reading through a staged copy that clones share: the same, once no seal reads it.
- open and served by us (no room for an image): it stays so until it is closed.

A conversation is appended to every few seconds. A file that is opened for writing again and again
is *kept open*: to us somebody goes on writing it, so the relay may let in who does, and tells us
when they have closed it. That ends ten seconds after the last of them, or when somebody needs it
to be closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator

import trio

from agentfs.filesystem.contents import AT_ONCE_BYTES, ContentReader
from agentfs.filesystem.files import Files, Handle
from agentfs.filesystem.images import Image, Images
from agentfs.filesystem.livefile import InodeTable, LiveFile, StaleNode
from agentfs.filesystem.namespace import Namespace, without_setid
from agentfs.filesystem.placement import Placement
from agentfs.filesystem.ranges import copy_range
from agentfs.filesystem.relatime import fresh_until_ns
from agentfs.filesystem.relay import Relay
from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.index import Index
from agentfs.index.xattrs import CAPABILITY, LISTS
from agentfs.model import CACHE_S, Inode

_KEPT_S = 10.0
"""How long a file is kept open; and how soon it must be opened again, twice in a row, to be so."""

_KEPT_MAX = 512
"""Files: the relay has a descriptor of each."""

_REOPENED_LEAST = 2


class _Kept:
    """A file that is kept open for writing."""

    __slots__ = ("is_granted", "takes_bits", "used_at", "writes_seen")

    def __init__(self, used_at: float, *, is_granted: bool) -> None:
        self.is_granted = is_granted
        """The relay may open it for writing without us."""
        self.used_at = used_at
        self.writes_seen = -1
        """How often the relay had opened it when nobody wrote it, and all was known."""
        self.takes_bits = False
        """It got set-id bits while somebody who was let in had it open: who writes takes them."""


class PassthroughFiles(Files):
    """Regular files in relay mode."""

    prepares = True

    def __init__(
        self,
        table: InodeTable,
        namespace: Namespace,
        staging: Staging,
        contents: ContentReader,
        index: Index,
        relay: Relay,
        placement: Placement,
    ) -> None:
        super().__init__(table, namespace, staging, contents)
        self._index = index
        self._relay = relay
        self._kept: dict[LiveFile, _Kept] = {}
        self.clock: Callable[[], float] = time.monotonic
        self.images = Images(staging, contents, relay, placement)
        table.watch(
            relay.opens,
            self._changed,
            self._forgotten,
            self._directory_changed,
            relay.forget_ino,
        )
        index.xattrs.appeared = self._attribute_appeared
        relay.set_acl_free(namespace.keeps_acl and not index.xattrs.may_have_acl())

    # Taking over

    def inherit(self) -> None:
        """Go on where an earlier worker stopped: what is open stays so through the same file."""
        files = {id: (device, number) for id, device, number in self._relay.backings()}
        images = self.images.inherit({identity: id for id, identity in files.items()})
        used = set()
        for nodeid, _, backing, passed, handles, writers, answered in self._relay.rows():
            if passed or handles:
                identity = files.get(backing)
                image = None if identity is None else images.get(identity)
                file = self._table.inherit_open(nodeid, image.size if image else None)
                file.handles, file.writers = handles, writers
                if answered and self._table.live(file.inode.id) is file:
                    file.writers += 1
                    self._kept[file] = _Kept(self.clock(), is_granted=False)
                self._attach_again(file, backing, identity, image)
                used.add(backing)
        used.update(image.backing for image in images.values())
        for backing in files.keys() - used:
            with contextlib.suppress(FileNotFoundError):  # given back, and not yet noted so
                self._relay.unregister(backing)

    def _attach_again(
        self,
        file: LiveFile,
        backing: int,
        identity: tuple[int, int] | None,
        image: Image | None,
    ) -> None:
        """Attach a file that is open, by its backing id, to the file that this stands for."""
        is_named = self._table.live(file.inode.id) is file
        if is_named and file.staged is not None and identity == _identity(file.staged):
            file.backing = backing
            self._attach_staged(file, file.staged, writes=file.writers > 0)
            return
        if image is not None and not image.users:
            image.backing = backing  # clones may have registered the same file again
        if image is not None and is_named:
            self._attach_image(file, image)
        elif image is not None:
            self.images.use(image, file)
            self._attach_left(file, backing)
        elif backing:  # it has lost its name, or others have it
            file.backing = backing
            self._attach_left(file, backing)

    # Opening

    async def prepare(self, inode: Inode, flags: int, *, is_privileged: bool = True) -> None:
        """Attach the inode to what the opening program is to read or write.

        :raises StaleNode: the name has moved to another nodeid
        """
        file = self._table.enliven(inode)
        self.on_use(file)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        try:
            async with file.opening:
                if not flags & (os.O_ACCMODE | os.O_NOATIME):
                    self._note_read(file)  # we are not told of the reads
                if writes:
                    await self._leave_frozen(file)
                if writes and not file.writers:
                    is_soon = self.clock() - file.closed_at < _KEPT_S
                    file.reopened = file.reopened + 1 if is_soon and file.staged else 0
                if not self._table.is_open(inode.id):
                    truncates = bool(flags & os.O_TRUNC)
                    is_ours = writes and not self._may_write_unasked(inode, is_privileged)
                    await self._attach_first(
                        file, writes=writes, truncates=truncates, is_ours=is_ours
                    )
                elif writes and file.image is not None:
                    self._make_writable(file, file.image)
                elif writes and file.is_passed_through and file.staged is not None:
                    self._attach_staged(file, file.staged, writes=True)
                elif not writes and (not file.writers or file in self._kept):
                    self._grant_anew(file)  # this read has been recorded
        except BaseException:
            self._table.released(file)  # which it may have been meanwhile
            raise

    async def _leave_frozen(self, file: LiveFile) -> None:
        """Let the kernel use no more what clones share, before a program may write the file."""
        while file.backing is not None and file.staged is not None and file.staged.is_frozen:
            if self._let_go(file):
                return
            if not file.lock.is_held:
                self._split(file, file.backing)
                raise StaleNode
            async with file.lock:  # a seal reads the copy, and notes in the file what it sealed
                pass

    def _let_go(self, file: LiveFile) -> bool:
        """Detach a file from its staged copy; False, and nothing changed, while it is open."""
        if file.backing is None or file.handles or not self._relay.detach(file.nodeid):
            return False
        if self._kept.pop(file, None) is not None:
            file.writers -= 1
            file.note_change()  # by whoever was let in since we last asked
        if file.is_passed_through:
            file.refresh()
        self._relay.unregister(file.backing)
        file.backing = None
        file.is_passed_through = False
        return True

    def _may_write_unasked(self, inode: Inode, is_privileged: bool) -> bool:
        """Whether the kernel may write: it asks neither for room nor takes set-id bits away."""
        is_plain = without_setid(inode.mode) == inode.mode
        return (is_plain or is_privileged) and self._staging.is_safe_unasked

    async def _attach_first(
        self, file: LiveFile, *, writes: bool, truncates: bool, is_ours: bool
    ) -> None:
        """:param is_ours: we serve it"""
        while writes and file.lock.is_held:
            async with file.lock:  # a seal may be about to make the staged copy an image
                pass
        if file.image is not None and not writes:
            self._attach_image(file, file.image)
            return
        if file.image is not None and not (truncates or is_ours) and self._is_alone(file.image):
            self._make_writable(file, file.image)
            return
        if file.image is not None and self.images.leave(file) is False:
            self._make_writable(file, file.image)  # a reader came between
            return
        if file.staged is not None and not writes:
            self._attach_staged(file, file.staged, writes=False)
            return
        if is_ours:
            self._let_go(file)  # we serve it, and refuse what finds no room
            return
        if writes or file.inode.content is None:
            staged = await self._stage(file, limit=0 if truncates else None)
            self._attach_staged(file, staged, writes=writes)
            return
        image = await self.images.get(file.inode.content)
        if file.staged is not None:
            self._attach_staged(file, file.staged, writes=False)
        elif image is not None:
            self._attach_image(file, image)

    def prepare_new(self, file: LiveFile, *, is_privileged: bool = True) -> None:
        """Attach an inode just made, if there is room for what the kernel then writes unasked.

        Else we serve it, and who writes waits: the one who makes it must not, since the kernel
        has the directory locked for it.
        """
        staging = self._staging
        is_ours = not self._may_write_unasked(file.inode, is_privileged)
        if is_ours or staging.makes_wait or not staging.takes(0):
            return
        file.staged = staged = self._staging.create(file.inode.id)
        os.utime(staged.descriptor(), ns=(file.inode.atime_ns, file.inode.mtime_ns))
        self._attach_to(file, staged, writes=True)  # its attributes are in the reply

    def _attach_staged(self, file: LiveFile, staged: StagedFile, *, writes: bool) -> None:
        self._attach_to(file, staged, writes=writes)
        self._put_attributes(file.nodeid, file.inode)

    def _attach_to(self, file: LiveFile, staged: StagedFile, *, writes: bool) -> None:
        """A descriptor is kept, by the relay, only while somebody writes, or may without us."""
        kept = self._kept.get(file)
        writes = writes or kept is not None
        fd = staged.descriptor() if writes or file.backing is None else -1
        if file.backing is None:
            file.backing = self._relay.register(fd)
        file.is_passed_through = not staged.is_frozen
        if writes:
            file.may_be_sparse = True
        is_written = writes and (kept is None or self._relay.writers(file.nodeid)[0] > 0)
        self._relay.attach(
            file.nodeid,
            file.backing,
            fd,
            writable=writes,
            fresh_until_ns=0 if is_written else fresh_until_ns(file.inode),
            capability_free=not self._index.xattrs.may_have(CAPABILITY),
            opens_writes=kept is not None and kept.is_granted and self._may_be_kept(file),
        )
        staged.close()

    def _attach_image(self, file: LiveFile, image: Image) -> None:
        self.images.use(image, file)
        self._index.inodes.let_go(file.inode.id)
        self._relay.attach(
            file.nodeid,
            image.backing,
            fresh_until_ns=fresh_until_ns(file.inode),
            capability_free=not self._index.xattrs.may_have(CAPABILITY),
        )
        self._put_attributes(file.nodeid, file.inode)

    @staticmethod
    def _is_alone(image: Image) -> bool:
        """Whether an image may become the staged copy of the one file that uses it."""
        return len(image.users) == 1 and not image.is_frozen

    def _make_writable(self, file: LiveFile, image: Image) -> None:
        if not self._is_alone(image):
            self._split(file, image.backing)
            raise StaleNode
        staged = self.images.give_up(image, file.inode.id)
        os.utime(staged.descriptor(), ns=(file.inode.atime_ns, file.inode.mtime_ns))
        file.image = None
        file.staged = staged
        file.backing = image.backing
        self._attach_staged(file, staged, writes=True)

    def _split(self, file: LiveFile, backing: int) -> None:
        """Let those who have the file open keep what they read, and the name get a fresh nodeid.

        Other names of the file still lead the kernel to the old nodeid: opening it must reach
        us from now on, to be sent on.
        """
        self._attach_left(file, backing)
        fresh = self._table.split(file)
        self._relay.set_ino(fresh.nodeid, fresh.inode.id)

    def _attach_left(self, file: LiveFile, backing: int) -> None:
        """Grant no open of it unasked: names lead elsewhere, or are about to."""
        self._relay.attach(file.nodeid, backing)

    async def _fill(self, fd: int, content: int, size: int) -> None:
        image = self.images.find(content)
        if image is None:
            await super()._fill(fd, content, size)
            return
        with image.opened() as source:
            if size <= AT_ONCE_BYTES:
                copy_range(source, fd, 0, size)
            else:
                await trio.to_thread.run_sync(copy_range, source, fd, 0, size)
        os.ftruncate(fd, size)

    # Bytes, when we move them

    async def _make_room(self, file: LiveFile, staged: StagedFile, growth: int) -> StagedFile:
        if not file.is_passed_through:
            return await super()._make_room(file, staged, growth)
        if growth > 0 and not self._staging.fits(growth):
            await self._staging.wait_for_room(growth)  # it cannot move
        return staged

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
        if _is_kernels_alone(source):
            raise OSError(errno.EOPNOTSUPP, "the kernel copies it then")
        return await super().copy_range(
            source, start, target, at, length, is_privileged=is_privileged
        )

    async def seek(self, file: LiveFile, offset: int, whence: int) -> int:
        if not _is_kernels_alone(file):
            return await super().seek(file, offset, whence)
        if not 0 <= offset < file.inode.size:
            raise OSError(errno.ENXIO, "beyond the end")
        return offset if whence == os.SEEK_DATA else file.inode.size

    @contextlib.contextmanager
    def _opened(self, file: LiveFile) -> Iterator[int | None]:
        image = file.image if file.staged is None else None
        with super()._opened(file) if image is None else image.opened() as fd:
            yield fd

    # Letting go

    def release(self, handle: Handle) -> None:
        file = handle.file
        is_last = handle.is_writer and file.writers == 1 + (file in self._kept)
        if is_last and self._is_to_be_kept(file):
            self._keep_open(file)
        if handle.is_writer and file.is_passed_through:
            self._measure(file)
            if file.was_written and not handle.is_privileged:
                self._take_bits(file)
            if is_last:
                file.closed_at, file.was_written = self.clock(), False
            file.note_change()  # a mapping may have changed bytes without a trace
        super().release(handle)
        if is_last and file.is_passed_through and file.staged:
            self._attach_staged(file, file.staged, writes=False)
        if not file.handles:
            self.unstage_if_sealed(file)
            self._table.released(file)

    def _measure(self, file: LiveFile) -> None:
        """Learn what the kernel has written, and count the room it takes."""
        file.refresh(self._relay.measured(file.nodeid))  # it has a descriptor
        if file.staged is not None:
            self._staging.count(file.staged, file.taken_bytes)

    def _take_bits(self, file: LiveFile) -> None:
        """Somebody without privilege has written it."""
        file.was_written = False
        self._namespace.drop_privileges(file.inode)
        self._namespace.drop_capabilities(file.inode)
        self._relay.attr_changed(file.nodeid)

    # Kept open

    def _is_to_be_kept(self, file: LiveFile) -> bool:
        return (
            file.reopened >= _REOPENED_LEAST
            and file not in self._kept
            and len(self._kept) < _KEPT_MAX
            and file.is_passed_through
            and file.staged is not None
            and self._table.live(file.inode.id) is file
            and self._may_be_kept(file)
        )

    def _keep_open(self, file: LiveFile) -> None:
        file.writers += 1
        self._kept[file] = kept = _Kept(self.clock(), is_granted=True)
        _, kept.writes_seen = self._relay.writers(file.nodeid)

    def _may_be_kept(self, file: LiveFile) -> bool:
        """Whether whoever may open it for writing may do so unasked."""
        return (
            file.inode.nlink > 0
            and self._may_write_unasked(file.inode, is_privileged=False)
            and not self._staging.makes_wait
            and not self._index.xattrs.may_have(CAPABILITY)
        )

    def _learn_of_writes(self, file: LiveFile, kept: _Kept) -> bool:
        """Learn of what programs wrote that the relay has let in; True: one of them writes it."""
        writers, writes = self._relay.writers(file.nodeid)
        if writes != kept.writes_seen and file.staged is not None:
            self._measure(file)
            if file.was_written and kept.takes_bits:
                self._take_bits(file)
            file.was_written = False
            file.note_change()
            kept.used_at = file.closed_at = self.clock()
        if not writers:
            kept.writes_seen = writes
        return writers > 0

    def close_kept(self, file: LiveFile | None = None) -> None:
        closed = list(self._kept) if file is None else self._kept.keys() & {file}
        for one in closed:
            self._close_kept(one, self._kept[one])

    def _close_kept(self, file: LiveFile, kept: _Kept) -> None:
        """A program that the relay has let in makes it a file that is open like any other."""
        staged = file.staged
        if staged is not None and kept.is_granted:
            kept.is_granted = False
            self._attach_staged(file, staged, writes=True)  # nobody is let in from now on
        if self._learn_of_writes(file, kept):
            return
        del self._kept[file]
        file.writers -= 1
        if staged is not None and not file.writers:
            self._attach_staged(file, staged, writes=False)
        if not file.handles:
            self.unstage_if_sealed(file)
            self._table.released(file)

    def _close_what_rests(self) -> None:
        until = self.clock() - _KEPT_S
        is_short = self._staging.makes_wait or not self._staging.is_safe_unasked
        for file, kept in list(self._kept.items()):
            if is_short or not kept.is_granted or kept.used_at < until:
                self._close_kept(file, kept)

    def room_to_warm(self) -> float:
        return self._staging.budget_bytes - self._staging.staged_bytes

    async def warm(self, inode: Inode, name: bytes) -> bool:
        assert inode.content is not None, "it is sealed"
        image = await self.images.get(inode.content, is_wanted=True)
        if image is not None:
            self.images.note_place(image, inode, name)
        return image is not None

    async def bring(self, inode: Inode, name: bytes, likelihood: float) -> bool:
        return await self.images.expect(inode, name, likelihood)

    def _note_use(self, file: LiveFile) -> None:
        super()._note_use(file)
        if file.image is not None:
            self.images.opened(file.image)

    def judge_anew(self) -> None:
        self.images.judge_anew()

    def look_at_growth(self) -> None:
        for file in list(self._table.files()):
            if file in self._kept and file.writers == 1 and not self._relay.writers(file.nodeid)[0]:
                continue  # we are told when it has been written
            if file.writers and file.is_passed_through and file.staged is not None:
                self._measure(file)

    def cool(self, pace: float | None) -> None:
        self.images.cool(pace)

    async def tidy(self) -> None:
        self._close_what_rests()
        self._staging.make_room_ahead()
        await self.images.settle()
        await self.images.collapse()

    def attributes_set(self, file: LiveFile) -> None:
        super().attributes_set(file)
        kept = self._kept.get(file)
        if kept is not None:
            kept.takes_bits = self._learn_of_writes(file, kept)
        self._grant_anew(file)

    def _attribute_appeared(self, name: bytes) -> None:
        if name in LISTS:
            self._relay.set_acl_free(False)

    def _changed(self, nodeid: int) -> None:
        self._relay.attr_changed(nodeid)
        file = self._table.live_at(nodeid)
        if file is not None:
            self._grant_anew(file)

    def _directory_changed(self, directory: Inode) -> None:
        """Let the relay answer what the kernel asks after each change in a directory."""
        self._put_attributes(directory.id, directory)

    def _put_attributes(self, nodeid: int, inode: Inode) -> None:
        """Let the relay answer what the kernel asks next."""
        self._relay.put_attr(nodeid, inode, CACHE_S)

    def _grant_anew(self, file: LiveFile) -> None:
        """Times have changed: a read may have to be recorded, and must reach us, or may not."""
        if file.image is not None:
            self._attach_image(file, file.image)
        elif file.backing is not None and file.staged is not None:
            self._attach_staged(file, file.staged, writes=file.writers > 0)

    def share(self, file: LiveFile, inode_id: int) -> StagedFile:
        twin = super().share(file, inode_id)
        self._grant_anew(file)  # size and times are no longer those of the copy
        return twin

    def is_hot(self, content: int) -> bool:
        image = self.images.find(content)
        return image is not None and self.images.tier(image) == "hot"

    def resident_digests(self) -> Iterable[bytes]:
        return self.images.digests()

    def closed(self, nodeid: int) -> None:
        """The last descriptor of an inode has gone that the relay knows of."""
        file = self._table.live_at(nodeid)
        if file is None:
            return
        self.on_use(file)  # it may have been opened without us
        self._note_use(file)
        kept = self._kept.get(file)
        if kept is not None and not self._learn_of_writes(file, kept) and not kept.is_granted:
            self._close_kept(file, kept)
        if not file.handles:
            self.unstage_if_sealed(file)
            self._table.released(file)

    def unstage_if_sealed(self, file: LiveFile) -> None:
        """Keep the staged copy of a sealed file that nobody writes as the content's image."""
        staged = file.staged
        if staged is None or file.writers or file.is_dirty:
            return
        if file.backing is None:
            super().unstage_if_sealed(file)
            return
        if file.inode.content is not None and self._keep_as_image(file, staged, file.backing):
            return
        if self._let_go(file):
            super().unstage_if_sealed(file)

    def _keep_as_image(self, file: LiveFile, staged: StagedFile, backing: int) -> bool:
        assert file.inode.content is not None
        image = self.images.adopt(file.inode.content, staged, backing, file.inode)
        if image is None:
            return False
        file.staged = None
        file.backing = None
        file.is_passed_through = False
        self._attach_image(file, image)
        return True

    def _forgotten(self, file: LiveFile) -> None:
        """The kernel does not know the inode any more."""
        if file.image is not None:
            self.images.leave(file)
        else:
            self._let_go(file)

    def abandon(self) -> None:
        """The mount is gone: what is attached is ours again."""
        self._table.watch()
        self._kept.clear()
        for file in list(self._table.files()):
            if file.is_passed_through:
                file.refresh()
                file.note_change()
                file.is_passed_through = False
            file.backing = None
            file.image = None
        self.images.close()


def _is_kernels_alone(file: LiveFile) -> bool:
    """The name has moved away, and the staged copy with it; who has it open reads it still."""
    return file.backing is not None and file.staged is None


def _identity(staged: StagedFile) -> tuple[int, int]:
    status = os.stat(staged.path)
    return status.st_dev, status.st_ino
