"""Giving back what nothing refers to any more, and packing the rest as small as it gets.

Contents without inodes go first, then chunks without contents, then segments
that are worth writing anew (`policy.compaction`): for gc those with garbage, for
compaction also what seals have written. Dropping chunks and choosing
segments need the gate: a seal under way relies on chunks it has seen, and has
blocks in segments that no row names yet. Moving does not: a chunk that moves
keeps its id, and readers look places up afresh.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import trio

from agentfs.chunks import Store
from agentfs.chunks.recipe import Recipe
from agentfs.filesystem.contents import ContentReader
from agentfs.filesystem.dictionaries import Dictionaries
from agentfs.filesystem.durability import Durability
from agentfs.filesystem.gate import Gate
from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.rewrite import Packing, Rewriter, Stopped
from agentfs.filesystem.staging import Staging
from agentfs.filesystem.turns import Turns
from agentfs.index import Index
from agentfs.index.contents import chunk_ids
from agentfs.model import SegmentUse, StoredChunk
from agentfs.policy.compaction import (
    COLD_LOOK_S,
    REST_S,
    SMALL_FILE_BYTES,
    WORTH_BYTES,
    garbage_bytes,
    is_due,
    is_too_much,
    live_bytes,
    may_be_worth_it,
    to_collect,
    to_compact,
    without_warm,
)

log = logging.getLogger(__name__)

_CORES = os.cpu_count() or 1

_LOOK_S = 10.0
"""How often background work looks whether there is something to do."""

_SLICE = 256
"""Rows changed in one transaction, about 2 ms."""

_NAMES = 128
"""Names looked at between two turns of the event loop, about 1 ms."""

_ROUND_BYTES = 256 << 20
"""Raw bytes put in order together: some 65,000 chunks, 20 MB of memory."""

_PACE_S = 0.05
"""How often it is asked whether others need the machine."""

_FULL_PACE = 1000
_REST = 0
_STOP = -1

_DEAD_LOOKED_AT = 1000
"""Dead contents looked at to say whether there is garbage worth a collection."""


@dataclass(slots=True)
class Reclaimed:
    """What one collection or compaction gave back."""

    contents: int = 0
    chunks: int = 0
    segments: int = 0
    rewritten_bytes: int = 0
    """Raw bytes that were packed anew."""
    stored_bytes: int = 0
    """Difference of the segments' sizes; negative when rewriting cost more than it freed."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class CompactionState:
    """What `agentfs stats` says of background work."""

    state: str = "idle"
    """idle, running, or waiting for others who need the machine."""
    done_bytes: int = 0
    total_bytes: int = 0


class Collector:
    """Removes garbage and compacts. One of either at a time."""

    def __init__(
        self,
        index: Index,
        store: Store,
        table: InodeTable,
        reader: ContentReader,
        durability: Durability,
        gate: Gate,
        staging: Staging,
        rewriter: Rewriter,
        dictionaries: Dictionaries,
        *,
        is_busy: Callable[[], bool],
        on_removed: Callable[[], Awaitable[None]],
        sealed: Packing,
        packed: Packing,
        garbage_share: float,
        segment_bytes: int,
        background_cpu: float,
        warm_bytes: Callable[[], Awaitable[Mapping[int, int]]],
    ) -> None:
        """
        :param is_busy: whether others need the machine just now: compaction waits
        :param on_removed: called when segments are gone, which a copy of the index may name
        :param sealed: how seals write blocks
        :param packed: how compaction does
        :param garbage_share: of a segment's bytes, from which it is rewritten (0 to 1)
        :param segment_bytes: of a full segment
        :param background_cpu: cores that compaction may take when nobody asked for it
        :param warm_bytes: raw bytes of each segment that are in files that are not cold
        """
        self._index = index
        self._contents = index.contents
        self._store = store
        self._table = table
        self._reader = reader
        self._durability = durability
        self._gate = gate
        self._staging = staging
        self._rewriter = rewriter
        self._dictionaries = dictionaries
        self._is_busy = is_busy
        self._on_removed = on_removed
        self._sealed = sealed
        self._packed = packed
        self._garbage_share = garbage_share
        self._segment_bytes = segment_bytes
        self._background_cpu = background_cpu
        self._warm_bytes = warm_bytes
        self._one_at_a_time = trio.Lock()
        self._background = trio.CancelScope()
        self._freed_by_dead = (0.0, 0.0)
        """Bytes of contents that no inode names when they were last looked at, and what of that
        they alone have. More of the first is at most as much more of the second."""
        self.state = CompactionState()

    async def collect(self, progress: Callable[[int, int], None]) -> Reclaimed:
        """Remove all garbage there is.

        :param progress: called with (segments done, segments to rewrite)
        :raises OSError: no room to rewrite any of the segments that are left; what was done is kept
        """
        async with self.alone():
            result = await self._collect(_FULL_PACE, _CORES, progress, gives_way=False)
        if result.segments:
            await self._on_removed()
        return result

    async def compact(self, progress: Callable[[int, int], None]) -> Reclaimed:
        """Pack all there is as small as it gets, on every core that nobody else wants.

        :param progress: called with (MiB done, MiB in all), of raw bytes
        :raises OSError: no room for a new segment; what was done is kept
        """
        async with self.alone():
            result = await self._compact(_FULL_PACE, _CORES, progress)
            self._index.vacuum()
            await self._pack_index()
        if result.segments:
            await self._on_removed()
        return result

    async def compact_in_background(self) -> None:
        """Compact when there is something worth it. Runs until cancelled."""
        if not self._background_cpu:
            return
        threads = math.ceil(self._background_cpu)
        pace = round(_FULL_PACE * self._background_cpu / threads)
        changes, since = -1, 0.0
        settled = -1  # the changes after which there was nothing to do
        next_look = trio.current_time() + COLD_LOOK_S
        while True:
            await trio.sleep(_LOOK_S)
            if changes != self._index.changes:
                changes, since = self._index.changes, trio.current_time()
            if changes == settled or self._one_at_a_time.locked():
                continue
            rested_s = trio.current_time() - since
            try:
                young, garbage, stored = await self._backlog()
            except OSError as error:
                log.error("cannot look for garbage: %s; later", error)
                continue
            work: Callable[[], Awaitable[Reclaimed]] | None = None
            if is_due(young, garbage, rested_s):
                work = partial(self._compact_all, pace, threads)
            elif is_too_much(garbage, stored, self._garbage_share):
                work = partial(self._collect, pace, threads, _nobody_looks, gives_way=True)
            elif young >= WORTH_BYTES and trio.current_time() >= next_look:
                next_look = trio.current_time() + COLD_LOOK_S
                await self._compact_cold(pace, threads)
            if work is not None:
                removed = self._rewriter.removed
                with trio.CancelScope() as self._background:
                    async with self._one_at_a_time:
                        await _try(work)
                changes = self._index.changes
                if not self._background.cancel_called:
                    settled = changes
                if self._rewriter.removed != removed:
                    await self._on_removed()
            elif rested_s >= REST_S:
                settled = changes

    async def _compact_all(self, pace: int, threads: int) -> Reclaimed:
        result = await self._compact(pace, threads, _nobody_looks)
        if self._index.is_worth_packing:
            await self._pack_index()
        return result

    async def _pack_index(self) -> None:
        for _ in self._index.pack():
            await trio.sleep(_PACE_S if self._is_busy() else 0)

    async def _compact_cold(self, pace: int, threads: int) -> None:
        """Pack what no agent uses any more of a store that does not rest."""
        uses = self._contents.segments()  # first: what is sealed from now on is warm
        uses = without_warm(uses, await self._warm_bytes())
        if sum(use.young for use in uses) < WORTH_BYTES:
            return
        removed, only = self._rewriter.removed, {use.number for use in uses}
        with trio.CancelScope() as self._background:
            async with self._one_at_a_time:
                await _try(partial(self._compact, pace, threads, _nobody_looks, only))
        if self._rewriter.removed != removed:
            await self._on_removed()

    async def _backlog(self) -> tuple[int, float, int]:
        """(raw bytes not packed yet, bytes that could be given back, bytes of all segments)."""
        sizes = dict(self._store.segments())
        uses = self._readable(self._contents.segments())
        garbage = sum(garbage_bytes(use, sizes.get(use.number, use.stored)) for use in uses)
        dead = self._contents.dead_bytes(_DEAD_LOOKED_AT)
        looked_at, freed = self._freed_by_dead
        if dead < looked_at or may_be_worth_it(garbage + freed + dead - looked_at):
            freed = await self._count_freed_by_dead()
            self._freed_by_dead = (dead, freed)
        return sum(use.young for use in uses), garbage + freed, sum(sizes.values())

    async def _count_freed_by_dead(self) -> float:
        """Bytes on disk that go when the contents go that no inode names.

        A conversation leaves one behind with each seal, and nearly all of it is in the next one:
        by their sizes alone a store that only grows would be rewritten again and again.
        """
        turns, named, freed = Turns(), Counter[int](), 0.0
        dead = self._contents.dead_contents(_DEAD_LOOKED_AT)
        for _, recipe in dead:
            named.update(chunk_ids(recipe))
            freed += len(recipe)
            await turns.give()
        chunks = iter(named.items())
        while some := list(islice(chunks, _SLICE)):
            freed += self._contents.freed_bytes(some)
            await turns.give()
        return freed * max(1, self._contents.dead_count / _DEAD_LOOKED_AT)

    def _readable(self, uses: Sequence[SegmentUse]) -> list[SegmentUse]:
        """Those without damaged blocks that files need: a disk may read them again one day."""
        damaged = self._contents.damaged_segments()
        return [use for use in uses if use.number not in damaged]

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """No segment is removed by others meanwhile; who compacts in the background gives up."""
        self._background.cancel()
        async with self._one_at_a_time:
            yield

    async def _collect(
        self, pace: int, threads: int, progress: Callable[[int, int], None], *, gives_way: bool
    ) -> Reclaimed:
        result, before, removed = Reclaimed(), self._stored_bytes(), self._rewriter.removed
        victims = await self._drop(result, self._to_collect)
        async with self._at_pace(pace, gives_way=gives_way):
            for done, use in enumerate(victims):
                progress(done, len(victims))
                if use.live:
                    self._staging.room.require_for_gc(live_bytes(use))
                chunks = await self._chunks_in([use.number])
                packing = self._sealed if 2 * use.young >= use.live else self._packed
                await self._rewriter.rewrite(
                    [use.number], chunks, packing, threads, lambda moved: None
                )
                result.rewritten_bytes += use.live
                self._give_log_back()
        await self._dictionaries.collect()
        result.segments += self._rewriter.removed - removed
        result.stored_bytes = before - self._stored_bytes()
        return result

    async def _compact(
        self,
        pace: int,
        threads: int,
        progress: Callable[[int, int], None],
        only: Container[int] | None = None,
    ) -> Reclaimed:
        """:param only: segments that may be taken; None: all"""
        result, before, removed = Reclaimed(), self._stored_bytes(), self._rewriter.removed
        victims = await self._drop(
            result,
            lambda uses, sizes: self._to_compact(
                [use for use in uses if only is None or use.number in only], sizes
            ),
        )
        state = self.state
        state.done_bytes, state.total_bytes = 0, sum(use.live for use in victims)

        def moved(size: int) -> None:
            state.done_bytes += size
            progress(state.done_bytes >> 20, state.total_bytes >> 20)

        async with self._at_pace(pace, gives_way=True):
            for group in _rounds(victims):
                self._staging.require_disk(sum(use.stored for use in group))
                numbers = [use.number for use in group]
                chunks, small = await self._in_order(numbers)
                await self._rewriter.rewrite(numbers, chunks, self._packed, threads, moved, small)
            await self._dictionaries.train(pace / _FULL_PACE)
        await self._dictionaries.collect()
        if victims:
            self._store.roll()  # what is sealed from now on does not lie among packed blocks
            self._index.checkpoint()  # each chunk that moved is in the log
        result.rewritten_bytes = state.done_bytes
        result.segments += self._rewriter.removed - removed
        result.stored_bytes = before - self._stored_bytes()
        return result

    async def _drop(
        self,
        result: Reclaimed,
        choose: Callable[[list[SegmentUse], dict[int, int]], list[SegmentUse]],
    ) -> list[SegmentUse]:
        """Drop what nothing refers to, and unknown segments; those that are to be rewritten."""
        self._table.reap()
        async with self._gate.alone():
            result.contents = await self._drop_contents()
            result.chunks = await self._drop_chunks()
            sizes = dict(self._store.segments())
            uses = self._contents.segments()
            victims = choose(self._readable(uses), sizes)
            unknown = sizes.keys() - {use.number for use in uses}
            if victims or unknown:
                self._store.roll()
        if unknown:
            await self._durability.sync()  # as in `Rewriter.rewrite`
        for number in unknown:
            await trio.to_thread.run_sync(self._store.remove, number)
        result.segments = len(unknown)
        return victims

    def _to_collect(self, uses: list[SegmentUse], sizes: dict[int, int]) -> list[SegmentUse]:
        return to_collect(
            uses,
            sizes,
            garbage_share=self._garbage_share,
            block_bytes=self._sealed.block_bytes,
        )

    def _to_compact(self, uses: list[SegmentUse], sizes: dict[int, int]) -> list[SegmentUse]:
        return to_compact(
            uses, sizes, garbage_share=self._garbage_share, segment_bytes=self._segment_bytes
        )

    async def _in_order(self, numbers: Sequence[int]) -> tuple[list[StoredChunk], set[int]]:
        """The chunks of some segments in the order in which files of a directory hold them.

        And the ids of those that small files hold.

        What is alike lies in one directory, under names that follow each other. What a file of many
        blocks has in several places comes first: there it is in few blocks, which stay in the
        cache of who reads the file. Chunks that no name leads to come last.
        """
        waiting = {chunk.id: chunk for chunk in await self._chunks_in(numbers)}
        ordered: list[StoredChunk] = []
        small: set[int] = set()
        after = (0, b"")
        while waiting:
            rows = self._contents.named_recipes(after, _NAMES)
            if not rows:
                break
            for *_, size, recipe in rows:
                chunks = list(Recipe(b"", 0, recipe or b"").chunks)
                taken = [waiting.pop(chunk) for chunk in chunks if chunk in waiting]
                if (size or 0) > self._packed.block_bytes:
                    again = {chunk for chunk, count in Counter(chunks).items() if count > 1}
                    taken.sort(key=lambda chunk: chunk.id not in again)
                ordered += taken
                if (size or 0) <= SMALL_FILE_BYTES:
                    small.update(chunk.id for chunk in taken)
            after = rows[-1][:2]
            await trio.lowlevel.checkpoint()
        return ordered + list(waiting.values()), small

    async def _chunks_in(self, numbers: Sequence[int]) -> list[StoredChunk]:
        chunks: list[StoredChunk] = []
        for number in numbers:
            for block in self._contents.blocks_in(number):
                chunks += self._contents.chunks_of(block)
                await trio.lowlevel.checkpoint()
        return chunks

    @asynccontextmanager
    async def _at_pace(self, pace: int, *, gives_way: bool) -> AsyncIterator[None]:
        """Let the rewriter's threads work meanwhile, and stop them when cancelled."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_pace, pace, gives_way)
            try:
                yield
            except Stopped:
                pass
            except Exception as error:  # a nursery would make a group of it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _keep_pace(self, pace: int, gives_way: bool) -> None:
        try:
            while True:
                must_wait = gives_way and self._is_busy()
                if gives_way:
                    self.state.state = "waiting" if must_wait else "running"
                self._store.set_pace(_REST if must_wait else pace)
                await trio.sleep(_PACE_S)
        finally:
            self._store.set_pace(_STOP)
            self.state.state = "idle"

    def _stored_bytes(self) -> int:
        return sum(size for _, size in self._store.segments())

    async def _drop_contents(self) -> int:
        count = 0
        while dead := self._dead_contents():
            with self._index.transaction:
                for content, encoded in dead:
                    self._contents.drop_content(content, Recipe(b"", 0, encoded).chunks)
            for content, _ in dead:
                self._reader.forget(content)
            count += len(dead)
            self._give_log_back()
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
            self._give_log_back()
            await trio.lowlevel.checkpoint()
        return count

    def _give_log_back(self) -> None:
        """On a full disk the index's log must not take all that is left; housekeeping is slower."""
        if self._staging.room.is_short:
            self._index.checkpoint()


async def _try(work: Callable[[], Awaitable[Reclaimed]]) -> None:
    try:
        result = await work()
    except OSError as error:
        log.error("background work: %s; it is tried again when the store has changed", error)
    else:
        log.info("%d segments less, %d bytes given back", result.segments, result.stored_bytes)


def _nobody_looks(done: int, total: int) -> None:
    """Progress of work in the background."""


def _rounds(uses: Sequence[SegmentUse]) -> Iterator[list[SegmentUse]]:
    """Segments to put in order together."""
    group: list[SegmentUse] = []
    size = 0
    for use in uses:
        group.append(use)
        size += use.live
        if size >= _ROUND_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
