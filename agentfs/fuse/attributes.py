"""Inodes as the kernel wants to be told of them."""

from __future__ import annotations

import struct

from pyfuse3 import EntryAttributes

from agentfs.model import CACHE_S, Inode

_BLOCK_BYTES = 4096

_VALID_S = int(CACHE_S)

# Of linux/fuse.h: fuse_attr, what comes before it in fuse_entry_out and in fuse_attr_out.
_ATTR = struct.Struct("=6Q10I")
_ENTRY_HEAD = struct.Struct("=4Q2I")
_ATTR_HEAD = struct.Struct("=QI4x")

MISSING = EntryAttributes()
"""A name that means nothing; the kernel remembers that as well."""
MISSING.st_ino = 0
MISSING.entry_timeout = CACHE_S

PACKED_MISSING = _ENTRY_HEAD.pack(0, 0, _VALID_S, 0, 0, 0) + bytes(_ATTR.size)
"""The same for replies that do not pass through pyfuse3."""


def entry_attributes(inode: Inode, nodeid: int) -> EntryAttributes:
    """The reply that describes *inode*, which the kernel knows as *nodeid*."""
    entry = EntryAttributes()
    entry.st_ino = nodeid
    entry.entry_timeout = CACHE_S
    entry.attr_timeout = CACHE_S
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_size = inode.size
    entry.st_blksize = _BLOCK_BYTES
    entry.st_blocks = inode.sectors
    if inode.rdev is not None:
        entry.st_rdev = inode.rdev
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def passing_entry(inode: Inode, nodeid: int | None = None) -> EntryAttributes:
    """The same of what may be another the next time; the kernel is to ask each time."""
    entry = entry_attributes(inode, inode.id if nodeid is None else nodeid)
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def packed_entry(inode: Inode, nodeid: int) -> bytes:
    """The same as the kernel has it, for replies that do not pass through pyfuse3."""
    return _ENTRY_HEAD.pack(nodeid, 0, _VALID_S, _VALID_S, 0, 0) + _packed(inode, nodeid)


def packed_attributes(inode: Inode, nodeid: int) -> bytes:
    """The reply to a GETATTR, in the same form."""
    return _ATTR_HEAD.pack(_VALID_S, 0) + _packed(inode, nodeid)


def _packed(inode: Inode, nodeid: int) -> bytes:
    atime_s, atime_ns = divmod(inode.atime_ns, 10**9)
    mtime_s, mtime_ns = divmod(inode.mtime_ns, 10**9)
    ctime_s, ctime_ns = divmod(inode.ctime_ns, 10**9)
    return _ATTR.pack(
        *(nodeid, inode.size, inode.sectors),
        *(atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns),
        *(inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev or 0, _BLOCK_BYTES, 0),
    )
