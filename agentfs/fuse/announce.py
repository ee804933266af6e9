"""What we tell the kernel unasked when a clone is made.

The kernel keeps names, and that there are none, for a day. Through the relay a
notification is not done when the call returns, so the name is looked up until the
kernel, and with it every program, sees what it means now. All of this is done in
threads: the kernel may wait for requests of its own before it takes a notification.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

import pyfuse3
import trio

from agentfs.fuse.loop import noticing_at_once

log = logging.getLogger(__name__)

_LIMIT_S = 2.0
_FIRST_PAUSE_S = 0.0001


async def announce(mountpoint: Path, path: bytes, parent: int, name: bytes, inode: int) -> None:
    """Return when *path*, which is *name* in *parent*, means *inode* to all programs."""
    with noticing_at_once():
        await trio.to_thread.run_sync(_announce, mountpoint, path, parent, name, inode)


async def write_back(nodeid: int) -> None:
    """Return when we have been sent what programs stored in mappings of a file."""
    with contextlib.suppress(OSError):
        await trio.to_thread.run_sync(pyfuse3.invalidate_inode, nodeid)


def _announce(mountpoint: Path, path: bytes, parent: int, name: bytes, inode: int) -> None:
    with contextlib.suppress(OSError):  # ENOENT: it knows no such name
        pyfuse3.invalidate_entry(parent, name)
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(parent, attr_only=True)
    where = os.path.join(os.fsencode(mountpoint), path.lstrip(b"/"))
    pause_s = _FIRST_PAUSE_S
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if os.lstat(where).st_ino == inode:
                return
        time.sleep(pause_s)
        pause_s *= 2
    log.warning("%s has another meaning now, but programs may not see it yet", os.fsdecode(where))
