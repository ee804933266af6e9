"""Of linux/fuse.h what we read and write ourselves: messages that do not pass through pyfuse3.

Attributes are in `attributes.py`.
"""

from __future__ import annotations

import enum
import struct


class Opcode(enum.IntEnum):
    """Of requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    REMOVEXATTR = 24
    OPENDIR = 27
    RELEASEDIR = 29
    CREATE = 35
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    COPY_FILE_RANGE_64 = 53


# What follows the header of a request; a name behind it ends with a zero byte.
FORGET_IN = struct.Struct("=Q")
"""how often"""
BATCH_FORGET_IN = struct.Struct("=I4x")
"""how many, of FORGET_ONE each"""
FORGET_ONE = struct.Struct("=2Q")
"""nodeid, how often"""
OPEN_IN = struct.Struct("=I4x")
"""flags"""
READ_IN = struct.Struct("=QQI20x")
"""handle, offset, size; of WRITE and READDIRPLUS as well"""
MKDIR_IN = struct.Struct("=II")
"""mode, umask"""
RENAME_IN = struct.Struct("=Q")
"""new parent"""
GETXATTR_IN = struct.Struct("=I4x")
"""room; 0: how long the value is is asked for"""
RELEASE_IN = struct.Struct("=Q16x")
"""handle; of RELEASEDIR as well"""
CREATE_IN = struct.Struct("=III4x")
"""flags, mode, umask; of TMPFILE as well"""
FALLOCATE_IN = struct.Struct("=QQQI4x")
"""handle, offset, length, mode"""
LSEEK_IN = struct.Struct("=QqI4x")
"""handle, offset, whence"""
COPY_IN = struct.Struct("=7Q")
"""handle, offset, target, its handle, its offset, length, flags"""

# What follows the header of a reply.
OPEN_OUT = struct.Struct("=QI4x")
"""handle, flags; of OPENDIR as well, and behind an entry in replies to CREATE and TMPFILE"""
WRITE_OUT = struct.Struct("=I4x")
"""size; of GETXATTR as well"""
LSEEK_OUT = struct.Struct("=Q")
COPY_OUT = struct.Struct("=I4x")
COPY_64_OUT = struct.Struct("=Q")

FOPEN_KEEP_CACHE = 1 << 1

# Notifications: replies to no request, with a code in place of an error.
OUT_HEADER = struct.Struct("=Ii8x")
"""length in all, error or code; `unique` is 0"""
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
INVAL_INODE_OUT = struct.Struct("=Qq8x")
"""nodeid, offset; with length 0 all from there on, below 0: attributes only"""
INVAL_ENTRY_OUT = struct.Struct("=QI4x")
"""parent, length of the name, which follows and ends with a zero byte"""
