"""What we tell the kernel unasked when a clone is made.

The kernel keeps names, and that there are none, for a day. A notification about a name waits for
what programs are doing in that directory, which may wait for us: hence threads, which cost as much
as a third of a clone. So the kernel is not told of a name that it cannot know. When a notification
has returned, every program sees what the name means now.
"""

from __future__ import annotations

import contextlib
import os

import trio

from agentfs.filesystem.livefile import MissingNames
from agentfs.fuse import abi
from agentfs.fuse.loop import noticing_at_once


class Notifier:
    """Gives the kernel notifications; each is done when it returns.

    By the device itself: what pyfuse3 is told goes through the relay, and is done later.

    :raises OSError: ENOENT, the kernel knows no such name or inode
    """

    def __init__(self, device: int) -> None:
        self._device = os.dup(device)

    def entry(self, parent: int, name: bytes) -> None:
        """A name may mean something else now."""
        body = abi.INVAL_ENTRY_OUT.pack(parent, len(name)) + name + b"\0"
        self._give(abi.NOTIFY_INVAL_ENTRY, body)

    def inode(self, nodeid: int, *, attr_only: bool = False) -> None:
        """Attributes changed; and what mappings hold of the bytes is to be sent to us."""
        self._give(abi.NOTIFY_INVAL_INODE, abi.INVAL_INODE_OUT.pack(nodeid, -1 if attr_only else 0))

    def _give(self, code: int, body: bytes) -> None:
        os.write(self._device, abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), code) + body)

    def close(self) -> None:
        os.close(self._device)


async def announce(
    notifier: Notifier, missing: MissingNames, parent: int, name: bytes, is_new: bool
) -> None:
    """Return when a new meaning of *name* in *parent* is seen by all programs.

    :param is_new: it meant nothing before
    """
    if not is_new or missing.may_hold(parent, name):
        with noticing_at_once():
            await trio.to_thread.run_sync(_announce_name, notifier, parent, name)
    with contextlib.suppress(OSError):
        notifier.inode(parent, attr_only=True)  # waits for nobody


async def write_back(notifier: Notifier, nodeid: int) -> None:
    """Return when we have been sent what programs stored in mappings of a file."""
    with contextlib.suppress(OSError):
        await trio.to_thread.run_sync(notifier.inode, nodeid)


def _announce_name(notifier: Notifier, parent: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        notifier.entry(parent, name)
