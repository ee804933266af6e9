"""Access control lists, as acl(5) has them: what follows from them for modes and for new files.

Lists are bytes as the kernel hands them over in `system.posix_acl_*`: a version, then entries of
(tag, permissions, id), by tag. The kernel checks rights; which lists there are is our business.

A row of an access list has no permissions where the mode says them (`without_mode`), so neither
can contradict the other: chmod changes the mode alone, and a list is told with what the mode says
then (`with_mode`). A list that says no more than a mode does is no row at all.

The rules are those of fs/posix_acl.c.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections import Counter
from typing import Final, NamedTuple

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_ALL: Final = 0o7


class _Tag(enum.IntEnum):
    OWNER = 0x01
    USER = 0x02
    OWNING_GROUP = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHERS = 0x20


class _Entry(NamedTuple):
    tag: _Tag
    permissions: int
    id: int


def _parse(acl: bytes) -> list[_Entry]:
    """:raises OSError: EINVAL, it is no list"""
    try:
        if _HEADER.unpack_from(acl) != (_VERSION,):
            raise ValueError("unknown version")
        entries = [
            _Entry(_Tag(tag), permissions, id)
            for tag, permissions, id in _ENTRY.iter_unpack(acl[_HEADER.size :])
        ]
    except (struct.error, ValueError) as error:
        raise OSError(errno.EINVAL, f"not an access list: {error}") from None
    tags = Counter(entry.tag for entry in entries)
    is_named = bool(tags[_Tag.USER] or tags[_Tag.GROUP])
    is_whole = all(tags[tag] == 1 for tag in (_Tag.OWNER, _Tag.OWNING_GROUP, _Tag.OTHERS))
    is_right = all(entry.permissions & ~_ALL == 0 for entry in entries)
    if not is_whole or not is_right or not is_named <= tags[_Tag.MASK] <= 1:
        raise OSError(errno.EINVAL, "not an access list: its entries do not fit together")
    return entries


def _pack(entries: list[_Entry]) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _shifts(entries: list[_Entry]) -> dict[_Tag, int]:
    """Where the mode has the permissions of an entry: the group's are those of the mask."""
    has_mask = any(entry.tag == _Tag.MASK for entry in entries)
    return {_Tag.OWNER: 6, _Tag.MASK if has_mask else _Tag.OWNING_GROUP: 3, _Tag.OTHERS: 0}


def check(acl: bytes) -> None:
    """:raises OSError: EINVAL, it is no list"""
    _parse(acl)


def mode_of(acl: bytes, mode: int) -> tuple[int, bool]:
    """The mode that a file has with this access list, and whether that says all of it.

    :param mode: what it had; all but the permissions stay
    :raises OSError: EINVAL, it is no list
    """
    entries = _parse(acl)
    shifts = _shifts(entries)
    permissions = sum(
        entry.permissions << shifts[entry.tag] for entry in entries if entry.tag in shifts
    )
    return mode & ~0o777 | permissions, len(shifts) == len(entries)


def without_mode(acl: bytes) -> bytes:
    """An access list as its row has it."""
    return with_mode(acl, 0)


def with_mode(acl: bytes, mode: int) -> bytes:
    """An access list as it is with that mode."""
    entries = _parse(acl)
    shifts = _shifts(entries)
    return _pack(
        [
            entry._replace(permissions=mode >> shifts[entry.tag] & _ALL)
            if entry.tag in shifts
            else entry
            for entry in entries
        ]
    )


def inherited(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Mode and access list of a file made in a directory with that default list.

    The list takes the place of the umask.

    :param mode: as the program gave it
    :returns: the list without what the mode says; None: the mode says all of it
    """
    allowed, is_minimal = mode_of(default, 0)
    return mode & (allowed | ~0o777), None if is_minimal else without_mode(default)
