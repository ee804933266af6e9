"""Pages of the index kept compressed beside it: docs/FORMAT.md, "Packed pages".

A page that the database has as zeros is in the packed file, all others are its own; so nothing has
to agree but the two files. That they belong together a setting says: it names the packed file by
its id, and both the old and the new one while that is replaced.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agentfs.errors import StoreDamaged
from agentfs.index import _pages
from agentfs.model import SECTOR_BYTES

if TYPE_CHECKING:
    from agentfs.index.connection import IndexConnection

SETTING = "packed"
_NONE = "-"

PACKED_BYTES_MAX = 256 << 20
"""An index larger than that stays as it is: packing takes 85 ms a MiB of the event loop's thread,
a millisecond at a time; and what chunks are found by, a tenth of it, fits into SQLite's cache."""

_WORTH_SHARE = 4
"""One of so many pages has to be the database's own."""


def packed_path(database: Path) -> Path:
    """Where the packed pages of a database are."""
    return database.with_name(f"{database.name}{_pages.PACKED_SUFFIX}")


def is_worth_packing(index: IndexConnection) -> bool:
    """Whether enough pages have been written since they were packed last."""
    found = index.path.stat()
    return found.st_blocks * SECTOR_BYTES * _WORTH_SHARE >= found.st_size


def pack(index: IndexConnection) -> Iterator[None]:
    """Pack all pages; others may use the index at each step. No transaction may be open."""
    if index.path.stat().st_size > PACKED_BYTES_MAX:
        return
    old, new = _id_of(index.connection), secrets.token_hex(16)
    _name(index, f"{old} {new}")
    (groups,) = index.execute(f"PRAGMA pack_begin = '{new}'").fetchone()
    for group in range(int(groups)):
        index.execute(f"PRAGMA pack_group = '{group} {new}'")  # each statement is another one
        yield
    if int(groups):
        index.execute(f"PRAGMA pack_finish = '{new}'")
        _name(index, new)


def _name(index: IndexConnection, ids: str) -> None:
    with index.transaction:
        index.set_setting(SETTING, ids)
    index.checkpoint()


def _id_of(connection: sqlite3.Connection) -> str:
    # With an argument, or Python would use a statement again that has its answer already
    row = connection.execute(f"PRAGMA packed_id = {secrets.randbits(31)}").fetchone()
    return row[0] or _NONE if row is not None else _NONE


def _names(connection: sqlite3.Connection) -> list[str]:
    row = connection.execute("SELECT value FROM setting WHERE name = ?", (SETTING,)).fetchone()
    return row[0].split() if row is not None else [_NONE]


def belong_together(connection: sqlite3.Connection) -> bool:
    """Whether an open index and the packed file beside it do."""
    return _id_of(connection) in _names(connection)


def refuse_anothers(connection: sqlite3.Connection, path: Path) -> None:
    """:raises StoreDamaged: the packed file is missing, damaged or of another index"""
    if not belong_together(connection):
        raise StoreDamaged(
            f"{packed_path(path)} is missing, damaged or of another index; "
            "agentfs fsck --repair saves what it can"
        )
