"""Sealed content, read: by range for a read request, or whole for a staged copy.

Places of chunks are looked up for every read and never kept, so compaction may
move a chunk at any time; a read that loses that race finds its segment gone and
looks again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

import trio

from agentfs.chunks import AHEAD_BYTES, CorruptBlock, Store
from agentfs.chunks.digest import ContentHasher, DomainKeys
from agentfs.chunks.recipe import Recipe
from agentfs.filesystem.ranges import write_all
from agentfs.index import ChunkLost, Index

log = logging.getLogger(__name__)

RECIPES_KEPT = 256
_WINDOW_BYTES = 8 << 20

_WINDOW_LEAST_BYTES = 512 << 10
"""Smaller windows find each other's blocks more often than they save time."""

_CORES = os.cpu_count() or 1

_WINDOWS_AT_ONCE = min(4, _CORES)
"""Of one content: decompressed side by side, 1.8 ms of CPU a MB, and ten times that if it is made
of pieces of many blocks."""

_SCATTERED_BYTES = 256 << 10
"""From which on a content has blocks of its own: those that give little of it hold other files'.
A smaller one is in a block with its neighbours, which may be wanted next."""

_CROWDING_BYTES = 8 << 20
"""From which on the blocks of a content leave the cache as soon as it is copied. Those of smaller
ones may hold chunks of the files that are opened next: without them a corpus is read 30 % slower.
"""

AT_ONCE_BYTES = 128 << 10
"""Hashed and written in 60 us, less than it costs to change threads twice."""

Piece = tuple[int, int, int, int]
"""(segment, block offset, start in the raw block, length), as `Store.get` takes it."""


class BytesLost(OSError):
    """Some bytes of a content cannot be had; others can."""

    def __init__(self, reason: object) -> None:
        super().__init__(errno.EIO, str(reason))


class ContentDamaged(OSError):
    """What was put together does not have the digest it is named by."""

    def __init__(self, content: int, expected: bytes, found: bytes) -> None:
        super().__init__(
            errno.EIO, f"content {content} should have BLAKE3 {expected.hex()}, has {found.hex()}"
        )


def pieces_of(index: Index, recipe: Recipe, offset: int, size: int) -> list[Piece]:
    """Where a range of a content lies now.

    :raises ChunkLost, KeyError: as `Contents.locate`
    """
    parts = list(recipe.parts(offset, size))
    places = iter(index.contents.locate(chunk for chunk, _, _ in parts if chunk is not None))
    pieces = []
    for chunk, within, length in parts:
        if chunk is None:
            pieces.append((0, 0, 0, length))
        else:
            place = next(places)
            pieces.append((place.segment, place.offset, place.start + within, length))
    return pieces


class ContentReader:
    """Reads contents by their ids."""

    def __init__(self, index: Index, store: Store, keys: DomainKeys) -> None:
        self._index = index
        self._keys = keys
        self._contents = index.contents
        self._contents.recipe_changed = self.forget
        self._store = store
        self._recipes: OrderedDict[int, Recipe] = OrderedDict()
        self._recipes_kept = RECIPES_KEPT
        self._loading = 0
        self._missed: tuple[int, int] | None = None
        """The block that somebody waited for last."""
        self._expected, self._to_bring = trio.open_memory_channel[Piece](1)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a block just now."""
        return self._loading > 0

    @property
    def takes_all_cores(self) -> bool:
        """Whether who waits for blocks just now leaves no core to anybody else."""
        return self._loading >= _CORES

    def recipe(self, content: int) -> Recipe:
        """:raises KeyError: there is no such content"""
        recipe = self._recipes.get(content)
        if recipe is None:
            recipe = self._recipes[content] = Recipe(*self._contents.get(content))
            if len(self._recipes) > self._recipes_kept:
                self._recipes.popitem(last=False)
        else:
            self._recipes.move_to_end(content)
        return recipe

    def limit_recipes(self, count: int) -> None:
        """Keep so many from now on: one of a gigabyte takes as much as 100 of small files."""
        self._recipes_kept = count
        while len(self._recipes) > count:
            self._recipes.popitem(last=False)

    def forget(self, content: int) -> None:
        """A content was removed and its id may be given again, or its recipe has changed."""
        self._recipes.pop(content, None)

    async def read(
        self, content: int, offset: int, size: int, taken: set[Piece] | None = None
    ) -> bytes:
        """Up to *size* bytes from *offset* on; fewer only at the end.

        :param taken: all of the content is being read, and nothing else soon; into this goes a
            piece of each block that it was read from
        :raises BytesLost: a checksum failed, or a block is not there
        """
        recipe = self.recipe(content)
        try:
            pieces = pieces_of(self._index, recipe, offset, size)
            found = self._store.get(pieces, cached_only=True)
            if found is None:
                get = functools.partial(self._store.get, whole_file=taken is not None)
                self._loading += 1
                try:
                    found = await trio.to_thread.run_sync(get, pieces)
                except FileNotFoundError:
                    pieces = pieces_of(self._index, recipe, offset, size)
                    found = await trio.to_thread.run_sync(get, pieces)
                finally:
                    self._loading -= 1
                if taken is None:
                    self._expect_more(pieces[-1])
            if taken is not None:
                taken.update((segment, block, 0, 0) for segment, block, _, _ in pieces)
            return found
        except ChunkLost as error:
            raise BytesLost(error) from error
        except CorruptBlock as error:
            self._mark(error.segment, error.offset_bytes)
            raise BytesLost(error) from error
        except FileNotFoundError as error:
            self._mark_missing(pieces)
            raise BytesLost("a segment is missing") from error

    def read_at_once(self, content: int, offset: int, size: int) -> bytes | None:
        """The same; None: not all of it is in the cache, or `read` says what is wrong."""
        try:
            pieces = pieces_of(self._index, self.recipe(content), offset, size)
            return self._store.get(pieces, cached_only=True)
        except (KeyError, ChunkLost, CorruptBlock):
            return None

    def _expect_more(self, last: Piece) -> None:
        """Who has waited for a block twice goes through it: through files, or a large one."""
        segment, offset, start, length = last
        if self._missed == (segment, offset):
            following = (start + length + AHEAD_BYTES - 1) // AHEAD_BYTES * AHEAD_BYTES
            with contextlib.suppress(trio.WouldBlock):
                self._expected.send_nowait((segment, offset, following, 1))
        self._missed = segment, offset

    async def read_ahead(self) -> None:
        """Decompress what is expected to be read next, while others work. Runs until cancelled."""
        async for piece in self._to_bring:
            with contextlib.suppress(CorruptBlock, OSError):  # the block may end there, or be gone
                await trio.to_thread.run_sync(self._store.get, [piece])

    async def bring(self, content: int) -> bool:
        """Have all its blocks in the cache, as far as that is large enough; False: they were.

        :raises BytesLost: as `read`
        """
        misses = self._store.stats()["cache_misses"]
        for offset in range(0, self.recipe(content).size, _WINDOW_BYTES):
            await self.read(content, offset, _WINDOW_BYTES)
        return self._store.stats()["cache_misses"] > misses

    def _mark(self, segment: int, offset: int | None) -> None:
        """Note the damage, so that the same bytes are stored anew when a program writes them."""
        try:
            with self._index.transaction:
                marked = self._contents.mark_damaged(segment, offset)
        except OSError as error:
            log.error("cannot note the damage in segment %d: %s", segment, error)
            return
        if marked:
            log.error(
                "segment %d, offset %s: damaged; agentfs fsck names the files",
                segment,
                "any" if offset is None else offset,
            )

    def _mark_missing(self, pieces: Sequence[Piece]) -> None:
        there = {number for number, _ in self._store.segments()}
        for segment in {piece[0] for piece in pieces} - there - {0}:
            self._mark(segment, None)

    async def copy_to(self, content: int, fd: int, limit: int | None = None) -> None:
        """Write the whole content, or its first *limit* bytes, to an empty file.

        A whole copy is checked against the digest. Holes stay holes. The blocks of a large one
        are not kept beside it.

        :raises ContentDamaged: the digest differs
        """
        recipe = self.recipe(content)
        size = recipe.size if limit is None else min(limit, recipe.size)
        hasher = ContentHasher(sparse=recipe.is_sparse, key=self._keys.of(recipe.domain))
        taken: set[Piece] | None = set() if recipe.size >= _SCATTERED_BYTES else None
        for start, length, is_hole in recipe.extents(size):
            if is_hole:
                hasher.hole(start, length)
                continue
            await self._copy_data(content, start, start + length, fd, hasher, taken)
        if taken and recipe.size >= _CROWDING_BYTES:
            self._store.drop_cache(list(taken))
        os.ftruncate(fd, size)
        if size == recipe.size and hasher.digest() != recipe.digest:
            raise ContentDamaged(content, recipe.digest, hasher.digest())

    async def _copy_data(
        self,
        content: int,
        start: int,
        end: int,
        fd: int,
        hasher: ContentHasher,
        taken: set[Piece] | None,
    ) -> None:
        """In windows that are read and written side by side, and hashed one after the other."""
        window = max((end - start) // _WINDOWS_AT_ONCE + 1, _WINDOW_LEAST_BYTES)
        window = min(window, _WINDOW_BYTES)
        if end - start <= window:
            data = await self.read(content, start, end - start, taken)
            if len(data) <= AT_ONCE_BYTES:
                _copy_window(fd, hasher, data, start)
            else:
                await trio.to_thread.run_sync(_copy_window, fd, hasher, data, start)
            return
        offsets = iter(range(start, end, window))
        hashed = trio.Event()
        hashed.set()
        failures: list[Exception] = []

        async def copy() -> None:
            nonlocal hashed
            for offset in offsets:
                before, hashed = hashed, trio.Event()
                done = hashed
                size = min(window, end - offset)
                data = await self.read(content, offset, size, taken)
                await trio.to_thread.run_sync(write_all, fd, data, offset)
                await before.wait()
                await trio.to_thread.run_sync(hasher.data, data)
                done.set()

        async def try_to_copy() -> None:
            try:
                await copy()
            except Exception as error:  # a nursery would make a group of it
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(_WINDOWS_AT_ONCE):
                nursery.start_soon(try_to_copy)
        if failures:
            raise failures[0]

    async def read_extent(self, content: int, offset: int, size: int) -> tuple[int, bytes | None]:
        """How far data, or a hole, reaches from *offset* on, and the data; None: a hole.

        At most *size* bytes, and not much data at once.

        :raises KeyError: there is no such content any more
        """
        _, length, is_hole = next(self.recipe(content).extents(size, offset))
        if is_hole:
            return length, None
        data = await self.read(content, offset, min(length, _WINDOW_BYTES))
        return len(data), data

    def seek(self, content: int, offset: int, *, hole: bool) -> int:
        """Where the next hole, or the next data, is from *offset* on; all ends with a hole.

        :raises OSError: ENXIO, when there is none
        """
        size = self.recipe(content).size
        if 0 <= offset < size:
            for start, _, is_hole in self.recipe(content).extents(size - offset, offset):
                if is_hole == hole:
                    return start
            if hole:
                return size
        raise OSError(errno.ENXIO, "neither data nor a hole from there on")


def _copy_window(fd: int, hasher: ContentHasher, data: bytes, offset: int) -> None:
    write_all(fd, data, offset)
    hasher.data(data)
