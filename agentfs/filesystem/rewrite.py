"""Segments written anew: what lives in them goes into new blocks, durably, before they are removed.

Blocks are appended, synced, and only then named by rows, a group of blocks at a
time; a segment goes when no row names anything in it any more, and the index
says so durably. So it may be killed or stopped at any step: what was recorded
stays, the rest lies where it lay, and blocks without rows are garbage.

Packing is background work: threads of idle priority, which keep the pace that
`Store.set_pace` tells them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import trio

from agentfs.chunks import CorruptBlock, Store
from agentfs.filesystem.durability import Durability
from agentfs.index import Index
from agentfs.model import NewBlock, StoredChunk
from agentfs.policy.compaction import most_block_bytes

log = logging.getLogger(__name__)

_SLICE = 256
"""Rows changed in one transaction, about 2 ms."""

_GROUP_BYTES = 64 << 20
"""Raw bytes between two syncs: what a kill loses of the work."""

_CACHE_BYTES = 4 << 20
"""Old blocks kept decompressed, from one new block to the next. To decompress one that comes again
takes 1 ms a MiB, to pack 270."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How blocks are written."""

    level: int
    block_bytes: int
    is_packed: bool
    """As small as it gets, so compaction leaves it alone from now on."""


class Stopped(Exception):
    """The work was told to stop; what it had recorded stays."""


class Rewriter:
    """Moves chunks. One rewrite at a time."""

    def __init__(self, index: Index, store: Store, segments: Path, durability: Durability) -> None:
        """:param segments: the directory of *store*"""
        self._index = index
        self._contents = index.contents
        self._store = store
        self._segments = segments
        self._durability = durability
        self.removed = 0
        """Segments removed since the start."""

    async def rewrite(
        self,
        numbers: Sequence[int],
        chunks: Sequence[StoredChunk],
        packing: Packing,
        threads: int,
        progress: Callable[[int], None],
        small: Container[int] = (),
    ) -> None:
        """Move *chunks*, all that live in the segments *numbers*, in the order given.

        A segment with a damaged block stays, with what could not be read: a disk may read again
        what it cannot now.

        :param progress: called with the raw bytes that were moved, now and then
        :param small: ids of chunks that come first in their block, of which a reader decompresses
            no more than it needs
        :raises Stopped: the store's pace says so
        :raises OSError: no room, or the disk failed
        """
        chunks = sorted(chunks, key=_domain_first)
        # A reader of its own: this one reads every block once and would empty the cache of others.
        source = Store(self._segments, cache_bytes=_CACHE_BYTES, read_only=True)
        idle = be_idle if packing.is_packed else None
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rewrite", initializer=idle)
        try:
            for group in _groups(chunks, packing.block_bytes, small):
                moves, damage = await trio.to_thread.run_sync(
                    self._pack, source, pool, group, packing
                )
                for error in damage:
                    self._mark(error)
                for block, moved in moves:
                    await self._record(block, moved, packing)
                progress(sum(chunk.place.length for block in group for chunk in block))
        finally:
            pool.shutdown()
            source.close()
        empty = [number for number in numbers if not self._contents.live_bytes(number)]
        with self._index.transaction:
            for number in empty:
                self._contents.drop_segment(number)
        await self._durability.sync()  # old rows must not come back after their segment is gone
        for number in empty:
            await trio.to_thread.run_sync(self._store.remove, number)
            self.removed += 1

    def _mark(self, error: CorruptBlock) -> None:
        with self._index.transaction:
            self._contents.mark_damaged(error.segment, error.offset_bytes)
        log.error("segment %d stays: %s; agentfs fsck names the files", error.segment, error)

    async def _record(
        self, block: NewBlock, chunks: Sequence[StoredChunk], packing: Packing
    ) -> None:
        with self._index.transaction:
            block_id = self._contents.begin_move(block, chunks, packed=packing.is_packed)
        place = 0
        for start in range(0, len(chunks), _SLICE):
            with self._index.transaction:
                place = self._contents.move_chunks(chunks[start : start + _SLICE], block_id, place)
            await trio.lowlevel.checkpoint()

    # In worker threads

    def _pack(
        self,
        source: Store,
        pool: ThreadPoolExecutor,
        group: Sequence[Sequence[StoredChunk]],
        packing: Packing,
    ) -> tuple[list[tuple[NewBlock, Sequence[StoredChunk]]], list[CorruptBlock]]:
        """Append new blocks and make them durable; what could not be read is left out, and why."""
        running = [pool.submit(self._copy, source, chunks, packing.level) for chunks in group]
        moves, damage = [], []
        failure: OSError | None = None
        for future, chunks in zip(running, group, strict=True):
            try:
                moves.append((future.result(), chunks))
            except CorruptBlock as error:
                damage.append(error)
            except OSError as error:
                failure = failure or error
        if failure is not None and failure.errno == errno.ECANCELED and not moves:
            raise Stopped from failure
        if failure is not None and failure.errno != errno.ECANCELED:
            raise failure
        if moves:
            self._store.sync()
        return moves, damage

    def _copy(self, source: Store, chunks: Sequence[StoredChunk], level: int) -> NewBlock:
        places = [chunk.place for chunk in chunks]
        pieces = [(p.segment, p.offset, p.start, p.length) for p in places]
        data = memoryview(source.get(pieces, whole_file=True))
        views, start = [], 0
        for place in places:
            views.append(data[start : start + place.length])
            start += place.length
        segment, offset, stored = self._store.pack(views, level)
        named = [(chunk.digest, chunk.place.length) for chunk in chunks]
        return NewBlock(segment, offset, stored, named, chunks[0].domain)


def _domain_first(chunk: StoredChunk) -> int:
    """By which those of one domain come together, in the order they had."""
    return -1 if chunk.domain is None else chunk.domain


def be_idle() -> None:
    """Let this thread run only when no other thread of the machine wants the core."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _groups(
    chunks: Sequence[StoredChunk], block_bytes: int, small: Container[int]
) -> Iterator[list[Sequence[StoredChunk]]]:
    """Blocks' worth of chunks, in groups to sync together."""
    group: list[Sequence[StoredChunk]] = []
    group_bytes = 0
    for block in _blocks(chunks, block_bytes):
        group.append(sorted(block, key=lambda chunk: chunk.id not in small))
        group_bytes += sum(chunk.place.length for chunk in block)
        if group_bytes >= _GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


def _blocks(chunks: Sequence[StoredChunk], block_bytes: int) -> Iterator[Sequence[StoredChunk]]:
    first = size = 0
    for number, chunk in enumerate(chunks):
        most = most_block_bytes(block_bytes, chunk.place.length)
        is_full = size + chunk.place.length > most
        if size and (is_full or chunk.domain != chunks[first].domain):
            yield chunks[first:number]
            first, size = number, 0
        size += chunk.place.length
    if size:
        yield chunks[first:]
