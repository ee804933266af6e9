"""Inodes as the kernel wants to be told of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pyfuse3 import EntryAttributes

from agentfs.filesystem.namespace import Row
from agentfs.fuse._relay import pack_attributes, pack_entry, pack_listing
from agentfs.model import CACHE_S, Inode

_BLOCK_BYTES = 4096

_ENTRY_OUT = struct.Struct("=4Q2I88x")
"""struct fuse_entry_out: nodeid, generation, for how long entry and attributes are valid."""

MISSING = EntryAttributes()
"""A name that means nothing; the kernel remembers that as well."""
MISSING.st_ino = 0
MISSING.entry_timeout = CACHE_S

PACKED_MISSING = _ENTRY_OUT.pack(0, 0, CACHE_S, 0, 0, 0)
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
    return pack_entry(inode, nodeid, CACHE_S)


def packed_attributes(inode: Inode, nodeid: int) -> bytes:
    """The reply to a GETATTR, in the same form."""
    return pack_attributes(inode, nodeid, CACHE_S)


def packed_listing(
    entries: Iterator[tuple[int, bytes, Inode | Row]],
    room: int,
    renumber: Callable[[int], int] | None,
) -> tuple[bytes, list[int]]:
    """The reply to a READDIRPLUS, with the first entries that fit; and the nodeids it tells of.

    :param entries: as `DirectoryStream.entries`
    :param room: in bytes
    :param renumber: says the nodeid of an inode's id; None: they are the same
    """
    return pack_listing(entries, room, renumber, CACHE_S)
