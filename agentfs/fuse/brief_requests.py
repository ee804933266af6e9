"""Requests about names and attributes, answered where they are read.

While requests follow each other, Python's thread reads them from the kernel itself
(docs/RELAY.md). To send those that need no waiting through a socket, libfuse and pyfuse3
costs more than to answer them. What may have to wait after all is passed on.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from agentfs.filesystem.namespace import Caller, SealFirst, is_in_view
from agentfs.fuse._relay import Relay
from agentfs.fuse.attributes import PACKED_MISSING, packed_attributes, packed_entry
from agentfs.fuse.errnos import translate
from agentfs.fuse.operations import Operations, keeps_pages
from agentfs.model import VIEW_FIRST

# Opcodes, structures and flags of linux/fuse.h.
_LOOKUP = 1
_GETATTR = 3
_MKDIR = 9
_UNLINK = 10
_RMDIR = 11
_RENAME = 12
_RELEASE = 18
_CREATE = 35

_MKDIR_IN = struct.Struct("=II")
_RENAME_IN = struct.Struct("=Q")
_RELEASE_IN = struct.Struct("=Q")
_CREATE_IN = struct.Struct("=III4x")
_OPEN_OUT = struct.Struct("=QI4x")
_KEEP_CACHE = 1 << 1

_Answered: TypeAlias = bytes | None
"""What follows the header of a reply; None: pyfuse3 shall see to it."""


def _at_once(handler: Coroutine[Any, Any, Any]) -> Any:
    """What a handler of pyfuse3 returns that never waits."""
    try:
        handler.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class BriefRequests:
    """Answers what `Relay.take` gives."""

    def __init__(self, relay: Relay, operations: Operations) -> None:
        self._relay = relay
        self._operations = operations
        self._names = operations.volume.namespace
        self._table = operations.volume.table
        self._handlers: dict[int, Callable[[int, Caller, bytes], _Answered]] = {
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _MKDIR: self._mkdir,
            _UNLINK: self._unlink,
            _RMDIR: self._rmdir,
            _RENAME: self._rename,
            _RELEASE: self._release,
            _CREATE: self._create,
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
        inode = self._names.lookup(parent, name)
        if inode is not None:
            return packed_entry(inode, self._table.told_of(inode))
        return None if is_in_view(parent, name) else PACKED_MISSING

    def _getattr(self, nodeid: int, caller: Caller, body: bytes) -> _Answered:
        return packed_attributes(self._table.get(nodeid), nodeid)

    def _mkdir(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        mode, umask = _MKDIR_IN.unpack_from(body)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        caller = caller._replace(umask=umask)
        inode = self._names.create(parent, body[_MKDIR_IN.size : -1], mode, caller)
        return packed_entry(inode, self._table.told_of(inode))

    def _unlink(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        self._names.unlink(parent, body[:-1])
        return b""

    def _rmdir(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        self._names.rmdir(parent, body[:-1])
        return b""

    def _rename(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        (new_parent,) = _RENAME_IN.unpack_from(body)
        name, new_name, _ = body[_RENAME_IN.size :].split(b"\0")
        try:
            self._names.rename(parent, name, new_parent, new_name, 0, 0, seals_first=True)
        except SealFirst:
            return None
        return b""

    def _release(self, nodeid: int, caller: Caller, body: bytes) -> _Answered:
        (fh,) = _RELEASE_IN.unpack_from(body)
        _at_once(self._operations.release(fh))
        return b""

    def _create(self, parent: int, caller: Caller, body: bytes) -> _Answered:
        flags, mode, umask = _CREATE_IN.unpack_from(body)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        name = body[_CREATE_IN.size : -1]
        caller = caller._replace(umask=umask)
        made = self._operations.create_at_once(parent, name, mode, flags, caller)
        if made is None:
            return None
        number, inode = made
        opened = _OPEN_OUT.pack(number, _KEEP_CACHE * keeps_pages(number))
        return packed_entry(inode, self._table.told_of(inode)) + opened
