"""How requests of the kernel reach pyfuse3: directly, or through the relay.

Both serve and go away by the same steps: made, `start`, `watch` while pyfuse3.main
runs, `close`. In plain mode `start` mounts, in relay mode the keeper did (connection.py).
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import pyfuse3
import trio

from agentfs.config import MountConfig
from agentfs.errors import FuseUnavailable
from agentfs.filesystem.files import Files
from agentfs.fuse import loop
from agentfs.fuse._relay import Relay, look
from agentfs.fuse.announce import Notifier, PlainNotifier, RelayNotifier
from agentfs.fuse.brief_requests import BriefRequests
from agentfs.fuse.connection import Connection, Mode, escaped
from agentfs.fuse.handshake import Handshake, devices
from agentfs.fuse.operations import Operations
from agentfs.fuse.relay_operations import RelayOperations

_CLOSED_TOGETHER_S = 0.25
"""What the relay alone saw closed is learned of no more often: to be woken for each would cost more
than the rest of an agent's turn."""


class Session(Protocol):
    """A connection to the kernel."""

    mode: Mode
    reason: str
    """Why this mode, in a few words."""

    @property
    def notifier(self) -> Notifier: ...

    @property
    def relay(self) -> Relay | None: ...

    def start(self, operations: Operations) -> None:
        """Let requests flow; pyfuse3.main answers them.

        :raises FuseUnavailable: the kernel or fusermount3 refused
        """

    async def watch(self, files: Files) -> None:
        """Carry on what comes by another way than requests; ends pyfuse3.main with the mount."""

    def close(self) -> None:
        """Unmount if need be, and let go. Idempotent."""


class PlainSession:
    """pyfuse3 mounts by itself and serves reads and writes."""

    mode: Mode = "plain"
    relay = None

    def __init__(self, config: MountConfig, reason: str) -> None:
        self.reason = reason
        self.notifier = PlainNotifier()
        self._config = config
        self._is_mounted = False
        self._handshake: Handshake | None = None

    def start(self, operations: Operations) -> None:
        options = set(pyfuse3.default_options)
        options |= {_MountOption(f"fsname={escaped(self._config.store)}"), "subtype=agentfs"}
        if self._config.allow_other:
            options.add("allow_other")
        loop.enable(look, on_reply=self._shake_hands)
        before = devices()
        try:
            pyfuse3.init(operations, str(self._config.mountpoint), options)
            self._is_mounted = True
            (number,) = devices() - before
            self._handshake = Handshake(number)
        except (RuntimeError, OSError) as error:
            raise FuseUnavailable(
                f"{self._config.mountpoint} could not be mounted: {error}; see the log"
            ) from error

    def _shake_hands(self) -> None:
        if self._handshake is not None and self._handshake.carry_on():
            self._handshake = None
            loop.stop_carrying()

    async def watch(self, files: Files) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        if self._is_mounted:
            self._is_mounted = False
            if self._handshake is not None:
                self._handshake.end()
            pyfuse3.close(unmount=True)


class RelaySession:
    """The relay answers what it can and gives pyfuse3 the rest; see docs/RELAY.md."""

    mode: Mode = "relay"

    def __init__(self, config: MountConfig, connection: Connection, reason: str) -> None:
        self.reason = reason
        self.relay = Relay(config.mountpoint, connection.devices, ledger=connection.ledger)
        self.notifier = RelayNotifier(connection.devices[0])
        self._is_started = False
        self._is_closed = False

    def start(self, operations: Operations) -> None:
        self._operations = RelayOperations(self.relay, operations)
        brief = BriefRequests(self.relay, operations)
        loop.enable(self.relay.take, on_reply=self.relay.pump, answer=brief.answer)
        self.relay.start()
        pyfuse3.init(operations, f"/dev/fd/{self.relay.python_fd}", set())
        self._is_started = True

    async def watch(self, files: Files) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            nursery.start_soon(self._operations.serve)
            await self._notice_closed(files)
            nursery.cancel_scope.cancel()
        await loop.terminate()

    async def _notice_closed(self, files: Files) -> None:
        """Until the mount is gone."""
        looked_at = -math.inf
        while not self.relay.unmounted:
            await trio.lowlevel.wait_readable(self.relay.event_fd)
            pause_s = looked_at + _CLOSED_TOGETHER_S - trio.current_time()
            if pause_s > 0 and not self.relay.unmounted:
                os.eventfd_read(self.relay.event_fd)  # what else is closed does not write to it
                with trio.move_on_after(pause_s):
                    await trio.lowlevel.wait_readable(self.relay.event_fd)  # only its end does
            looked_at = trio.current_time()
            for nodeid, is_closed in self.relay.drain():
                if is_closed:
                    files.closed(nodeid)

    async def _pump(self) -> None:
        """Carry on what pyfuse3 writes without being asked: notifications, from a thread."""
        while True:
            await trio.lowlevel.wait_readable(self.relay.replies_fd)
            self.relay.pump()

    def close(self) -> None:
        if self._is_started:
            self._is_started = False
            pyfuse3.close(unmount=False)
        if not self._is_closed:
            self._is_closed = True
            self.notifier.close()
            if not self.relay.unmounted:
                self.relay.unmount(lazy=True)
            self.relay.close()


class _MountOption(str):
    """pyfuse3 encodes options as ASCII; a path is bytes."""

    def encode(self, *_: object) -> bytes:
        return os.fsencode(str(self))
