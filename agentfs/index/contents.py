"""Contents (what a whole file holds) and the chunks and blocks they are made of.

Reference counts move in the transaction that makes or drops the reference:
content.refs with inode rows, chunk.refs with recipes, block.live with chunk rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from agentfs.index.connection import IndexConnection
from agentfs.model import Location, NewBlock

FIRST_CHUNK_ID = 2
"""0 and 1 mean holes in a recipe."""

_LOOKED_UP = 64
"""Digests in one query: what a query costs beside its look-ups is then little."""

_PREFIXES = ", ".join("?" * _LOOKED_UP)


def _prefixes(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """First 8 bytes of each, in lists of _LOOKED_UP; the last is filled up by repeating one."""
    prefixes = [digest[:8] for digest in digests]
    for start in range(0, len(prefixes), _LOOKED_UP):
        group = prefixes[start : start + _LOOKED_UP]
        yield group + group[:1] * (_LOOKED_UP - len(group))


class Contents:
    """Read and change contents, chunks and blocks; callers bring the transaction."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        (highest,) = index.execute("SELECT coalesce(max(id), 1) FROM chunk").fetchone()
        self._last_chunk: int = max(highest, FIRST_CHUNK_ID - 1)

    def find(self, digest: bytes) -> int | None:
        """The content with this BLAKE3 digest."""
        row = self._execute(
            "SELECT id FROM content WHERE substr(digest, 1, 8) = ? AND digest = ?",
            (digest[:8], digest),
        ).fetchone()
        return row[0] if row is not None else None

    def find_all(self, digests: set[bytes]) -> set[bytes]:
        """Those that are contents."""
        query = f"SELECT digest FROM content WHERE substr(digest, 1, 8) IN ({_PREFIXES})"
        rows = (row for group in _prefixes(digests) for row in self._execute(query, group))
        return {digest for (digest,) in rows if digest in digests}

    def get(self, content: int) -> tuple[bytes, int, bytes]:
        """(digest, size in bytes, recipe).

        :raises KeyError: there is none
        """
        row = self._execute(
            "SELECT digest, size, recipe FROM content WHERE id = ?", (content,)
        ).fetchone()
        if row is None:
            raise KeyError(content)
        return row[0], row[1], row[2]

    def add(self, digest: bytes, size: int, recipe: bytes, chunks: Iterable[int]) -> int:
        """A new content with one reference, its first inode's; counts one for each of *chunks*."""
        cursor = self._execute(
            "INSERT INTO content VALUES (NULL, ?, ?, ?, 1)", (digest, size, recipe)
        )
        self._executemany(
            "UPDATE chunk SET refs = refs + 1 WHERE id = ?", ((chunk,) for chunk in chunks)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def reference(self, content: int | None) -> None:
        if content is not None:
            self._execute("UPDATE content SET refs = refs + 1 WHERE id = ?", (content,))

    def reference_all(self, contents: Mapping[int, int]) -> None:
        """So many more references to each."""
        self._executemany(
            "UPDATE content SET refs = refs + ? WHERE id = ?",
            ((more, content) for content, more in contents.items()),
        )

    def release(self, content: int | None) -> None:
        if content is not None:
            self._execute("UPDATE content SET refs = refs - 1 WHERE id = ?", (content,))

    def find_chunk(self, digest: bytes) -> int | None:
        row = self._execute(
            "SELECT id FROM chunk WHERE substr(digest, 1, 8) = ? AND digest = ?",
            (digest[:8], digest),
        ).fetchone()
        return row[0] if row is not None else None

    def find_chunks(self, digests: set[bytes]) -> dict[bytes, int]:
        """The ids of those that are known."""
        query = f"SELECT digest, id FROM chunk WHERE substr(digest, 1, 8) IN ({_PREFIXES})"
        rows = (row for group in _prefixes(digests) for row in self._execute(query, group))
        return {digest: chunk for digest, chunk in rows if digest in digests}

    @property
    def generation(self) -> int:
        """Grows with each chunk recorded."""
        return self._last_chunk

    def locate(self, chunks: Iterable[int]) -> list[Location]:
        """Where each chunk lies, in the order given.

        :raises KeyError: a chunk is unknown
        """
        execute = self._execute
        locations = []
        for chunk in chunks:
            row = execute(
                "SELECT segment, offset, start, length FROM chunk"
                " JOIN block ON block.id = chunk.block WHERE chunk.id = ?",
                (chunk,),
            ).fetchone()
            if row is None:
                raise KeyError(chunk)
            locations.append(Location(*row))
        return locations

    def add_block(self, block: NewBlock, *, are_new: bool) -> list[int]:
        """Record an appended block with its chunks, as yet without references; their ids.

        A chunk that another seal has stored meanwhile keeps its first place, and
        its copy in this block is garbage from the start.

        :param are_new: none of its chunks can have been recorded since they were looked up
        """
        raw = sum(length for _, length in block.chunks)
        cursor = self._execute(
            "INSERT INTO block VALUES (NULL, ?, ?, ?, ?, 0)",
            (block.segment, block.offset, block.stored_bytes, raw),
        )
        block_id = cursor.lastrowid
        ids, rows, start = [], [], 0
        for digest, length in block.chunks:
            chunk = None if are_new else self.find_chunk(digest)
            if chunk is None:
                self._last_chunk += 1
                chunk = self._last_chunk
                rows.append((chunk, digest, block_id, start, length))
            ids.append(chunk)
            start += length
        self._executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, 0)", rows)
        self._execute(
            "UPDATE block SET live = ? WHERE id = ?", (sum(row[4] for row in rows), block_id)
        )
        return ids

    # Reclaiming

    def dead_contents(self, limit: int) -> list[tuple[int, bytes]]:
        """(id, recipe) of contents that no inode names."""
        return self._execute(
            "SELECT id, recipe FROM content WHERE refs = 0 LIMIT ?", (limit,)
        ).fetchall()

    def drop_content(self, content: int, chunks: Iterable[int]) -> None:
        self._execute("DELETE FROM content WHERE id = ?", (content,))
        self._executemany(
            "UPDATE chunk SET refs = refs - 1 WHERE id = ?", ((chunk,) for chunk in chunks)
        )

    def dead_chunks(self, limit: int) -> list[int]:
        rows = self._execute("SELECT id FROM chunk WHERE refs = 0 LIMIT ?", (limit,))
        return [row[0] for row in rows]

    def drop_chunks(self, chunks: Iterable[int]) -> None:
        """Forget chunks; their bytes become garbage of their blocks."""
        for chunk in chunks:
            block, length = self._execute(
                "DELETE FROM chunk WHERE id = ? RETURNING block, length", (chunk,)
            ).fetchone()
            self._execute("UPDATE block SET live = live - ? WHERE id = ?", (length, block))

    def segments(self) -> list[tuple[int, int, int, int, int]]:
        """(segment, blocks, stored bytes, raw bytes, live raw bytes) of each."""
        return self._execute(
            "SELECT segment, count(*), sum(stored), sum(raw), sum(live) FROM block GROUP BY segment"
        ).fetchall()

    def chunks_in(self, segment: int) -> list[tuple[int, bytes, Location]]:
        """(id, digest, location) of the live chunks of a segment, in order of place."""
        rows = self._execute(
            "SELECT chunk.id, digest, segment, offset, start, length FROM block"
            " JOIN chunk ON chunk.block = block.id WHERE segment = ? ORDER BY offset, start",
            (segment,),
        )
        return [(row[0], row[1], Location(*row[2:])) for row in rows]

    def move_chunks(self, block: NewBlock, chunks: Sequence[int]) -> None:
        """Record that *chunks* now lie in *block*, in that order."""
        raw = sum(length for _, length in block.chunks)
        block_id = self._execute(
            "INSERT INTO block VALUES (NULL, ?, ?, ?, ?, ?)",
            (block.segment, block.offset, block.stored_bytes, raw, raw),
        ).lastrowid
        start = 0
        for chunk, (_, length) in zip(chunks, block.chunks, strict=True):
            self._execute(
                "UPDATE chunk SET block = ?, start = ? WHERE id = ?", (block_id, start, chunk)
            )
            start += length

    def drop_segment(self, segment: int) -> None:
        self._execute("DELETE FROM block WHERE segment = ?", (segment,))

    # Totals

    def totals(self) -> Mapping[str, int]:
        """Counts and sums for `agentfs stats`; bytes unless named otherwise."""
        chunks, unique = self._execute(
            "SELECT count(*), coalesce(sum(length), 0) FROM chunk WHERE refs > 0"
        ).fetchone()
        blocks, segments, stored, raw, live = self._execute(
            "SELECT count(*), count(DISTINCT segment), coalesce(sum(stored), 0),"
            " coalesce(sum(raw), 0), coalesce(sum(live), 0) FROM block"
        ).fetchone()
        files, logical = self._execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM inode"
            " WHERE nlink > 0 AND (mode & 61440) = 32768"  # S_IFMT, S_IFREG
        ).fetchone()
        return {
            "files": files,
            "logical_bytes": logical,
            "chunks": chunks,
            "unique_bytes": unique,
            "blocks": blocks,
            "segments": segments,
            "block_stored_bytes": stored,
            "block_raw_bytes": raw,
            "block_live_bytes": live,
        }
