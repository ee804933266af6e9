"""Answers the control socket inside the daemon (trio).

A client can be anything that may open the socket: it can send garbage, stop
reading, or vanish. Whatever it does costs one task and at most two lines of
memory, for a bounded time, and never stalls or ends an operation:

- the socket has mode 0600 from the moment it exists;
- an operation runs to its end even if the client that asked for it is gone;
- progress is a slot that keeps the newest value, so reporting it never waits.

The caller holds the store's lock, so a socket that is already there is stale.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from agentfs.control import protocol
from agentfs.errors import AgentfsError, StoreUnusable, UsageError

log = logging.getLogger(__name__)

ProgressFn = Callable[[str, int, int], None]
"""(what, done, total): never waits, and may be called from any thread."""

Handler = Callable[[dict[str, Any], ProgressFn], Awaitable[dict[str, Any]]]
"""One operation: its arguments and a progress function in, its result out."""

MAX_CLIENTS = 32
IDLE_S = 30.0  # a client that sends no request for this long is hung up on
SEND_S = 10.0  # a client that does not read for this long is hung up on
LINGER_S = 2.0  # a client has this long to take in why it is hung up on
PROGRESS_EVERY_S = 0.1


async def serve(
    store_dir: Path,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on *store_dir*/control until cancelled; started() once it listens.

    Raises StoreUnusable if something that is no socket is in the way.
    """
    listener = _listen(store_dir)
    clients = trio.CapacityLimiter(MAX_CLIENTS)

    async def client(stream: trio.SocketStream) -> None:
        try:
            clients.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await _Connection(stream, handlers).refuse("too many clients; try again")
            return
        try:
            await _Connection(stream, handlers).serve()
        finally:
            clients.release_on_behalf_of(stream)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, client, [listener])
            task_status.started()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(store_dir / protocol.SOCKET_NAME)


def _listen(store_dir: Path) -> trio.SocketListener:
    path = store_dir / protocol.SOCKET_NAME
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StoreUnusable(f"{path} is in the way and is no socket; move it elsewhere")
        os.unlink(path)
    except FileNotFoundError:
        pass
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file that bind() makes the mode of the socket: no moment without it.
        os.fchmod(raw.fileno(), 0o600)
        with protocol.socket_address(store_dir) as address:
            raw.bind(address)
        raw.listen(MAX_CLIENTS)
    except BaseException:
        raw.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(raw))


class _HungUp(Exception):
    """The client hung up, or has to be hung up on."""


class _Connection:
    """One client. Its requests run one after the other."""

    def __init__(self, stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
        self._stream = stream
        self._handlers = handlers
        self._pending = bytearray()
        self._sending = trio.Lock()
        self._torn = False  # a line was sent in part: nothing sensible can follow it

    async def serve(self) -> None:
        with contextlib.suppress(_HungUp):
            async with self._stream:
                while True:
                    try:
                        request = protocol.decode(await self._read_line())
                    except protocol.MalformedLine as error:
                        await self._send_last(_failure(UsageError(f"bad request: {error}")))
                        return
                    await self._answer(request)

    async def refuse(self, why: str) -> None:
        with contextlib.suppress(_HungUp):
            async with self._stream:
                await self._send_last(_failure(AgentfsError(why)))

    async def _read_line(self) -> bytes:
        """Return the next line; raises MalformedLine if it is too long."""
        if self._torn:
            raise _HungUp
        with trio.move_on_after(IDLE_S):
            while (end := self._pending.find(b"\n")) < 0:
                if len(self._pending) >= protocol.MAX_LINE_BYTES:
                    raise protocol.MalformedLine("the line is longer than 64 KiB")
                try:
                    data = await self._stream.receive_some(protocol.MAX_LINE_BYTES)
                except trio.BrokenResourceError as error:
                    raise _HungUp from error
                if not data:
                    raise _HungUp
                self._pending += data
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            return line
        raise _HungUp

    async def _answer(self, request: dict[str, Any]) -> None:
        op, args = request.get("op"), request.get("args", {})
        handler = self._handlers.get(op) if isinstance(op, str) else None
        if handler is None or not isinstance(args, dict):
            known = ", ".join(sorted(self._handlers))
            what = (
                "args must be an object" if handler else f"no operation {op!r}; there are {known}"
            )
            await self._send(_failure(UsageError(f"bad request: {what}")))
            return
        newest = (str(op), 0, 0)

        def progress(what: str, done: int, total: int) -> None:
            nonlocal newest
            newest = (what, done, total)

        async def report() -> None:
            sent, sent_at = newest, trio.current_time()
            with contextlib.suppress(_HungUp):  # and the operation goes on without a listener
                while True:
                    await trio.sleep(PROGRESS_EVERY_S)
                    if newest == sent and trio.current_time() - sent_at < protocol.HEARTBEAT_S:
                        continue
                    sent, sent_at = newest, trio.current_time()
                    what, done, total = sent
                    await self._send({"progress": {"what": what, "done": done, "total": total}})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            reply = await _run(str(op), handler, args, progress)
            # The last thing a daemon does is to answer `stop`, while everything around is
            # cancelled: so no checkpoint that can be cancelled from here on.
            with trio.CancelScope(shield=True), contextlib.suppress(_HungUp):
                for line in protocol.row_lines(reply.get("result", {}).pop("rows", ())):
                    await self._send_line(line)
                await self._send(reply)
            nursery.cancel_scope.cancel()

    async def _send_last(self, message: dict[str, Any]) -> None:
        """Send, and wait until the client has hung up.

        Closing a socket with unread bytes in it resets the connection, and the client
        would get the reset and not the message.
        """
        await self._send(message)
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_eof()
            while await self._stream.receive_some(protocol.MAX_LINE_BYTES):
                pass

    async def _send(self, message: dict[str, Any]) -> None:
        line = protocol.encode(message)
        if len(line) > protocol.MAX_LINE_BYTES:
            line = protocol.encode(_failure(AgentfsError("the answer is longer than 64 KiB")))
        await self._send_line(line)

    async def _send_line(self, line: bytes) -> None:
        async with self._sending:
            if self._torn:
                raise _HungUp
            self._torn = True
            with trio.move_on_after(SEND_S):
                try:
                    await self._stream.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise _HungUp from error
                self._torn = False
                return
        raise _HungUp


async def _run(
    op: str, handler: Handler, args: dict[str, Any], progress: ProgressFn
) -> dict[str, Any]:
    try:
        return {"ok": True, "result": await handler(args, progress)}
    except AgentfsError as error:
        return _failure(error)
    except Exception as error:
        # The operation failed, not the daemon: others go on using the mount.
        log.exception("control operation %s failed", op)
        return _failure(
            AgentfsError(f"{op} failed: {type(error).__name__}: {error}; see the daemon's log")
        )


def _failure(error: AgentfsError) -> dict[str, Any]:
    return {"ok": False, "error": str(error), "exit_code": error.exit_code}
