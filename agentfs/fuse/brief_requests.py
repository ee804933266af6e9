"""Requests about names and attributes, answered where they are read.

While requests follow each other, Python's thread reads them from the kernel itself
(docs/RELAY.md). To send those that need no waiting through a socket, libfuse and pyfuse3
costs more than to answer them. What may have to wait after all is passed on.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TypeAlias

from agentfs.filesystem.namespace import Caller, SealFirst, is_in_view
from agentfs.fuse import abi
from agentfs.fuse._relay import Relay
from agentfs.fuse.abi import Opcode
from agentfs.fuse.attributes import PACKED_MISSING, packed_attributes, packed_entry
from agentfs.fuse.errnos import translate
from agentfs.fuse.operations import Operations, keeps_pages
from agentfs.model import VIEW_FIRST

_Answered: TypeAlias = bytes | None
"""What follows the header of a reply; None: pyfuse3 shall see to it."""


class BriefRequests:
    """Answers what `Relay.take` gives."""

    def __init__(self, relay: Relay, operations: Operations) -> None:
        self._relay = relay
        self._operations = operations
        self._names = operations.volume.namespace
        self._table = operations.volume.table
        self._handlers: dict[int, Callable[[int, Caller, bytes], _Answered]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RELEASE: self._release,
            Opcode.CREATE: self._create,
        }

    def answer(self, request: tuple[int, int, int, int, int, bytes]) -> None:
        """Answer one request, or pass it on."""
        unique, opcode, nodeid, uid, gid, body = request
        handler = self._handlers[opcode]
        try:
            reply = None if nodeid >= VIEW_FIRST else handler(nodeid, Caller(uid, gid), body)
        except Exception as error:
            self._relay.answer(unique, translate(error, handler.__name__).errno, b"")
            return
        if reply is None:
            self._relay.pass_on()
        else:
            self._relay.answer(unique, 0, reply)

    def _lookup(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        name = body[:-1]
        inode = self._operations.find(parent, name)
        if inode is not None:
            return packed_entry(inode, self._table.told_of(inode))
        return None if is_in_view(parent, name) else PACKED_MISSING

    def _getattr(self, nodeid: int, caller: Caller, body: bytes) -> _Answered:
        return packed_attributes(self._table.get(nodeid), nodeid)

    def _mkdir(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        mode, umask = abi.MKDIR_IN.unpack_from(body)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        caller = caller._replace(umask=umask)
        inode = self._names.create(parent, body[abi.MKDIR_IN.size : -1], mode, caller)
        return packed_entry(inode, self._table.told_of(inode))

    def _unlink(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        self._names.unlink(parent, body[:-1])
        return b""

    def _rmdir(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        self._names.rmdir(parent, body[:-1])
        return b""

    def _rename(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        (new_parent,) = abi.RENAME_IN.unpack_from(body)
        name, new_name, _ = body[abi.RENAME_IN.size :].split(b"\0")
        try:
            self._names.rename(parent, name, new_parent, new_name, 0, 0, seals_first=True)
        except SealFirst:
            return None
        return b""

    def _release(self, nodeid: int, caller: Caller, body: bytes) -> _Answered:
        (fh,) = abi.RELEASE_IN.unpack_from(body)
        self._operations.release_at_once(fh)
        return b""

    def _create(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        flags, mode, umask = abi.CREATE_IN.unpack_from(body)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        name = body[abi.CREATE_IN.size : -1]
        caller = caller._replace(umask=umask)
        made = self._operations.create_at_once(parent, name, mode, flags, caller)
        if made is None:
            return None
        number, inode = made
        opened = abi.OPEN_OUT.pack(number, abi.FOPEN_KEEP_CACHE * keeps_pages(number))
        return packed_entry(inode, self._table.told_of(inode)) + opened
