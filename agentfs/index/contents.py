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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agentfs.index.connection import IndexConnection
from agentfs.index.runs import pack_runs, unpack_runs
from agentfs.model import Kind, Location, NewBlock, SegmentUse, StoredBlock, StoredChunk

FIRST_CHUNK_ID = 2
"""0 and 1 mean holes in a recipe."""

NO_BLOCK = 0
"""As chunk.block: where the chunk was is not known any more."""

UNKNOWN_CHUNK_DIGEST = bytes(16)
"""Of a chunk whose bytes have not been read since its row was restored."""

UNKNOWN_CONTENT_DIGEST = bytes(32)
"""Of a content of which nothing is left but its number."""

_LENGTH_MAX = (1 << 32) - 1
"""Of a part of a recipe."""

_LOOKED_UP = 64
"""Digests in one query: what a query costs beside its look-ups is then little."""

_PREFIX_BYTES = 4
"""Of a digest, in the index: of four billion digests, one or two share it."""

HALF_BYTES = 16
"""Of a content's digest. The first half is the digest of its chunk if it is one chunk: then
content.digest is the second half alone. So contents are found by how the second half begins."""

_IN_HALF = slice(HALF_BYTES, HALF_BYTES + _PREFIX_BYTES)

_FIRST = slice(_PREFIX_BYTES)

PART_BYTES = 8
"""Of a recipe: one chunk or hole."""

_PREFIXES = ", ".join("?" * _LOOKED_UP)


def _prefixes(digests: Iterable[bytes], where: slice) -> Iterator[list[bytes]]:
    """Those bytes of each, in lists of _LOOKED_UP; the last is filled up by repeating one."""
    prefixes = [digest[where] for digest in digests]
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
        index.transaction.on_rollback.append(self._load_damaged)

    def find(self, digest: bytes) -> int | None:
        """The content with this BLAKE3 digest.

        One that is a chunk whose digest is lost is found by the second half: as for chunks, 16
        bytes do.
        """
        rows = self._execute(
            "SELECT id, digest, recipe FROM content WHERE substr(digest, -16, 4) = ?",
            (digest[_IN_HALF],),
        )
        named = {self._whole(kept, recipe): id_ for id_, kept, recipe in rows}
        return named.get(digest, named.get(UNKNOWN_CHUNK_DIGEST + digest[HALF_BYTES:]))

    def find_whole(self, digests: set[bytes]) -> set[bytes]:
        """Those that are contents, and not known to be damaged."""
        query = (
            f"SELECT id, digest, recipe FROM content WHERE substr(digest, -16, 4) IN ({_PREFIXES})"
        )
        rows = [
            row for group in _prefixes(digests, _IN_HALF) for row in self._execute(query, group)
        ]
        named = ((id_, self._whole(kept, recipe)) for id_, kept, recipe in rows)
        return {digest for id_, digest in named if digest in digests and not self.is_damaged(id_)}

    def _whole(self, kept: bytes, recipe: bytes) -> bytes:
        """The digest of a content, of which a row keeps all or the second half."""
        if len(kept) > HALF_BYTES:
            return kept
        return self._chunk_digest(recipe) + kept

    def _chunk_digest(self, recipe: bytes) -> bytes:
        """Of the first chunk in it."""
        chunk = int.from_bytes(recipe[:4], "little")
        row = self._execute("SELECT digest FROM chunk WHERE id = ?", (chunk,)).fetchone()
        return row[0] if row is not None else UNKNOWN_CHUNK_DIGEST

    def get(self, content: int) -> tuple[bytes, int, bytes, int | None]:
        """(digest, size in bytes, recipe, domain).

        :raises KeyError: there is none
        """
        row = self._execute(
            "SELECT digest, size, recipe, domain FROM content WHERE id = ?", (content,)
        ).fetchone()
        if row is None:
            raise KeyError(content)
        return self._whole(row[0], row[2]), row[1], row[2], row[3]

    def size(self, content: int) -> int:
        """In bytes; 0: there is none."""
        row = self._execute("SELECT size FROM content WHERE id = ?", (content,)).fetchone()
        return row[0] if row is not None else 0

    def references(self, content: int) -> int:
        """Inodes that name it; 0: there is no such content either."""
        row = self._execute("SELECT refs FROM content WHERE id = ?", (content,)).fetchone()
        return row[0] if row is not None else 0

    def kind(self, content: int) -> Kind:
        """What its bytes look like."""
        row = self._execute("SELECT kind FROM content WHERE id = ?", (content,)).fetchone()
        return Kind(row[0] or 0) if row is not None else Kind.OTHER

    def cost(self, content: int) -> tuple[float, float]:
        """(bytes on disk that one file of this content accounts for, share that is compacted).

        What a chunk takes is divided among the recipes it stands in and the files that name
        them, so the sum over all files is what live data takes. Some 3 us a chunk.
        """
        row = self._execute("SELECT recipe, refs FROM content WHERE id = ?", (content,)).fetchone()
        stored, whole, packed = 0.0, 0, 0
        for chunk in chunk_ids(row[0]) if row is not None else ():
            share = self._execute(
                "SELECT length, 1.0 * length / chunk.refs * stored / raw, packed"
                " FROM chunk JOIN block ON block.id = chunk.block WHERE chunk.id = ?",
                (chunk,),
            ).fetchone()
            if share is not None:
                whole += share[0]
                stored += share[1]
                packed += share[0] if share[2] else 0
        return (stored / row[1], packed / whole) if whole else (0.0, 0.0)

    def digests_after(self, content: int, limit: int) -> list[tuple[int, bytes]]:
        """(id, digest) of the next *limit* contents after that id."""
        rows = self._execute(
            "SELECT id, digest, recipe FROM content WHERE id > ? ORDER BY id LIMIT ?",
            (content, limit),
        ).fetchall()
        return [(id_, self._whole(kept, recipe)) for id_, kept, recipe in rows]

    def bytes_by_segment(self, content: int) -> Counter[int]:
        """How many raw bytes of a content lie in which segment. Some 3 us a chunk."""
        row = self._execute("SELECT recipe FROM content WHERE id = ?", (content,)).fetchone()
        found: Counter[int] = Counter()
        for chunk in chunk_ids(row[0]) if row is not None else ():
            found.update(
                dict(
                    self._execute(
                        "SELECT segment, length FROM chunk JOIN block ON block.id = chunk.block"
                        " WHERE chunk.id = ?",
                        (chunk,),
                    )
                )
            )
        return found

    def recipes_after(self, content: int, limit: int) -> list[tuple[int, bytes]]:
        """(id, recipe) of the next *limit* contents after that id which files name."""
        return self._execute(
            "SELECT id, recipe FROM content WHERE id > ? AND refs > 0 ORDER BY id LIMIT ?",
            (content, limit),
        ).fetchall()

    @property
    def last(self) -> int:
        """The highest id that a content has; 0: there are none."""
        row = self._execute("SELECT max(id) FROM content").fetchone()
        return row[0] or 0

    def recipes_before(self, content: int, limit: int, size: int) -> list[tuple[int, Kind, bytes]]:
        """(id, kind, recipe) of the *limit* contents before that id, newest first.

        Of those that files name, of at most *size* bytes and of no domain.
        """
        rows = self._execute(
            "SELECT id, coalesce(kind, 0), recipe FROM content"
            " WHERE id < ? AND refs > 0 AND size <= ? AND domain IS NULL ORDER BY id DESC LIMIT ?",
            (content, size, limit),
        )
        return [(id_, Kind(kind), recipe) for id_, kind, recipe in rows]

    def add(
        self,
        digest: bytes,
        size: int,
        recipe: bytes,
        kind: Kind = Kind.OTHER,
        domain: int | None = None,
    ) -> int:
        """A new content with one reference, its first inode's; counts one for each chunk in it."""
        is_its_chunk = len(recipe) == PART_BYTES and digest.startswith(self._chunk_digest(recipe))
        kept = digest[HALF_BYTES:] if is_its_chunk else digest
        cursor = self._execute(
            "INSERT INTO content VALUES (NULL, ?, ?, ?, 1, ?, ?)",
            (kept, size, recipe, kind or None, domain),
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
            "SELECT id FROM chunk WHERE substr(digest, 1, 4) = ? AND digest = ?",
            (digest[:_PREFIX_BYTES], digest),
        ).fetchone()
        return row[0] if row is not None else None

    def find_chunks(self, digests: set[bytes]) -> dict[bytes, int]:
        """The ids of those that are known, and not known to be damaged."""
        query = f"SELECT digest, id FROM chunk WHERE substr(digest, 1, 4) IN ({_PREFIXES})"
        rows = (row for group in _prefixes(digests, _FIRST) for row in self._execute(query, group))
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
        block_id = self._insert_block(block, packed=False)
        ids, rows, start = [], [], 0
        healed: dict[int, int] = {}
        for digest, length in block.chunks:
            chunk = None if are_new and not self._damaged else self.find_chunk(digest)
            if chunk is None:
                self._last_chunk += 1
                chunk = self._last_chunk
                rows.append((chunk, digest, block_id, start, length, block.domain))
            elif chunk in self._damaged:
                self._heal(chunk, block_id, start, length)
                healed[chunk] = length
            ids.append(chunk)
            start += length
        self._executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, 0, ?)", rows)
        live = sum(healed.values()) + sum(row[4] for row in rows)
        held = pack_runs(sorted([*healed, *(row[0] for row in rows)]))
        self._execute("UPDATE block SET live = ?, chunks = ? WHERE id = ?", (live, held, block_id))
        return ids

    def _insert_block(self, block: NewBlock, *, packed: bool) -> int:
        raw = sum(length for _, length in block.chunks)
        cursor = self._execute(
            "INSERT INTO block VALUES (NULL, ?, ?, ?, ?, 0, NULL, ?)",
            (block.segment, block.offset, block.stored_bytes, raw, 1 if packed else None),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    # Damage

    def _load_damaged(self) -> None:
        rows = self._execute(
            "SELECT id, segment, offset, chunks FROM damaged JOIN block ON block.id = damaged.block"
        ).fetchall()
        self._damaged = {chunk.id for row in rows for chunk in self.chunks_of(StoredBlock(*row))}
        self._damaged.update(self.lost_chunks())

    def is_damaged(self, content: int) -> bool:
        """Whether a content is known to have lost bytes."""
        if not self._damaged:
            return False
        recipe = self.get(content)[2]
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
            "INSERT INTO chunk VALUES (?, ?, ?, 0, ?, 0, NULL)",
            (chunk, UNKNOWN_CHUNK_DIGEST, NO_BLOCK, length),
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
        digest, size, _, _ = self.get(content)
        numbers = array("I")
        for start in range(0, size, _LENGTH_MAX):
            length = min(_LENGTH_MAX, size - start)
            self.add_lost_chunk(self._last_chunk + 1, length)
            numbers.extend((self._last_chunk, length))
        self._set_recipe(content, digest, numbers.tobytes())

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
            f"INSERT INTO damaged SELECT {NO_BLOCK}"
            f" WHERE EXISTS (SELECT 1 FROM chunk WHERE block = {NO_BLOCK})"
        )
        self._load_damaged()

    def lost_chunks(self) -> list[int]:
        """Those in no block."""
        rows = self._execute(f"SELECT id FROM chunk WHERE block = {NO_BLOCK}")  # by its own index
        return [row[0] for row in rows]

    def rewrite(self, content: int, digest: bytes, recipe: bytes) -> None:
        """Give a damaged content another recipe for the same bytes, which have this digest."""
        old = self.get(content)[2]
        self._set_recipe(content, digest, recipe)
        for change, chunks in ((1, chunk_ids(recipe)), (-1, chunk_ids(old))):
            self._executemany(
                "UPDATE chunk SET refs = refs + ? WHERE id = ?",
                ((change, chunk) for chunk in chunks),
            )

    def _set_recipe(self, content: int, digest: bytes, recipe: bytes) -> None:
        """It may not be the one chunk any more that has half of its digest."""
        self._execute(
            "UPDATE content SET digest = ?, recipe = ? WHERE id = ?", (digest, recipe, content)
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

    def segments(self) -> list[SegmentUse]:
        """What the blocks of each segment hold."""
        rows = self._execute(
            "SELECT segment, count(*), sum(stored), sum(raw), sum(live),"
            " sum(CASE WHEN packed THEN 0 ELSE live END) FROM block GROUP BY segment"
        )
        return [SegmentUse(*row) for row in rows]

    def live_bytes(self, segment: int) -> int:
        """Raw bytes of a segment that chunks claim."""
        (live,) = self._execute(
            "SELECT coalesce(sum(live), 0) FROM block WHERE segment = ?", (segment,)
        ).fetchone()
        return int(live)

    @property
    def dead_count(self) -> int:
        """How many contents no inode names."""
        (count,) = self._execute("SELECT count(*) FROM content WHERE refs = 0").fetchone()
        return int(count)

    def dead_bytes(self, limit: int) -> float:
        """Bytes of the contents that no inode names, by the first *limit* of them.

        Most may be in chunks that others have as well: see `freed_bytes`.
        """
        (dead,) = self._execute(
            "SELECT coalesce(sum(size), 0) FROM (SELECT size FROM content WHERE refs = 0 LIMIT ?)",
            (limit,),
        ).fetchone()
        return float(dead * max(1, self.dead_count / limit))

    def freed_bytes(self, named: Iterable[tuple[int, int]]) -> float:
        """Bytes on disk of those among (chunk, times) that stand in no recipe but so many times.

        Some 2 us a chunk.
        """
        rows = (
            self._execute(
                "SELECT 1.0 * length * stored / raw FROM chunk JOIN block ON block.id = block"
                " WHERE chunk.id = ? AND chunk.refs <= ?",
                (chunk, times),
            ).fetchone()
            for chunk, times in named
        )
        return sum((row[0] for row in rows if row is not None), 0.0)

    def named_recipes(
        self, after: tuple[int, bytes], limit: int
    ) -> list[tuple[int, bytes, int | None, bytes | None]]:
        """(parent, name, content's size or None, recipe or None) of the next *limit* names.

        By directory and name.
        """
        return self._execute(
            "SELECT d.parent, d.name, content.size, recipe FROM"
            " (SELECT * FROM dentry WHERE (parent, name) > (?, ?) ORDER BY parent, name LIMIT ?) d"
            " JOIN inode ON inode.id = d.inode LEFT JOIN content ON content.id = inode.content"
            " ORDER BY d.parent, d.name",
            (*after, limit),
        ).fetchall()

    def blocks_in(self, segment: int) -> list[StoredBlock]:
        """The blocks of a segment, in order of place."""
        rows = self._execute(
            "SELECT id, segment, offset, chunks FROM block WHERE segment = ? ORDER BY offset",
            (segment,),
        )
        return [StoredBlock(*row) for row in rows]

    def chunks_of(self, block: StoredBlock) -> list[StoredChunk]:
        """The chunks that lie in a block, in order of place. Some 2 us each."""
        rows = [
            row
            for run in unpack_runs(block.chunks)
            for row in self._execute(
                "SELECT start, id, digest, length, domain FROM chunk"
                " WHERE id BETWEEN ? AND ? AND block = ?",
                (*run, block.id),
            )
        ]
        return [
            StoredChunk(
                chunk,
                digest,
                block.id,
                Location(block.segment, block.offset, start, size),
                domain,
            )
            for start, chunk, digest, size, domain in sorted(rows)
        ]

    def begin_move(self, block: NewBlock, chunks: Sequence[StoredChunk], *, packed: bool) -> int:
        """Record a block that is to take over *chunks*, in that order; its id."""
        block_id = self._insert_block(block, packed=packed)
        ids = pack_runs(sorted(chunk.id for chunk in chunks))
        self._execute("UPDATE block SET chunks = ? WHERE id = ?", (ids, block_id))
        return block_id

    def move_chunks(self, chunks: Sequence[StoredChunk], block: int, start: int) -> int:
        """Record that *chunks* now lie in *block* from *start* on, in order; where they end.

        One that was healed since it was looked up stays where it is now.
        """
        left: Counter[int] = Counter()
        for chunk in chunks:
            length = chunk.place.length
            moved = self._execute(
                "UPDATE chunk SET block = ?, start = ? WHERE id = ? AND block = ?",
                (block, start, chunk.id, chunk.block),
            ).rowcount
            if moved:
                left[chunk.block] += length
                self._damaged.discard(chunk.id)  # it could be read after all
            start += length
        self._executemany(
            "UPDATE block SET live = live - ? WHERE id = ?",
            [*((length, old) for old, length in left.items()), (-left.total(), block)],
        )
        return start

    def drop_segment(self, segment: int) -> None:
        """Forget the blocks of a segment, from which all chunks have moved."""
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
        blocks, segments, stored, raw, live, young = self._execute(
            "SELECT count(*), count(DISTINCT segment), coalesce(sum(stored), 0),"
            " coalesce(sum(raw), 0), coalesce(sum(live), 0),"
            " coalesce(sum(CASE WHEN packed THEN 0 ELSE live END), 0) FROM block"
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
            "young_bytes": young,
        }
