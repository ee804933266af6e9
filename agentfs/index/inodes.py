"""Inode rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentfs.index.connection import IndexConnection
from agentfs.model import Inode

_COLUMNS = (
    "id, mode, uid, gid, nlink, size, atime, mtime, ctime, content, holes, rdev, target, parent"
)
COLUMNS = ", ".join(f"inode.{column}" for column in _COLUMNS.split(", "))
"""In the order of the fields of `Inode`, so that `Inode(*row)` holds."""

_ROWS_KEPT = 4096
"""Of those used last, 0.4 KiB each: what was looked up, or closed, is opened next."""

_INSERT = "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _row(inode: Inode) -> tuple[Any, ...]:
    return (
        inode.id,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.content,
        inode.holes,
        inode.rdev,
        inode.target,
        inode.parent,
    )


class Inodes:
    """Read and change inode rows; callers bring the transaction where several rows change."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        self.kept: dict[int, tuple[Any, ...]] = {}
        """Rows by number, as the table has them: whatever changes one takes it out."""
        index.transaction.on_rollback.append(self.kept.clear)
        (highest,) = index.execute("SELECT coalesce(max(id), 1) FROM inode").fetchone()
        self._last_id: int = highest

    def allocate(self) -> int:
        """A number no inode of this mount has had."""
        self._last_id += 1
        return self._last_id

    def skip_to(self, inode_id: int) -> None:
        """Give no number out that is not higher than this one."""
        self._last_id = max(self._last_id, inode_id)

    def get(self, inode_id: int) -> Inode | None:
        row = self.kept.get(inode_id)
        if row is None:
            query = f"SELECT {_COLUMNS} FROM inode WHERE id = ?"
            row = self._execute(query, (inode_id,)).fetchone()
            if row is None:
                return None
            self.keep(row)
        return Inode(*row)

    def keep(self, row: tuple[Any, ...]) -> None:
        """Remember a row that was just read: it will be asked for."""
        if len(self.kept) >= _ROWS_KEPT:
            self.kept.clear()
        self.kept[row[0]] = row

    def let_go(self, inode_id: int) -> None:
        """Do not remember a row: somebody has the inode, and will not ask."""
        self.kept.pop(inode_id, None)

    def insert(self, inode: Inode) -> None:
        row = _row(inode)
        self._execute(_INSERT, row)
        self.keep(row)

    def insert_all(self, inodes: Iterable[Inode]) -> None:
        self._executemany(_INSERT, map(_row, inodes))

    def update_attributes(self, inode: Inode) -> None:
        """Write owner, mode and times; not size and content, which sealing owns."""
        self.kept.pop(inode.id, None)
        self._execute(
            "UPDATE inode SET mode = ?, uid = ?, gid = ?, atime = ?, mtime = ?, ctime = ?"
            " WHERE id = ?",
            (
                inode.mode,
                inode.uid,
                inode.gid,
                inode.atime_ns,
                inode.mtime_ns,
                inode.ctime_ns,
                inode.id,
            ),
        )

    def used_since(self, since_ns: int, after: int, span: int) -> list[tuple[int, int, int, int]]:
        """(id, parent, content, when it was used) of sealed files used since then, of the *span*
        numbers that follow *after*.
        """
        return self._execute(
            "SELECT id, parent, content, max(atime, mtime) FROM inode WHERE id > ?1"
            " AND id <= ?1 + ?2 AND content IS NOT NULL AND parent IS NOT NULL"
            " AND max(atime, mtime) >= ?3",
            (after, span, since_ns),
        ).fetchall()

    @property
    def last(self) -> int:
        """The highest number given out."""
        return self._last_id

    def set_sealed(self, inode: Inode, content: int | None, size: int, holes: int | None) -> None:
        """Name the sealed content, and write owner, mode and times; as `set_content`."""
        self.kept.pop(inode.id, None)
        self._execute(
            "UPDATE inode SET mode = ?, uid = ?, gid = ?, atime = ?, mtime = ?, ctime = ?,"
            " content = ?, size = ?, holes = ? WHERE id = ?",
            (
                inode.mode,
                inode.uid,
                inode.gid,
                inode.atime_ns,
                inode.mtime_ns,
                inode.ctime_ns,
                content,
                size,
                holes,
                inode.id,
            ),
        )

    def set_atime(self, inode_id: int, atime_ns: int) -> None:
        self.kept.pop(inode_id, None)
        self._execute("UPDATE inode SET atime = ? WHERE id = ?", (atime_ns, inode_id))

    def set_content(self, inode_id: int, content: int | None, size: int, holes: int | None) -> None:
        """Name the sealed content; the caller counts the references."""
        self.kept.pop(inode_id, None)
        self._execute(
            "UPDATE inode SET content = ?, size = ?, holes = ? WHERE id = ?",
            (content, size, holes, inode_id),
        )

    def set_times(self, inode_id: int, mtime_ns: int, ctime_ns: int) -> None:
        self.kept.pop(inode_id, None)
        self._execute(
            "UPDATE inode SET mtime = ?, ctime = ? WHERE id = ?", (mtime_ns, ctime_ns, inode_id)
        )

    def set_links(self, inode_id: int, nlink: int, ctime_ns: int) -> None:
        self.kept.pop(inode_id, None)
        self._execute(
            "UPDATE inode SET nlink = ?, ctime = ? WHERE id = ?", (nlink, ctime_ns, inode_id)
        )

    def add_links(self, links: Mapping[int, int]) -> None:
        """So many more names, or subdirectories, of each inode."""
        self.kept.clear()
        self._executemany(
            "UPDATE inode SET nlink = nlink + ? WHERE id = ?",
            ((more, inode_id) for inode_id, more in links.items()),
        )

    def drop_links(self, inode_ids: Iterable[int]) -> None:
        """A name of each is gone; a directory has one only."""
        self.kept.clear()
        self._executemany(
            "UPDATE inode SET nlink = iif((mode & 61440) = 16384, 0, nlink - 1),"
            " parent = iif((mode & 61440) = 16384 OR nlink > 1, parent, NULL) WHERE id = ?",
            ((inode_id,) for inode_id in inode_ids),
        )

    def set_parent(self, inode_id: int, parent: int | None) -> None:
        self.kept.pop(inode_id, None)
        self._execute("UPDATE inode SET parent = ? WHERE id = ?", (parent, inode_id))

    def touch_directory(self, inode_id: int, now_ns: int, subdirectories: int) -> None:
        """Stamp a directory whose entries change, by how many *subdirectories* it grows."""
        self.kept.pop(inode_id, None)
        self._execute(
            "UPDATE inode SET mtime = ?1, ctime = ?1, nlink = nlink + ?2 WHERE id = ?3",
            (now_ns, subdirectories, inode_id),
        )

    def unlinked(self) -> list[int]:
        """Inodes without a name, left by programs that had them open."""
        return [row[0] for row in self._execute("SELECT id FROM inode WHERE nlink = 0")]

    def delete(self, inode_id: int) -> int | None:
        """Remove a row; returns the content that it named, which the caller releases."""
        self.kept.pop(inode_id, None)
        row = self._execute(
            "DELETE FROM inode WHERE id = ? RETURNING content", (inode_id,)
        ).fetchone()
        content: int | None = row[0] if row is not None else None
        return content
