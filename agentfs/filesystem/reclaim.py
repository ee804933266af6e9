"""Giving back what nothing refers to any more.

Contents without inodes go first, then chunks without contents, then segments
whose live share is low or whose blocks are tiny: what lives in them is appended
anew, durably, before the old file is removed. Dropping chunks and choosing
segments need the gate: a seal under way relies on chunks it has seen, and has
blocks in segments that no row names yet. Moving does not: a chunk that moves
keeps its id, and readers look places up afresh.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import trio

from agentfs.chunks import CorruptBlock, Store
from agentfs.chunks.recipe import Recipe
from agentfs.filesystem.contents import ContentReader
from agentfs.filesystem.durability import Durability
from agentfs.filesystem.gate import Gate
from agentfs.filesystem.livefile import InodeTable
from agentfs.index import Index
from agentfs.model import Location, NewBlock

log = logging.getLogger(__name__)

_SLICE = 256
"""Rows changed in one transaction, about 2 ms."""

_HEADER_ROOM_BYTES = 4096
"""A segment is larger than its blocks by a header. By more: blocks of a seal that failed."""

_TINY_SHARE = 0.25
"""A segment whose blocks are on average smaller than this share of a full one is merged."""


@dataclass(slots=True)
class Reclaimed:
    """What one collection gave back."""

    contents: int = 0
    chunks: int = 0
    segments: int = 0
    stored_bytes: int = 0
    """Difference of the segments' sizes; negative when rewriting cost more than it freed."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Collector:
    """Removes garbage. One collection at a time."""

    def __init__(
        self,
        index: Index,
        store: Store,
        table: InodeTable,
        reader: ContentReader,
        durability: Durability,
        gate: Gate,
        *,
        level: int,
        block_bytes: int,
        garbage_share: float,
    ) -> None:
        """:param garbage_share: of a segment's raw bytes, from which it is rewritten (0 to 1)"""
        self._index = index
        self._contents = index.contents
        self._store = store
        self._table = table
        self._reader = reader
        self._durability = durability
        self._gate = gate
        self._level = level
        self._block_bytes = block_bytes
        self._garbage_share = garbage_share
        self.one_at_a_time = trio.Lock()
        """Held while no segment may be removed: during a collection, or by who reads them all."""

    async def collect(self, progress: Callable[[int, int], None]) -> Reclaimed:
        """Remove all garbage there is.

        :param progress: called with (segments done, segments to rewrite)
        :raises OSError: no room to rewrite a segment; what was done is kept
        """
        result = Reclaimed()
        async with self.one_at_a_time:
            before = sum(size for _, size in self._store.segments())
            self._table.reap()
            async with self._gate.alone():
                result.contents = await self._drop_contents()
                result.chunks = await self._drop_chunks()
                victims = self._victims()
                if victims:
                    self._store.roll()
            for done, segment in enumerate(victims):
                progress(done, len(victims))
                result.segments += await self._rewrite(segment)
            result.stored_bytes = before - sum(size for _, size in self._store.segments())
        return result

    async def _drop_contents(self) -> int:
        count = 0
        while dead := self._dead_contents():
            with self._index.transaction:
                for content, encoded in dead:
                    self._contents.drop_content(content, Recipe(b"", 0, encoded).chunks)
            for content, _ in dead:
                self._reader.forget(content)
            count += len(dead)
            await trio.lowlevel.checkpoint()
        return count

    def _dead_contents(self) -> list[tuple[int, bytes]]:
        in_use = self._table.ghost_contents()
        dead = self._contents.dead_contents(_SLICE + len(in_use))
        return [row for row in dead if row[0] not in in_use]

    async def _drop_chunks(self) -> int:
        count = 0
        while dead := self._contents.dead_chunks(_SLICE):
            with self._index.transaction:
                self._contents.drop_chunks(dead)
            count += len(dead)
            await trio.lowlevel.checkpoint()
        return count

    def _victims(self) -> list[int]:
        victims = []
        tiny = self._block_bytes * _TINY_SHARE
        sizes = dict(self._store.segments())
        damaged = (
            self._contents.damaged_segments()
        )  # kept: a disk may read again what it cannot now
        for segment, blocks, stored, raw, live in self._contents.segments():
            size = sizes.pop(segment, stored)
            if segment in damaged:
                continue
            unknown = size - stored if size - stored > _HEADER_ROOM_BYTES else 0
            garbage = stored * (1 - live / raw) + unknown
            is_garbage = garbage >= self._garbage_share * (stored + unknown) and garbage > 0
            if is_garbage or live == 0 or (blocks > 1 and raw / blocks < tiny):
                victims.append(segment)
        return [*sizes, *victims]

    async def _rewrite(self, segment: int) -> bool:
        """Append anew what lives in a segment and remove it; False: it is damaged and stays."""
        try:
            moved = await self._copy_live(segment)
        except CorruptBlock as error:
            with self._index.transaction:
                self._contents.mark_damaged(error.segment, error.offset_bytes)
            log.error("segment %d stays: %s; agentfs fsck names the files", segment, error)
            return False
        if moved:
            await trio.to_thread.run_sync(self._store.sync)
        with self._index.transaction:
            for block, ids in moved:
                self._contents.move_chunks(block, ids)
            self._contents.drop_segment(segment)
        await self._durability.sync()  # old rows must not come back after their segment is gone
        await trio.to_thread.run_sync(self._store.remove, segment)
        return True

    async def _copy_live(self, segment: int) -> list[tuple[NewBlock, list[int]]]:
        chunks = self._contents.chunks_in(segment)
        moved: list[tuple[NewBlock, list[int]]] = []
        group: list[tuple[int, bytes, Location]] = []
        size = 0
        for row in chunks:
            if group and size + row[2].length > self._block_bytes:
                moved.append(await trio.to_thread.run_sync(self._copy_block, group))
                group, size = [], 0
            group.append(row)
            size += row[2].length
        if group:
            moved.append(await trio.to_thread.run_sync(self._copy_block, group))
        return moved

    def _copy_block(
        self, rows: Sequence[tuple[int, bytes, Location]]
    ) -> tuple[NewBlock, list[int]]:
        places = (place for _, _, place in rows)
        data = memoryview(
            self._store.get([(p.segment, p.offset, p.start, p.length) for p in places])
        )
        views, start = [], 0
        for _, _, place in rows:
            views.append(data[start : start + place.length])
            start += place.length
        segment, offset, stored = self._store.put(views, self._level)
        block = NewBlock(
            segment, offset, stored, [(digest, place.length) for _, digest, place in rows]
        )
        return block, [chunk for chunk, _, _ in rows]
