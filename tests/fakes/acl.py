"""Access lists, written as people write them."""

from __future__ import annotations

import struct

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

_TAGS = {"u:": 0x01, "u": 0x02, "g:": 0x04, "g": 0x08, "m:": 0x10, "o:": 0x20}
_NOBODY = 0xFFFFFFFF


def packed(text: str) -> bytes:
    """A list as the kernel has it, of words like `u:4001:rwx`."""
    entries = b""
    for word in text.split():
        kind, who, rights = word.split(":")
        permissions = sum(4 >> "rwx".index(right) for right in rights if right != "-")
        number = int(who) if who else _NOBODY
        entries += struct.pack("<HHI", _TAGS[kind if who else f"{kind}:"], permissions, number)
    return struct.pack("<I", 2) + entries
