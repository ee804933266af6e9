"""How requests of the kernel reach pyfuse3: through the relay, which answers what it can.

Both modes serve and go away by the same steps: made, `start`, `watch` while pyfuse3.main
runs, `close`. In plain mode `start` mounts, in relay mode the keeper did (connection.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from typing import Protocol

import pyfuse3
import trio

from agentfs.config import MountConfig
from agentfs.errors import FuseUnavailable
from agentfs.filesystem.files import Files
from agentfs.filesystem.grants import Grants
from agentfs.fuse import loop
from agentfs.fuse._relay import Relay
from agentfs.fuse.announce import Notifier
from agentfs.fuse.brief_requests import BriefRequests
from agentfs.fuse.connection import Connection, Mode, escaped
from agentfs.fuse.operations import Operations
from agentfs.fuse.relay_operations import RelayOperations

_CLOSED_TOGETHER_S = 0.25
"""What the relay alone saw closed is learned of no more often: to be woken for each would cost more
than the rest of an agent's turn."""

_FUSE_DEVICE = os.makedev(10, 229)


class Session(Protocol):
    """A connection to the kernel."""

    mode: Mode
    reason: str
    """Why this mode, in a few words."""

    @property
    def notifier(self) -> Notifier:
        """Once it is started."""

    @property
    def relay(self) -> Relay | None:
        """The relay, where the kernel reads and writes files itself."""

    def counts(self) -> dict[str, int]:
        """What the relay has counted. Once it is started."""

    def start(self, operations: Operations) -> None:
        """Let requests flow; pyfuse3.main answers them.

        :raises FuseUnavailable: the kernel or fusermount3 refused
        """

    async def watch(self, files: Files) -> None:
        """Carry on what comes by another way than requests; ends pyfuse3.main with the mount."""

    def close(self) -> None:
        """Unmount if need be, and let go. Idempotent."""


class _Relayed:
    """What both modes share once they are mounted: the relay gives pyfuse3 what it must answer."""

    _relay: Relay
    _notifier: Notifier
    _operations: RelayOperations

    @property
    def notifier(self) -> Notifier:
        return self._notifier

    def counts(self) -> dict[str, int]:
        return self._relay.stats()

    def _serve(self, operations: Operations, device: int, idle_fd: int | None) -> None:
        """Let requests flow through the relay."""
        relay = self._relay
        self._notifier = Notifier(device)
        self._operations = RelayOperations(relay, operations)
        brief = BriefRequests(relay, operations)
        loop.enable(relay.take, on_reply=relay.pump, answer=brief.answer, idle_fd=idle_fd)
        relay.start()

    async def watch(self, files: Files) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            nursery.start_soon(self._operations.serve)
            await self._notice_closed(files)
            nursery.cancel_scope.cancel()
        pyfuse3.terminate()

    async def _notice_closed(self, files: Files) -> None:
        """Until the mount is gone."""
        looked_at = -math.inf
        while not self._relay.unmounted:
            await trio.lowlevel.wait_readable(self._relay.event_fd)
            pause_s = looked_at + _CLOSED_TOGETHER_S - trio.current_time()
            if pause_s > 0 and not self._relay.unmounted:
                os.eventfd_read(self._relay.event_fd)  # what else is closed does not write to it
                with trio.move_on_after(pause_s):
                    await trio.lowlevel.wait_readable(self._relay.event_fd)  # only its end does
            looked_at = trio.current_time()
            for nodeid, is_closed in self._relay.drain():
                if is_closed:
                    files.closed(nodeid)

    async def _pump(self) -> None:
        """Carry on what pyfuse3 writes without being asked: notifications, from a thread."""
        while True:
            await trio.lowlevel.wait_readable(self._relay.replies_fd)
            self._relay.pump()


class PlainSession(_Relayed):
    """pyfuse3 mounts by itself, and the daemon serves reads and writes.

    Once mounted, pyfuse3 has one end of the relay's socket in place of its descriptor.
    """

    mode: Mode = "plain"
    relay = None

    def __init__(self, config: MountConfig, reason: str) -> None:
        self.reason = reason
        self._config = config
        self._number = -1
        """pyfuse3's descriptor of /dev/fuse; -1: it has none."""
        self._device = -1
        """The same, while *number* is the socket."""
        self._grants: Grants
        """While there is one."""

    def start(self, operations: Operations) -> None:
        options = set(pyfuse3.default_options)
        options |= {_MountOption(f"fsname={escaped(self._config.store)}"), "subtype=agentfs"}
        if self._config.allow_other:
            options.add("allow_other")
        before = _devices()
        try:
            pyfuse3.init(operations, str(self._config.mountpoint), options)
            (self._number,) = _devices() - before
            self._relay = Relay(self._config.mountpoint, [os.dup(self._number)], passthrough=False)
            self._device = os.dup(self._number)
            os.dup2(self._relay.python_fd, self._number, inheritable=False)
            self._serve(operations, self._device, idle_fd=self._device)
            self._grants = operations.volume.files.grants
            self._grants.begin(self._relay)
        except (RuntimeError, OSError) as error:
            raise FuseUnavailable(
                f"{self._config.mountpoint} could not be mounted: {error}; see the log"
            ) from error

    def close(self) -> None:
        if self._number < 0:
            return
        if self._device >= 0:
            os.dup2(self._device, self._number, inheritable=False)  # it says whether it is mounted
            os.close(self._device)
            self._notifier.close()
            self._grants.abandon()
            self._relay.close()
        self._number = -1
        pyfuse3.close(unmount=True)


class RelaySession(_Relayed):
    """The keeper has mounted, and the kernel reads and writes files itself; see docs/RELAY.md."""

    mode: Mode = "relay"

    def __init__(self, config: MountConfig, connection: Connection, reason: str) -> None:
        self.reason = reason
        self._relay = Relay(config.mountpoint, connection.devices, ledger=connection.ledger)
        self._device = connection.devices[0]
        self._is_started = False
        self._is_closed = False

    @property
    def relay(self) -> Relay:
        return self._relay

    def start(self, operations: Operations) -> None:
        self._serve(operations, self._device, idle_fd=None)
        pyfuse3.init(operations, f"/dev/fd/{self._relay.python_fd}", set())
        self._is_started = True

    def close(self) -> None:
        if self._is_started:
            self._is_started = False
            pyfuse3.close(unmount=False)
            self._notifier.close()
        if not self._is_closed:
            self._is_closed = True
            if not self._relay.unmounted:
                self._relay.unmount(lazy=True)
            self._relay.close()


def _devices() -> set[int]:
    """Descriptors of /dev/fuse that this process has."""
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing itself
            status = os.fstat(number)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE_DEVICE:
                found.add(number)
    return found


class _MountOption(str):
    """pyfuse3 encodes options as ASCII; a path is bytes."""

    def encode(self, *_: object) -> bytes:
        return os.fsencode(str(self))
