"""Contents (what a whole file holds) and the chunks and blocks they are made of.

Reference counts move in the transaction that makes or drops the reference:
content.refs with inode rows, chunk.refs with recipes, block.live with chunk rows.

A block that fails its check is marked damaged. Its chunks keep their ids and stay named by recipes,
but are not found any more by their digests: the next file that has the same bytes stores them anew,
under the same ids, and all contents that name them are whole again.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agentfs.index.connection import IndexConnection
from agentfs.model import Location, NewBlock

FIRST_CHUNK_ID = 2
"""0 and 1 mean holes in a recipe."""

NO_BLOCK = 0
"""As chunk.block: where the chunk was is not known any more."""

UNKNOWN_DIGEST = bytes(32)
"""Of a chunk whose bytes have not been read since its row was restored."""

_LENGTH_MAX = (1 << 32) - 1
"""Of a part of a recipe."""

_LOOKED_UP = 64
"""Digests in one query: what a query costs beside its look-ups is then little."""

_PREFIXES = ", ".join("?" * _LOOKED_UP)


def _prefixes(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """First 8 bytes of each, in lists of _LOOKED_UP; the last is filled up by repeating one."""
    prefixes = [digest[:8] for digest in digests]
    for start in range(0, len(prefixes), _LOOKED_UP):
        group = prefixes[start : start + _LOOKED_UP]
        yield group + group[:1] * (_LOOKED_UP - len(group))


def chunk_ids(recipe: bytes) -> Iterator[int]:
    """The chunks in a recipe, in order, as often as they stand in it."""
    return (chunk for chunk in array("I", recipe)[0::2] if chunk >= FIRST_CHUNK_ID)


def recipe_parts(recipe: bytes) -> Iterator[tuple[int | None, int]]:
    """(chunk or None for a hole, length in bytes), as agentfs/chunks/recipe.py describes it.

    :raises struct.error: it ends in the middle of a part
    """
    for number, length in struct.iter_unpack("<II", recipe):
        if number >= FIRST_CHUNK_ID:
            yield number, length
        else:
            yield None, length << 30 if number else length


class ChunkLost(Exception):
    """A recipe names a chunk whose place is not known any more."""

    def __init__(self, chunk: int) -> None:
        super().__init__(f"chunk {chunk} is lost")


class Contents:
    """Read and change contents, chunks and blocks; callers bring the transaction."""

    def __init__(self, index: IndexConnection) -> None:
        self._execute = index.execute
        self._executemany = index.executemany
        (highest,) = index.execute("SELECT coalesce(max(id), 1) FROM chunk").fetchone()
        self._last_chunk: int = max(highest, FIRST_CHUNK_ID - 1)
        self._damaged: set[int] = set()
        self.marks = 0
        """Grows with each block marked damaged: what was found before may be lost."""
        self.recipe_changed: Callable[[int], None] = lambda content: None
        """Called with the id of a content that gets another recipe."""
        self._load_damaged()
        index.transaction.on_rollback = self._load_damaged

    def find(self, digest: bytes) -> int | None:
        """The content with this BLAKE3 digest."""
        row = self._execute(
            "SELECT id FROM content WHERE substr(digest, 1, 8) = ? AND digest = ?",
            (digest[:8], digest),
        ).fetchone()
        return row[0] if row is not None else None

    def find_whole(self, digests: set[bytes]) -> set[bytes]:
        """Those that are contents, and not known to be damaged."""
        query = f"SELECT digest, id FROM content WHERE substr(digest, 1, 8) IN ({_PREFIXES})"
        rows = (row for group in _prefixes(digests) for row in self._execute(query, group))
        return {digest for digest, id_ in rows if digest in digests and not self.is_damaged(id_)}

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

    def add(self, digest: bytes, size: int, recipe: bytes) -> int:
        """A new content with one reference, its first inode's; counts one for each chunk in it."""
        cursor = self._execute(
            "INSERT INTO content VALUES (NULL, ?, ?, ?, 1)", (digest, size, recipe)
        )
        self._executemany(
            "UPDATE chunk SET refs = refs + 1 WHERE id = ?",
            ((chunk,) for chunk in chunk_ids(recipe)),
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
        """The ids of those that are known, and not known to be damaged."""
        query = f"SELECT digest, id FROM chunk WHERE substr(digest, 1, 8) IN ({_PREFIXES})"
        rows = (row for group in _prefixes(digests) for row in self._execute(query, group))
        damaged = self._damaged
        return {
            digest: chunk for digest, chunk in rows if digest in digests and chunk not in damaged
        }

    @property
    def generation(self) -> int:
        """Grows with each chunk recorded."""
        return self._last_chunk

    def locate(self, chunks: Iterable[int]) -> list[Location]:
        """Where each chunk lies, in the order given.

        :raises KeyError: a chunk is unknown
        :raises ChunkLost: it is known, but not where it was
        """
        execute = self._execute
        locations = []
        for chunk in chunks:
            row = execute(
                "SELECT segment, offset, start, length FROM chunk"
                " LEFT JOIN block ON block.id = chunk.block WHERE chunk.id = ?",
                (chunk,),
            ).fetchone()
            if row is None:
                raise KeyError(chunk)
            if row[0] is None:
                raise ChunkLost(chunk)
            locations.append(Location(*row))
        return locations

    def add_block(self, block: NewBlock, *, are_new: bool) -> list[int]:
        """Record an appended block with its chunks, as yet without references; their ids.

        A chunk that another seal has stored meanwhile keeps its first place, and
        its copy in this block is garbage from the start; one that is damaged moves here.

        :param are_new: none of its chunks can have been recorded since they were looked up
        """
        raw = sum(length for _, length in block.chunks)
        cursor = self._execute(
            "INSERT INTO block VALUES (NULL, ?, ?, ?, ?, 0)",
            (block.segment, block.offset, block.stored_bytes, raw),
        )
        block_id = cursor.lastrowid
        assert block_id is not None
        ids, rows, start, healed = [], [], 0, 0
        for digest, length in block.chunks:
            chunk = None if are_new and not self._damaged else self.find_chunk(digest)
            if chunk is None:
                self._last_chunk += 1
                chunk = self._last_chunk
                rows.append((chunk, digest, block_id, start, length))
            elif chunk in self._damaged:
                self._heal(chunk, block_id, start, length)
                healed += length
            ids.append(chunk)
            start += length
        self._executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, 0)", rows)
        live = healed + sum(row[4] for row in rows)
        self._execute("UPDATE block SET live = ? WHERE id = ?", (live, block_id))
        return ids

    # Damage

    def _load_damaged(self) -> None:
        self._damaged = {
            chunk
            for (chunk,) in self._execute(
                "SELECT chunk.id FROM damaged JOIN chunk ON chunk.block = damaged.block"
            )
        }

    def is_damaged(self, content: int) -> bool:
        """Whether a content is known to have lost bytes."""
        if not self._damaged:
            return False
        _, _, recipe = self.get(content)
        return not self._damaged.isdisjoint(chunk_ids(recipe))

    def mark_damaged(self, segment: int, offset: int | None) -> int:
        """Note that a block, or all of a segment, cannot be read. In a transaction.

        Returns how many blocks are concerned that were not marked already.
        """
        marked = self._execute(
            "INSERT OR IGNORE INTO damaged SELECT id FROM block"
            " WHERE segment = ?1 AND (?2 IS NULL OR offset = ?2)",
            (segment, offset),
        ).rowcount
        if marked:
            self.marks += 1
            self._load_damaged()
        return marked

    def damaged_segments(self) -> set[int]:
        """Segments with damaged blocks that recipes still name."""
        rows = self._execute(
            "SELECT segment FROM damaged JOIN block ON block.id = damaged.block WHERE live > 0"
        )
        return {segment for (segment,) in rows}

    def damaged_blocks(self) -> set[tuple[int, int]]:
        """(segment, offset) of the blocks that are marked."""
        return set(
            self._execute(
                "SELECT segment, offset FROM damaged JOIN block ON block.id = damaged.block"
            )
        )

    def set_digests(self, chunks: Mapping[int, bytes], contents: Mapping[int, bytes]) -> None:
        """Of restored rows, once their bytes have been read. In a transaction."""
        for table, digests in (("chunk", chunks), ("content", contents)):
            self._executemany(
                f"UPDATE {table} SET digest = ? WHERE id = ?",
                ((digest, row) for row, digest in digests.items()),
            )

    def _heal(self, chunk: int, block: int, start: int, length: int) -> None:
        self._execute(
            "UPDATE block SET live = live - ? WHERE id = (SELECT block FROM chunk WHERE id = ?)",
            (length, chunk),
        )
        self._execute("UPDATE chunk SET block = ?, start = ? WHERE id = ?", (block, start, chunk))
        self._damaged.discard(chunk)

    def add_lost_chunk(self, chunk: int, length: int) -> None:
        """A chunk that a recipe names and that is not there. In a transaction."""
        self._last_chunk = max(self._last_chunk, chunk)
        self._execute(
            "INSERT INTO chunk VALUES (?, ?, ?, 0, ?, 0)",
            (chunk, UNKNOWN_DIGEST, NO_BLOCK, length),
        )

    def record_check(
        self,
        *,
        damaged: Iterable[tuple[int, int]],
        readable: Iterable[tuple[int, int]],
        misplaced: Iterable[int],
    ) -> None:
        """Note what a check found. In a transaction.

        :param damaged: (segment, offset) of blocks
        :param readable: of blocks that were marked damaged and are not
        :param misplaced: chunks that are not where their rows say
        """
        for segment, offset in readable:
            self._execute(
                "DELETE FROM damaged WHERE block IN"
                " (SELECT id FROM block WHERE segment = ? AND offset = ?)",
                (segment, offset),
            )
        for segment, offset in damaged:
            self.mark_damaged(segment, offset)
        self._lose_chunks(misplaced)

    def condemn(self, content: int) -> None:
        """Give up all bytes of a content: its recipe names lost chunks. In a transaction."""
        (size,) = self._execute("SELECT size FROM content WHERE id = ?", (content,)).fetchone()
        numbers = array("I")
        for start in range(0, size, _LENGTH_MAX):
            length = min(_LENGTH_MAX, size - start)
            self.add_lost_chunk(self._last_chunk + 1, length)
            numbers.extend((self._last_chunk, length))
        self._execute("UPDATE content SET recipe = ? WHERE id = ?", (numbers.tobytes(), content))
        self.recipe_changed(content)

    def _lose_chunks(self, chunks: Iterable[int]) -> None:
        """Note that chunks are not where their rows say. In a transaction."""
        for chunk in chunks:
            self._execute(
                "UPDATE block SET live = live - length FROM chunk"
                " WHERE chunk.id = ? AND block.id = chunk.block",
                (chunk,),
            )
            self._execute("UPDATE chunk SET block = ?, start = 0 WHERE id = ?", (NO_BLOCK, chunk))
        self.marks += 1
        self.note_lost_chunks()

    def note_lost_chunks(self) -> None:
        """Have it known which chunks are in no block. In a transaction."""
        self._execute("DELETE FROM damaged WHERE block = ?", (NO_BLOCK,))
        self._execute(
            "INSERT INTO damaged SELECT ?1 WHERE EXISTS (SELECT 1 FROM chunk WHERE block = ?1)",
            (NO_BLOCK,),
        )
        self._load_damaged()

    def rewrite(self, content: int, recipe: bytes) -> None:
        """Give a damaged content another recipe for the same bytes."""
        _, _, old = self.get(content)
        self._execute("UPDATE content SET recipe = ? WHERE id = ?", (recipe, content))
        for change, chunks in ((1, chunk_ids(recipe)), (-1, chunk_ids(old))):
            self._executemany(
                "UPDATE chunk SET refs = refs + ? WHERE id = ?",
                ((change, chunk) for chunk in chunks),
            )
        self.recipe_changed(content)

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
        self._execute(
            "DELETE FROM damaged WHERE block IN (SELECT id FROM block WHERE segment = ?)",
            (segment,),
        )
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
        (damaged,) = self._execute(
            "SELECT count(*) FROM damaged LEFT JOIN block ON block.id = damaged.block"
            " WHERE live IS NULL OR live > 0"
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
            "damaged_blocks": damaged,
            "segments": segments,
            "block_stored_bytes": stored,
            "block_raw_bytes": raw,
            "block_live_bytes": live,
        }
