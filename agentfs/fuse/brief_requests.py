"""Frequent requests, answered where they are read.

While requests follow each other, Python's thread reads them from the kernel itself
(docs/RELAY.md). To send those that need no waiting through a socket, libfuse and pyfuse3
costs more than to answer them. What may have to wait after all is passed on.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import TypeAlias

from agentfs.filesystem.namespace import Caller, SealFirst, is_in_view
from agentfs.fuse import abi
from agentfs.fuse._relay import Relay
from agentfs.fuse.abi import Opcode
from agentfs.fuse.attributes import PACKED_MISSING, packed_attributes, packed_entry
from agentfs.fuse.errnos import translate
from agentfs.fuse.loop import Request
from agentfs.fuse.operations import Operations, keeps_pages
from agentfs.model import VIEW_FIRST

_Answered: TypeAlias = bytes | None
"""What follows the header of a reply; None: pyfuse3 shall see to it."""

_FORGETS = {Opcode.FORGET, Opcode.BATCH_FORGET}
"""These have no reply."""


class BriefRequests:
    """Answers what `Relay.take` gives."""

    def __init__(self, relay: Relay, operations: Operations) -> None:
        self._relay = relay
        self._operations = operations
        self._names = operations.volume.namespace
        self._table = operations.volume.table
        self._handlers: dict[int, Callable[[int, bytes, int, int], _Answered]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.RELEASE: self._release,
            Opcode.GETXATTR: self._getxattr,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.CREATE: self._create,
        }

    def answer(self, request: Request) -> None:
        """Answer one request if it wants a reply, or pass it on."""
        unique, opcode, nodeid, uid, gid, body = request
        if opcode in _FORGETS:
            self._forget(opcode, nodeid, body)
            return
        handler = self._handlers[opcode]
        try:
            reply = None if nodeid >= VIEW_FIRST else handler(nodeid, body, uid, gid)
        except Exception as error:
            self._relay.answer(unique, translate(error, handler.__name__).errno, b"")
            return
        if reply is None:
            self._relay.pass_on()
        else:
            self._relay.answer(unique, 0, reply)

    def _forget(self, opcode: int, nodeid: int, body: bytes) -> None:
        if opcode == Opcode.FORGET:
            self._table.forget(nodeid, *abi.FORGET_IN.unpack(body))
            return
        for forgotten in abi.FORGET_ONE.iter_unpack(body[abi.BATCH_FORGET_IN.size :]):
            self._table.forget(*forgotten)

    def _lookup(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        name = body[:-1]
        inode = self._operations.find(parent, name)
        if inode is not None:
            return packed_entry(inode, self._table.told_of(inode))
        return None if is_in_view(parent, name) else PACKED_MISSING

    def _getattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        return packed_attributes(self._table.get(nodeid), nodeid)

    def _mkdir(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        mode, umask = abi.MKDIR_IN.unpack_from(body)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        caller = Caller(uid, gid, umask)
        inode = self._names.create(parent, body[abi.MKDIR_IN.size : -1], mode, caller)
        return packed_entry(inode, self._table.told_of(inode))

    def _unlink(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        self._names.unlink(parent, body[:-1])
        return b""

    def _rmdir(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        self._names.rmdir(parent, body[:-1])
        return b""

    def _rename(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        (new_parent,) = abi.RENAME_IN.unpack_from(body)
        name, new_name, _ = body[abi.RENAME_IN.size :].split(b"\0")
        try:
            self._names.rename(parent, name, new_parent, new_name, 0, 0, seals_first=True)
        except SealFirst:
            return None
        return b""

    def _open(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        (flags,) = abi.OPEN_IN.unpack(body)
        number = self._operations.open_at_once(nodeid, flags, is_privileged=uid == 0)
        if number is None:
            return None
        return abi.OPEN_OUT.pack(number, abi.FOPEN_KEEP_CACHE * keeps_pages(number))

    def _read(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        return self._operations.read_at_once(*abi.READ_IN.unpack(body))

    def _write(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        fh, offset, size = abi.READ_IN.unpack_from(body)
        data = memoryview(body)[abi.READ_IN.size :]
        if not self._operations.write_at_once(fh, offset, data):
            return None
        return abi.WRITE_OUT.pack(size)

    def _getxattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        (room,) = abi.GETXATTR_IN.unpack_from(body)
        value = self._operations.attribute(nodeid, body[abi.GETXATTR_IN.size : -1], uid)
        if room == 0:
            return abi.WRITE_OUT.pack(len(value))
        if len(value) > room:
            raise OSError(errno.ERANGE, "no room for the value")
        return value

    def _opendir(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        return abi.OPEN_OUT.pack(self._operations.open_directory(nodeid), 0)

    def _readdirplus(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        return self._operations.list_directory(*abi.READ_IN.unpack(body))

    def _releasedir(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        (fh,) = abi.RELEASE_IN.unpack(body)
        self._operations.close_directory(fh)
        return b""

    def _release(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Answered:
        (fh,) = abi.RELEASE_IN.unpack_from(body)
        self._operations.release_at_once(fh)
        return b""

    def _create(self, parent: int, body: bytes, uid: int, gid: int) -> _Answered:
        flags, mode, umask = abi.CREATE_IN.unpack_from(body)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        name = body[abi.CREATE_IN.size : -1]
        caller = Caller(uid, gid, umask)
        made = self._operations.create_at_once(parent, name, mode, flags, caller)
        if made is None:
            return None
        number, inode = made
        opened = abi.OPEN_OUT.pack(number, abi.FOPEN_KEEP_CACHE * keeps_pages(number))
        return packed_entry(inode, self._table.told_of(inode)) + opened
