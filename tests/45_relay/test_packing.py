"""Inodes as the kernel has them: against the layouts of linux/fuse.h, written down once more."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, replace

import pytest

from agentfs.fuse._relay import pack_attributes, pack_entry, pack_listing
from agentfs.model import Inode

ATTR = struct.Struct("=3Q3q10I")
ENTRY_HEAD = struct.Struct("=4Q2I")
ATTR_HEAD = struct.Struct("=QI4x")
DIRENT = struct.Struct("=2Q2I")
FULL = ENTRY_HEAD.size + ATTR.size + DIRENT.size

BEFORE_1970 = -1  # ns


def inode(number: int, mode: int = 0o100644) -> Inode:
    return Inode(number, mode, 1000, 1001, 2, 5000, BEFORE_1970, 10**18 + 5, 3 * 10**9)


def described(one: Inode, nodeid: int) -> tuple[int, ...]:
    return (
        *(nodeid, one.size, one.sectors, -1, 10**9, 3, 999_999_999, 5, 0),
        *(one.mode, one.nlink, one.uid, one.gid, one.rdev or 0, 4096, 0),
    )


def entries(*names: bytes) -> Iterator[tuple[int, bytes, Inode]]:
    for number, name in enumerate(names):
        yield number + 1, name, inode(number + 10)


def names_of(listing: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(listing):
        _, _, length, _ = DIRENT.unpack_from(listing, at + ENTRY_HEAD.size + ATTR.size)
        names.append(listing[at + FULL : at + FULL + length])
        at += FULL + (length + 7) // 8 * 8
    assert at == len(listing)
    return names


@pytest.mark.parametrize("rdev", [None, 0x103])
def test_an_entry_and_attributes(rdev: int | None) -> None:
    one = inode(7)
    one.rdev = rdev
    packed = pack_entry(one, 9, 60)
    assert ENTRY_HEAD.unpack_from(packed) == (9, 0, 60, 60, 0, 0)
    assert ATTR.unpack_from(packed, ENTRY_HEAD.size) == described(one, 9)
    assert len(packed) == ENTRY_HEAD.size + ATTR.size
    packed = pack_attributes(one, 9, 60)
    assert ATTR_HEAD.unpack_from(packed) == (60, 0)
    assert ATTR.unpack_from(packed, ATTR_HEAD.size) == described(one, 9)
    assert len(packed) == ATTR_HEAD.size + ATTR.size


def test_a_listing_has_what_the_kernel_counts_as_told() -> None:
    listing, told = pack_listing(entries(b".", b"..", b"a", b"..."), 4096, None, 60)
    assert names_of(listing) == [b".", b"..", b"a", b"..."]
    assert told == [12, 13]
    at = 2 * (FULL + 8)
    assert ENTRY_HEAD.unpack_from(listing, at) == (12, 0, 60, 60, 0, 0)
    assert ATTR.unpack_from(listing, at + ENTRY_HEAD.size) == described(inode(12), 12)
    position, kind = 3, 0o100000 >> 12
    assert DIRENT.unpack_from(listing, at + FULL - DIRENT.size) == (12, position, 1, kind)


@pytest.mark.parametrize(("room", "fitting"), [(0, 0), (FULL, 0), (2 * FULL + 16, 2), (4096, 3)])
def test_no_more_is_taken_than_fits(room: int, fitting: int) -> None:
    left = entries(b"x" * 8, b"y", b"z" * 255)
    listing, told = pack_listing(left, room, None, 60)
    assert names_of(listing) == [b"x" * 8, b"y", b"z" * 255][:fitting]
    assert told == [10, 11, 12][:fitting]
    assert len(list(left)) == max(2 - fitting, 0), "the one that did not fit has been asked for"


def test_a_row_is_as_good_as_its_inode() -> None:
    one = replace(inode(10), content=3, holes=4096, rdev=7, parent=2)
    row = (*astuple(one), b"a")
    by_row = pack_listing(iter([(1, b"a", row)]), 4096, None, 60)
    assert by_row == pack_listing(iter([(1, b"a", one)]), 4096, None, 60)
    assert ATTR.unpack_from(by_row[0], ENTRY_HEAD.size) == described(one, 10)


def test_nodeids_may_be_others_than_the_inodes_numbers() -> None:
    listing, told = pack_listing(entries(b"a"), 4096, lambda number: number + 100, 60)
    assert told == [110]
    assert ENTRY_HEAD.unpack_from(listing)[0] == 110


def test_what_fails_on_the_way_is_raised() -> None:
    def failing() -> Iterator[tuple[int, bytes, Inode]]:
        yield from entries(b"a")
        raise OSError(5, "the index is damaged")

    with pytest.raises(OSError, match="the index is damaged"):
        pack_listing(failing(), 4096, None, 60)
    with pytest.raises(TypeError):
        pack_listing(iter([3]), 4096, None, 60)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="fewer columns"):
        pack_listing(iter([(1, b"a", (10, 0o100644))]), 4096, None, 60)
    with pytest.raises(AttributeError):
        pack_entry(None, 9, 60)  # type: ignore[arg-type]
