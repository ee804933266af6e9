"""An index with rows in it, and what of them can be read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agentfs.errors import StoreDamaged
from agentfs.index import Index


def fill(index: Index, count: int = 400) -> None:
    with index.transaction:
        for number in range(count):
            index.dentries.insert(1, b"a name of some length %d" % number, number)
            index.xattrs.set(number, b"user.comment", b"%d" % number * 20)


def rows(index: Index) -> list[object]:
    return [
        *index.execute("SELECT * FROM dentry"),
        *index.execute("SELECT * FROM xattr"),
        *index.execute("SELECT * FROM inode"),
        *index.execute("SELECT * FROM setting"),
    ]


def flip(path: Path, offset: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def seen(store: Path) -> list[object] | None:
    """All rows, or None: the damage was found."""
    try:
        index = Index(store)
    except StoreDamaged:
        return None
    try:
        return rows(index)
    except sqlite3.DatabaseError:
        return None
    finally:
        index.close()
