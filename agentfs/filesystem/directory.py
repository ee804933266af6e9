"""Listing a directory that changes meanwhile, by whichever worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentfs.filesystem.namespace import Namespace, Row
from agentfs.model import Inode


class DirectoryStream:
    """One open directory: itself, its parent, then its entries in byte order of the names.

    A position is a count of entries taken so far from this stream, so it stays
    good while names come and go; reading from position 0 starts afresh.
    """

    __slots__ = (
        "_ahead",
        "_ahead_at",
        "_are_kept",
        "_before",
        "_inode_id",
        "_names",
        "_namespace",
        "_places",
    )

    _BATCH = 128
    """Read at once; a reply of one page takes about 24, the rest waits for the next."""

    def __init__(
        self, namespace: Namespace, inode_id: int, places: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        """:param places: (position, name before it) to which another worker has listed it"""
        self._namespace = namespace
        self._inode_id = inode_id
        self._places = places
        self._names: list[bytes] = [b".", b".."]
        self._before = 0
        """How many names that were taken are not in `_names`, being before them."""
        self._ahead: list[Row] = []
        """Entries read but not taken yet, last first; good while no row changes."""
        self._ahead_at = 0
        self._are_kept = True
        """The rows of the entries have been in memory so far."""

    def entries(self, position: int) -> Iterator[tuple[int, bytes, Inode | Row]]:
        """(position after it, name, inode or its row) of each entry from *position* on.

        An entry counts as taken when the next one is asked for.
        """
        if position == 0 or (position < self._before and not self._places):
            self._names, self._before, self._ahead = [b".", b".."], 0, []
        elif self._places:
            self._go_on_from(position)
        self._places = ()
        names, before, namespace = self._names, self._before, self._namespace
        if position < before + len(names) or namespace.changes != self._ahead_at:
            self._ahead = []
        while position < before + len(names):
            name = names[position - before]
            position += 1
            inode = namespace.lookup(self._inode_id, name)
            if inode is not None:
                yield position, name, inode
        ahead = self._ahead
        while True:
            if not ahead:
                last = names[-1] if names[-1] != b".." else b""
                self._ahead_at = namespace.changes
                ahead = self._ahead = self._rows_after(last)
                ahead.reverse()
                if not ahead:
                    return
            row = ahead[-1]
            if before + len(names) >= position:
                yield before + len(names) + 1, row[-1], namespace.current_of(row)
            names.append(ahead.pop()[-1])

    def _rows_after(self, name: bytes) -> list[Row]:
        inode_id, batch = self._inode_id, self._BATCH
        if self._are_kept:
            kept = self._namespace.kept_rows_after(inode_id, name, batch)
            if kept is not None:
                return kept
            self._are_kept = False
        return self._namespace.rows_after(inode_id, name, batch)

    def _go_on_from(self, position: int) -> None:
        """Know as much of another worker's listing as reading from *position* takes."""
        passed = [place for place in self._places if 2 < place[0] <= position]
        if passed:
            after, name = max(passed)
            self._names, self._before = [name], after - 1
