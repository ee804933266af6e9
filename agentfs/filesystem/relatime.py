"""When a program's read of a file is to be recorded: as relatime of mount(8) does."""

from __future__ import annotations

import time

from agentfs.model import Inode

_DAY_NS = 24 * 3600 * 10**9


def needs_atime(inode: Inode, now_ns: int) -> bool:
    """Whether a read is to be recorded: it is the first after a change, or in a day."""
    atime = inode.atime_ns
    return atime <= inode.mtime_ns or atime <= inode.ctime_ns or now_ns - atime >= _DAY_NS


def fresh_until_ns(inode: Inode) -> int:
    """Until when no read need be recorded, if the file does not change; 0: the next one must."""
    return 0 if needs_atime(inode, time.time_ns()) else inode.atime_ns + _DAY_NS
