"""The requests that pyfuse3 cannot carry; the relay hands them over as the kernel sent them.

As in `operations`, each handler translates, delegates once, and translates back.
Files are found by their nodeids: all but TMPFILE are about files that are open.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import trio

from agentfs.filesystem.namespace import Caller
from agentfs.fuse import abi
from agentfs.fuse._relay import Relay
from agentfs.fuse.abi import Opcode
from agentfs.fuse.attributes import packed_entry
from agentfs.fuse.errnos import translate
from agentfs.fuse.loop import letting_others_in
from agentfs.fuse.operations import Operations


class _Request(NamedTuple):
    nodeid: int
    caller: Caller
    body: bytes

    @property
    def is_privileged(self) -> bool:
        return self.caller.uid == 0


class RelayOperations:
    """Answers what `Relay.take_operations` gives."""

    def __init__(self, relay: Relay, operations: Operations) -> None:
        self._relay = relay
        self._operations = operations
        self._files = operations.volume.files
        self._table = operations.volume.table
        self._handlers: dict[int, Callable[[_Request], Coroutine[Any, Any, bytes]]] = {
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
        }

    async def serve(self) -> None:
        """Answer what comes. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._relay.operations_fd)
                for request in self._relay.take_operations():
                    nursery.start_soon(self._answer, *request)

    async def _answer(
        self, unique: int, opcode: int, nodeid: int, uid: int, gid: int, body: bytes
    ) -> None:
        handler = self._handlers[opcode]
        try:
            reply = await letting_others_in(handler(_Request(nodeid, Caller(uid, gid), body)))
        except Exception as error:
            self._relay.answer(unique, translate(error, handler.__name__).errno, b"")
        else:
            self._relay.answer(unique, 0, reply)

    async def _fallocate(self, request: _Request) -> bytes:
        _, offset, length, mode = abi.FALLOCATE_IN.unpack_from(request.body)
        file = self._table.opened(request.nodeid)
        await self._files.allocate(file, mode, offset, length, is_privileged=request.is_privileged)
        return b""

    async def _lseek(self, request: _Request) -> bytes:
        _, offset, whence = abi.LSEEK_IN.unpack_from(request.body)
        file = self._table.opened(request.nodeid)
        return abi.LSEEK_OUT.pack(await self._files.seek(file, offset, whence))

    async def _copy_file_range(self, request: _Request) -> bytes:
        return abi.COPY_OUT.pack(await self._copy(request))

    async def _copy_file_range_64(self, request: _Request) -> bytes:
        return abi.COPY_64_OUT.pack(await self._copy(request))

    async def _copy(self, request: _Request) -> int:
        _, start, target, _, at, length, _ = abi.COPY_IN.unpack_from(request.body)
        return await self._files.copy_range(
            self._table.opened(request.nodeid),
            start,
            self._table.opened(target),
            at,
            length,
            is_privileged=request.is_privileged,
        )

    async def _tmpfile(self, request: _Request) -> bytes:
        flags, mode, umask = abi.CREATE_IN.unpack_from(request.body)
        caller = request.caller._replace(umask=umask)
        fh, nodeid, inode = self._operations.tmpfile(request.nodeid, mode, flags, caller)
        return packed_entry(inode, nodeid) + abi.OPEN_OUT.pack(fh, 0)
