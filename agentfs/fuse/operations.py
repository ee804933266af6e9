"""Request handlers: each translates, delegates once, and translates back.

Handlers that never wait are atomic: trio switches tasks only at an await. FLUSH
and ACCESS have no handler, so pyfuse3 answers ENOSYS and the kernel stops
asking: closing costs no round trip, and permission is checked by the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields

from agentfs.filesystem.description import OWN_ATTRIBUTES, PIN_ATTRIBUTE, check
from agentfs.filesystem.directory import DirectoryStream
from agentfs.filesystem.files import Handle
from agentfs.filesystem.livefile import LiveFile, StaleNode
from agentfs.filesystem.namespace import AttributeChange, Caller, SealFirst, is_in_view, whole
from agentfs.filesystem.view import ViewStream
from agentfs.fuse.abi import Opcode
from agentfs.fuse.attributes import MISSING, entry_attributes, packed_listing, passing_entry
from agentfs.fuse.errnos import answers, answers_later, answers_mostly_at_once
from agentfs.fuse.loop import letting_others_in
from agentfs.fuse.resent import Resent
from agentfs.index.xattrs import ACCESS_LIST
from agentfs.model import NAME_BYTES_MAX, VIEW_FIRST, Inode

if TYPE_CHECKING:
    from agentfs.filesystem.volume import Volume
    from agentfs.fuse._relay import Relay


RELAY_HANDLE = 1 << 63
"""The relay's own handles are the nodeid with this bit set."""

# A handle is the nodeid, and what else must be known of an open, so that another worker that never
# gave it out can serve it. All opens that are alike share one.
_HANDLE_SHIFT = 4
_WRITER, _PRIVILEGED, _RECORDS_ATIME = 1, 2, 4

# That of a directory is the nodeid, which worker gave it out, and which of its streams it is.
_STREAM_SHIFT = 22
_STREAMS = 1 << 16

_TEXT = 1 << 61
"""A file of the view that is made when it is opened: with the nodeid, and a number of its own."""
_TEXT_SHIFT = 16
_TEXTS = 1 << _TEXT_SHIFT
_GENERATIONS = 1 << 6

_OWN_DESCRIPTORS = 128
"""Of those the daemon may have: to seal, to read segments, to be asked. The rest is programs'."""

_HANDLES_ALWAYS = 32
"""Open under any limit that agentfs can work with; it need not be asked for until then."""


def keeps_pages(number: int) -> bool:
    """Whether the kernel may go on using the pages that it has of a file, given a handle's number.

    They are right, but a read must reach us once for its time to be kept.
    """
    return not number & _RECORDS_ATIME


def _check_changeable(nodeid: int) -> None:
    """:raises OSError: EROFS, it is of the view"""
    if nodeid >= VIEW_FIRST:
        raise OSError(errno.EROFS, "the view of the daemon cannot be changed")


def _may_set_setgid(ctx: RequestContext, inode: Inode) -> bool:
    """Whether the kernel lets a program keep that bit: root, and who is in the file's group.

    It tells pyfuse3 nothing of supplementary groups. Without /proc there are none.
    """
    if not inode.mode & stat.S_ISGID or ctx.uid == 0 or ctx.gid == inode.gid:
        return True
    with contextlib.suppress(OSError):
        return inode.gid in pyfuse3.get_sup_groups(ctx.pid)
    return False


class Operations(pyfuse3.Operations):
    """All requests that pyfuse3 can carry."""

    supports_dot_lookup = False

    def __init__(self, volume: Volume, relay: Relay | None = None) -> None:
        super().__init__()
        self.enable_acl = volume.namespace.keeps_acl
        self._resent = Resent(relay)
        self.volume = volume
        self._names = volume.namespace
        self._files = volume.files
        self._describer = volume.describer
        self._owner = os.geteuid()
        self._table = volume.table
        self._handles: dict[int, Handle] = {}
        self._streams: dict[int, DirectoryStream | ViewStream] = {}
        self._streams_given = 0
        self._view = volume.view
        self._texts: dict[int, bytes] = {}
        self._texts_given = 0

    def _require_descriptor(self) -> None:
        """Before a file is opened, which takes one while it is written.

        :raises OSError: ENFILE, when programs have as many as they may
        """
        if len(self._handles) < _HANDLES_ALWAYS:
            return
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._handles) >= max(most - _OWN_DESCRIPTORS, most // 2):
            raise OSError(errno.ENFILE, "too many open files for the daemon's limit")

    def _new_entry(self, inode: Inode) -> EntryAttributes:
        """An entry the kernel will count as a lookup."""
        return entry_attributes(inode, self._table.told_of(inode))

    # Names

    @answers
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self.find(parent, name)
        if inode is not None:
            return self._new_entry(inode)
        return self._look_in_view(parent, name) if is_in_view(parent, name) else MISSING

    def find(self, parent: int, name: bytes) -> Inode | None:
        """What a name means; None: the kernel is told so, unless it is a name of the view."""
        inode = self._names.lookup(parent, name)
        if inode is None and not is_in_view(parent, name):
            self._table.missing.note(parent, name)
        return inode

    def _look_in_view(self, parent: int, name: bytes) -> EntryAttributes:
        inode = self._view.lookup(parent, name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "not in the view")  # nor remembered: it may come
        self._table.looked_up(inode.id)
        return passing_entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for nodeid, count in inode_list:
            self._table.forget(nodeid, count)

    @answers
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return self._new_entry(
            self._create(Opcode.MKNOD, parent, name, mode, ctx, rdev=rdev if is_device else None)
        )

    @answers
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._new_entry(self._create(Opcode.MKDIR, parent, name, mode, ctx))

    @answers
    def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._new_entry(self._create(Opcode.SYMLINK, parent, name, mode, ctx, target=target))

    @answers_later
    async def link(
        self, nodeid: int, parent: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        await self._seal_borrower(nodeid)
        try:
            return self._new_entry(self._names.link(nodeid, parent, name))
        except FileExistsError:
            return self._new_entry(self._made_before(Opcode.LINK, parent, name))

    def _create(
        self,
        opcode: Opcode,
        parent: int,
        name: bytes,
        mode: int,
        ctx: RequestContext,
        *,
        rdev: int | None = None,
        target: bytes | None = None,
    ) -> Inode:
        caller = Caller(ctx.uid, ctx.gid, ctx.umask)
        try:
            return self._names.create(parent, name, mode, caller, rdev=rdev, target=target)
        except FileExistsError:
            return self._made_before(opcode, parent, name)

    def _made_before(self, opcode: Opcode, parent: int, name: bytes) -> Inode:
        """What another worker made of this very request, before it died."""
        inode = self._names.lookup(parent, name) if self._resent(parent, opcode) else None
        if inode is None:
            raise FileExistsError(name)
        return inode

    @answers
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        try:
            self._names.unlink(parent, name)
        except OSError as error:
            self._resent.forgive(error, errno.ENOENT, parent, Opcode.UNLINK)

    @answers
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        try:
            self._names.rmdir(parent, name)
        except OSError as error:
            self._resent.forgive(error, errno.ENOENT, parent, Opcode.RMDIR)

    @answers_later
    async def rename(
        self,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        request = self._resent.number(old_parent, Opcode.RENAME2) if flags else 0
        names = old_parent, old_name, new_parent, new_name, flags, request
        try:
            try:
                self._names.rename(*names, seals_first=True)
            except SealFirst as first:
                await self._seal(first.file)
                self._names.rename(*names)
        except OSError as error:
            opcode = Opcode.RENAME2 if flags else Opcode.RENAME
            self._resent.forgive(error, errno.ENOENT, old_parent, opcode)

    async def _seal_borrower(self, nodeid: int) -> None:
        """Before others can see a file: a power cut must not show them what it replaced."""
        file = self._names.borrower(self._table.inode_id(nodeid))
        if file is not None:
            await self._seal(file)

    async def _seal(self, file: LiveFile) -> None:
        with contextlib.suppress(OSError):  # on a full disk its name may change all the same
            await self.volume.sealer.seal([file], wait=True)

    @answers
    def readlink(self, inode_id: int, ctx: RequestContext) -> bytes:
        target = self._table.get(inode_id).target
        assert target is not None, "the kernel asks for targets of symbolic links only"
        return target

    # Attributes

    @answers
    def getattr(self, nodeid: int, ctx: RequestContext) -> EntryAttributes:
        if nodeid >= VIEW_FIRST:
            return passing_entry(self._table.get(nodeid))
        return entry_attributes(self._table.get(nodeid), nodeid)

    @answers_later
    async def setattr(
        self,
        nodeid: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        _check_changeable(nodeid)
        if fields.update_size:
            await self._truncate(self._table.named(nodeid), attr.st_size, ctx)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            await self._seal_borrower(nodeid)
        inode = self._table.get(nodeid)
        self._names.change_attributes(
            inode,
            AttributeChange(
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
                ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            ),
        )
        file = self._table.live(inode.id)
        if file is not None:
            self._files.attributes_set(file)
        return entry_attributes(inode, nodeid)

    async def _truncate(self, inode: Inode, size: int, ctx: RequestContext) -> None:
        await self._prepare(inode, os.O_WRONLY if size else os.O_WRONLY | os.O_TRUNC, ctx)
        handle = self._files.open(inode, os.O_WRONLY, is_privileged=ctx.uid == 0)
        try:
            await self._files.truncate(handle.file, size, is_privileged=ctx.uid == 0)
        finally:
            self._files.release(handle)

    def _is_owner(self, uid: int) -> bool:
        """Whether root asks, or the user who mounted."""
        return uid in (0, self._owner)

    @answers
    def getxattr(self, nodeid: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.attribute(nodeid, name, ctx.uid)

    def attribute(self, nodeid: int, name: bytes, uid: int) -> bytes:
        """The value of an extended attribute, as that user may see it.

        :raises OSError: ENODATA, there is none
        """
        if nodeid >= VIEW_FIRST:
            raise OSError(errno.ENODATA, "the view has no attributes")
        if name.startswith(OWN_ATTRIBUTES):
            inode = self._table.get(nodeid)
            value = self._describer.attribute(inode, name, is_told_all=self._is_owner(uid))
        else:
            value = self._names.get_xattr(self._table.inode_id(nodeid), name)
        if self._resent.may_have_created_attribute(nodeid):
            raise OSError(errno.ENODATA, "pyfuse3 asks before it sets; see setxattr")
        return value

    @answers_later
    async def setxattr(self, nodeid: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        _check_changeable(nodeid)
        if name == ACCESS_LIST:
            await self._seal_borrower(nodeid)
        inode_id = self._table.inode_id(nodeid)
        if self._resent.may_have_created_attribute(nodeid) and self._names.has_xattr(
            inode_id, name, other_than=value
        ):
            raise FileExistsError(name)  # somebody else's; what is ours is set once more
        if name.startswith(OWN_ATTRIBUTES):
            check(self._table.get(nodeid), name, value)
            if name == PIN_ATTRIBUTE and not self._is_owner(ctx.uid):
                raise PermissionError(errno.EPERM, "others share the room that a pin takes")
        keeps_setgid = name != ACCESS_LIST or _may_set_setgid(ctx, self._table.get(nodeid))
        self._names.set_xattr(inode_id, name, value, keeps_setgid=keeps_setgid)
        if name.startswith(OWN_ATTRIBUTES):
            self._files.judge_anew()

    @answers
    def listxattr(self, nodeid: int, ctx: RequestContext) -> list[bytes]:
        return self._names.list_xattrs(self._table.inode_id(nodeid))

    @answers_later
    async def removexattr(self, nodeid: int, name: bytes, ctx: RequestContext) -> None:
        _check_changeable(nodeid)
        if name == ACCESS_LIST:
            await self._seal_borrower(nodeid)
        try:
            self._names.remove_xattr(self._table.inode_id(nodeid), name)
            if name.startswith(OWN_ATTRIBUTES):
                self._files.judge_anew()
        except OSError as error:
            self._resent.forgive(error, errno.ENODATA, nodeid, Opcode.REMOVEXATTR)

    # Regular files

    async def _prepare(self, inode: Inode, flags: int, ctx: RequestContext) -> None:
        try:
            await self._files.prepare(inode, flags, is_privileged=ctx.uid == 0)
        except StaleNode:
            # The kernel looks up the name again that it used; of the others it must be told.
            for parent, name in self._names.other_names(inode):
                pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
            raise

    @answers_mostly_at_once
    async def open(self, nodeid: int, flags: int, ctx: RequestContext) -> FileInfo:
        if nodeid >= VIEW_FIRST:
            if flags & (os.O_ACCMODE | os.O_TRUNC):
                _check_changeable(nodeid)
            if self._view.is_text(nodeid):
                return await letting_others_in(self._open_text(nodeid))
        self._require_descriptor()
        inode = self._table.named(nodeid)
        if self._files.prepares:
            await letting_others_in(self._prepare(inode, flags, ctx))
        handle = self._files.open(inode, flags, is_privileged=ctx.uid == 0)
        if flags & os.O_TRUNC:
            await letting_others_in(self._truncate_opened(handle))
        return self._file_info(self._numbered(handle))

    def open_at_once(self, nodeid: int, flags: int, *, is_privileged: bool) -> int | None:
        """The same: the handle's number; None: it may have to wait for something."""
        if self._files.prepares or flags & os.O_TRUNC:
            return None
        self._require_descriptor()
        inode = self._table.named(nodeid)
        return self._numbered(self._files.open(inode, flags, is_privileged=is_privileged))

    async def _truncate_opened(self, handle: Handle) -> None:
        try:
            await self._files.truncate(handle.file, 0, is_privileged=handle.is_privileged)
        except BaseException:
            self._files.release(handle)
            raise

    async def _open_text(self, nodeid: int) -> FileInfo:
        text = await self._view.text(nodeid)
        self._texts_given = (self._texts_given + 1) % _TEXTS
        number = _TEXT | (nodeid - VIEW_FIRST) << _TEXT_SHIFT | self._texts_given
        self._texts[number] = text
        return FileInfo(fh=number, direct_io=True)  # else the kernel reads as much as its size says

    async def _read_text(self, fh: int, offset: int, size: int) -> bytes:
        text = self._texts.get(fh)
        if text is None:  # another worker made it
            if offset:
                raise OSError(errno.ESTALE, "what was read so far is not what it would be now")
            text = await self._view.text((fh & ~_TEXT) >> _TEXT_SHIFT | VIEW_FIRST)
            self._texts[fh] = text
        return text[offset : offset + size]

    @answers_mostly_at_once
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        caller = Caller(ctx.uid, ctx.gid, ctx.umask)
        made = self.create_at_once(parent, name, mode, flags, caller)
        if made is None:
            made = await letting_others_in(self._open_made_before(parent, name, flags, ctx))
        number, inode = made
        return self._file_info(number), self._new_entry(inode)

    def create_at_once(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[int, Inode] | None:
        """Make a file and open it: its handle's number, the inode; None: there is one already."""
        self._require_descriptor()
        try:
            inode = self._names.create(parent, name, mode, caller)
        except FileExistsError:
            return None
        return self._numbered(self._open_new(inode, parent, name, flags, caller)), inode

    async def _open_made_before(
        self, parent: int, name: bytes, flags: int, ctx: RequestContext
    ) -> tuple[int, Inode]:
        inode = self._made_before(Opcode.CREATE, parent, name)
        await self._prepare(inode, flags, ctx)
        return self._numbered(self._files.open(inode, flags, is_privileged=ctx.uid == 0)), inode

    def _open_new(
        self, inode: Inode, parent: int, name: bytes, flags: int, caller: Caller
    ) -> Handle:
        handle = self._files.open(inode, flags, is_privileged=caller.uid == 0)
        handle.file.name = (parent, name)
        try:
            self._files.prepare_new(handle.file, is_privileged=handle.is_privileged)
        except OSError:
            self._files.release(handle)
            self._names.unlink(parent, name)
            raise
        return handle

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[int, int, Inode]:
        """Open a new file without a name: its handle's number, its nodeid, the inode.

        Not called by pyfuse3, see `relay_operations`.
        """
        self._require_descriptor()
        inode = self._names.create_unnamed(parent, mode, caller)
        handle = self._files.open(inode, flags, is_privileged=caller.uid == 0)
        try:
            self._files.prepare_new(handle.file, is_privileged=handle.is_privileged)
        except BaseException:
            self._files.release(handle)
            raise
        return self._numbered(handle), self._table.told_of(inode), inode

    @staticmethod
    def _file_info(number: int) -> FileInfo:
        return FileInfo(fh=number, keep_cache=keeps_pages(number))

    def _numbered(self, handle: Handle) -> int:
        number = handle.file.nodeid << _HANDLE_SHIFT
        number |= _WRITER * handle.is_writer | _PRIVILEGED * handle.is_privileged
        number |= _RECORDS_ATIME * handle.records_atime
        shared = self._handles.setdefault(number, handle)
        shared.opens += 1
        shared.records_atime = handle.records_atime
        return number

    def _handle(self, number: int) -> Handle:
        """:raises OSError: ESTALE, when nothing is open under that nodeid"""
        handle = self._handles.get(number)
        if handle is None and number & RELAY_HANDLE:
            handle = Handle(
                self._table.opened(number ^ RELAY_HANDLE), is_writer=False, is_privileged=False
            )
            handle.is_noted = not self._files.grants.is_read_anew(handle.file)
            return handle
        if handle is None:
            handle = Handle(
                self._table.opened(number >> _HANDLE_SHIFT),
                is_writer=bool(number & _WRITER),
                is_privileged=bool(number & _PRIVILEGED),
            )
            handle.records_atime = bool(number & _RECORDS_ATIME)
            self._handles[number] = handle
        return handle

    @answers_later
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        if fh & _TEXT:
            return await self._read_text(fh, offset, size)
        return await self._files.read(self._handle(fh), offset, size)

    def read_at_once(self, fh: int, offset: int, size: int) -> bytes | None:
        """The same; None: it may have to wait for something."""
        return None if fh & _TEXT else self._files.read_at_once(self._handle(fh), offset, size)

    @answers_later
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return await self._files.write(self._handle(fh), offset, data)

    def write_at_once(self, fh: int, offset: int, data: memoryview) -> bool:
        """The same; False: it may have to wait for something."""
        return self._files.write_at_once(self._handle(fh), offset, data)

    @answers
    def release(self, fh: int) -> None:
        self.release_at_once(fh)

    def release_at_once(self, fh: int) -> None:
        """A program has closed a regular file. Never waits."""
        if fh & _TEXT:
            self._texts.pop(fh, None)
            return
        handle = self._handle(fh)
        handle.opens -= 1
        if handle.opens <= 0:
            del self._handles[fh]
        self._files.release(handle)

    @answers_later
    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh & _TEXT:
            return
        file = self._handle(fh).file if fh < RELAY_HANDLE else self._opened_by_relay(fh)
        if file is not None:
            await self.volume.sealer.fsync(file)
        else:
            await self.volume.durability.sync()

    def _opened_by_relay(self, fh: int) -> LiveFile | None:
        return self._table.live_at(fh - RELAY_HANDLE)

    # Directories

    @answers
    def opendir(self, inode_id: int, ctx: RequestContext) -> int:
        return self.open_directory(inode_id)

    def open_directory(self, inode_id: int) -> int:
        """The number of a new handle."""
        generation = self._resent.generation % _GENERATIONS
        number = -1
        while number < 0 or number in self._streams:
            self._streams_given = (self._streams_given + 1) % _STREAMS
            number = inode_id << _STREAM_SHIFT | generation * _STREAMS | self._streams_given
        self._streams[number] = self._opened_stream(inode_id)
        return number

    def _opened_stream(
        self, inode_id: int, places: Sequence[tuple[int, bytes]] = ()
    ) -> DirectoryStream | ViewStream:
        if inode_id >= VIEW_FIRST:
            return ViewStream(self._view, inode_id)
        return DirectoryStream(self._names, inode_id, places)

    def _stream(self, number: int) -> DirectoryStream | ViewStream:
        stream = self._streams.get(number)
        if stream is None:  # another worker gave it out
            inode_id = number >> _STREAM_SHIFT
            stream = self._opened_stream(inode_id, self._resent.places(number))
            self._streams[number] = stream
        return stream

    @answers
    def readdir(self, fh: int, position: int, token: ReaddirToken) -> None:
        reply = pyfuse3.readdir_reply
        renumber = self._table.nodeid if self._table.has_moved else None
        told = []
        stream = self._stream(fh)
        describe = passing_entry if isinstance(stream, ViewStream) else entry_attributes
        for after, name, found in stream.entries(position):
            inode = whole(found)
            nodeid = renumber(inode.id) if renumber else inode.id
            if not reply(token, name, describe(inode, nodeid), after):
                break
            if after > 2:  # the kernel does not count "." and ".."
                told.append(nodeid)
        self._table.all_looked_up(told)

    def list_directory(self, fh: int, position: int, room: int) -> bytes:
        """The same as the kernel has it: as many entries as fit into so many bytes."""
        renumber = self._table.nodeid if self._table.has_moved else None
        listing, told = packed_listing(self._stream(fh).entries(position), room, renumber)
        self._table.all_looked_up(told)
        return listing

    @answers
    def releasedir(self, fh: int) -> None:
        self.close_directory(fh)

    def close_directory(self, fh: int) -> None:
        """The handle is used no more."""
        self._streams.pop(fh, None)

    @answers_later
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.volume.durability.sync()

    # The whole

    @answers
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        below = os.statvfs(self.volume.path)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = below.f_frsize
        answer.f_blocks = below.f_blocks
        answer.f_bfree = answer.f_bavail = self.volume.staging.free_bytes() // below.f_frsize
        answer.f_files = below.f_files
        answer.f_ffree = below.f_ffree
        answer.f_favail = below.f_favail
        answer.f_namemax = NAME_BYTES_MAX
        return answer
