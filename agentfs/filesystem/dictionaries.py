"""Dictionaries: which one a small block is compressed with, how they are made, when they go.

One is for files of any kind, and others for one kind where that is better still. They are trained
on the newest contents in the background, a step of some 100 ms of CPU at a time, in a thread of
idle priority, and adopted if they make held-out samples smaller. A dictionary that was replaced
stays until no block refers to it.

Bytes of users that are kept apart are neither samples nor compressed with a dictionary: how small
a block gets would tell of others' bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from agentfs.chunks import CorruptBlock, NewerFormat, Store, compressed_bytes, train_dictionary
from agentfs.filesystem.contents import Piece
from agentfs.filesystem.gate import Gate
from agentfs.filesystem.rewrite import be_idle
from agentfs.index import ChunkLost, Index
from agentfs.index.contents import chunk_ids
from agentfs.model import Kind
from agentfs.policy.dictionaries import (
    BLOCK_BYTES,
    HELD_OUT_BYTES,
    SAMPLE_MIN_BYTES,
    TRAINED_BYTES,
    dictionary_bytes,
    is_due,
    room,
    saves,
    split,
)

log = logging.getLogger(__name__)

ANY = 255
"""As the kind of a dictionary: for files of every kind that has none of its own."""

_CONTENTS = 128
"""Looked at between two turns of the event loop, about 1 ms."""

_CONTENTS_MOST = 16_384
"""Looked at in all: kinds that are rarer get no dictionary."""

_READ_AT_ONCE = 16
"""Samples read in one step: their blocks take 5 ms each at worst."""

_CACHE_BYTES = 32 << 20

_COPY_LEVEL = 19
"""At which the store keeps a dictionary."""

_LOOK_S = 0.05
"""How often a training that waits asks whether it may go on."""

T = TypeVar("T")


class Dictionaries:
    """Those of one store. Training and collecting: one at a time."""

    def __init__(
        self,
        index: Index,
        store: Store,
        segments: Path,
        gate: Gate,
        *,
        level: int,
        is_busy: Callable[[], bool],
    ) -> None:
        """
        :param segments: the directory of *store*
        :param level: of zstd, at which small blocks are written
        :param is_busy: whether others need the machine just now: training waits
        """
        self._index = index
        self._store = store
        self._segments = segments
        self._gate = gate
        self._level = level
        self._is_busy = is_busy
        self._by_kind: dict[int, int] = {}
        """Number of the dictionary in use: the newest of its kind."""
        self.look()

    def look(self) -> None:
        """See which there are; a damaged copy is mended."""
        try:
            found = self._store.dictionaries()
        except OSError as error:
            log.warning("cannot look for dictionaries: %s; blocks are written without", error)
            return
        self._by_kind = {kind: number for number, kind, copies, _ in found if copies}

    def number(self, kind: Kind, domain: int | None, size: int) -> int:
        """Of the dictionary for a block of *size* raw bytes, of files of a kind; 0: none."""
        if domain is not None or size > BLOCK_BYTES:
            return 0
        return self._in_use(kind)

    def _in_use(self, kind: int) -> int:
        """Of the dictionary for files of a kind, or of any; 0: none."""
        return self._by_kind.get(kind) or self._by_kind.get(ANY, 0)

    # Training

    async def train(self, share: float) -> None:
        """Train what is due. Whoever cancels it need not wait for the step under way.

        :param share: of a core that it may take
        """
        last = self._index.contents.last
        if not is_due(last, self._index.trained_contents):
            return
        try:
            with _IdleThread(self._is_busy, share) as thread:
                samples = await self._read(thread, await self._gather())
                everything = [sample for of_kind in samples.values() for sample in of_kind]
                random.Random(1).shuffle(everything)  # or its first would all be of one kind
                for kind, those in ((ANY, everything), *samples.items()):
                    await self._train_one(thread, kind, those)
            with self._index.transaction:
                self._index.note_training(last)
        except (OSError, CorruptBlock) as error:
            log.error("cannot train dictionaries: %s; it is tried again", error)

    async def _train_one(self, thread: _IdleThread, kind: int, samples: list[bytes]) -> None:
        parts = split(samples)
        if parts is None:
            return
        trained, held_out = parts
        there = sum(size for *_, size in self._store.dictionaries())
        space = room(there, sum(size for _, size in self._store.segments()))
        size = dictionary_bytes(sum(map(len, trained)), space)
        if not size:
            return
        dictionary = await thread.run(partial(train_dictionary, trained, size))
        if not dictionary:
            return
        in_use = self._in_use(kind)
        used = self._store.dictionary(in_use) if in_use else None
        before = await thread.run(partial(compressed_bytes, held_out, self._level, used))
        after = await thread.run(partial(compressed_bytes, held_out, self._level, dictionary))
        if not saves(before, after):
            return
        if 2 * await thread.run(partial(compressed_bytes, [dictionary], _COPY_LEVEL)) > space:
            return
        with trio.CancelScope(shield=True):
            number = await trio.to_thread.run_sync(self._store.add_dictionary, kind, dictionary)
        self._by_kind[kind] = number
        what = "all kinds" if kind == ANY else Kind(kind).label
        log.info("dictionary %d, for %s: %d bytes become %d", number, what, before, after)

    async def _gather(self) -> dict[Kind, list[list[Piece]]]:
        """Where samples lie, by kind: of the newest contents what none of those before has."""
        found: dict[Kind, list[list[Piece]]] = {kind: [] for kind in Kind}
        sizes = dict.fromkeys(Kind, 0)
        seen: set[int] = set()
        contents = self._index.contents
        before, looked = contents.last + 1, 0
        most = TRAINED_BYTES + HELD_OUT_BYTES
        while looked < _CONTENTS_MOST and min(sizes.values()) < most:
            rows = contents.recipes_before(before, _CONTENTS, BLOCK_BYTES)
            if not rows:
                break
            for _, kind, recipe in rows:
                if sizes[kind] >= most:
                    continue
                chunks = [chunk for chunk in dict.fromkeys(chunk_ids(recipe)) if chunk not in seen]
                seen.update(chunks)
                pieces = self._pieces(chunks)
                size = sum(length for *_, length in pieces)
                if size >= SAMPLE_MIN_BYTES:
                    found[kind].append(pieces)
                    sizes[kind] += size
            before, looked = rows[-1][0], looked + len(rows)
            await trio.lowlevel.checkpoint()
        return found

    def _pieces(self, chunks: Sequence[int]) -> list[Piece]:
        try:
            return [
                (place.segment, place.offset, place.start, place.length)
                for place in self._index.contents.locate(chunks)
            ]
        except (KeyError, ChunkLost):
            return []

    async def _read(
        self, thread: _IdleThread, places: dict[Kind, list[list[Piece]]]
    ) -> dict[Kind, list[bytes]]:
        """The samples, those that can be read. A reader of its own: as in `Rewriter.rewrite`."""
        source = Store(self._segments, cache_bytes=_CACHE_BYTES, read_only=True)
        samples: dict[Kind, list[bytes]] = {}
        try:
            for kind, of_kind in places.items():
                samples[kind] = []
                in_order = sorted(of_kind)  # so each block is decompressed about once
                for start in range(0, len(in_order), _READ_AT_ONCE):
                    some = in_order[start : start + _READ_AT_ONCE]
                    samples[kind] += await thread.run(partial(_read_some, source, some))
        finally:
            source.close()
        return samples

    # Removal

    async def collect(self) -> None:
        """Remove those that were replaced and that no block refers to any more."""
        numbers = {number for number, *_ in self._store.dictionaries()}
        replaced = numbers - set(self._by_kind.values()) - {max(numbers, default=0)}
        if not replaced:
            return
        async with self._gate.alone():
            pass  # seals that began when they were in use are done
        used = await trio.to_thread.run_sync(self._used)
        for number in replaced - used if used is not None else ():
            await trio.to_thread.run_sync(self._store.remove_dictionary, number)
            log.info("dictionary %d is gone: no block refers to it", number)

    def _used(self) -> set[int] | None:
        """Those that blocks refer to, read from all headers; None: that cannot be told."""
        used: set[int] = set()
        for number, _ in self._store.segments():
            try:
                used.update(block[-1] for block in self._store.blocks(number))
            except FileNotFoundError:
                continue
            except (CorruptBlock, NewerFormat, OSError) as error:
                log.warning("dictionaries stay: %s", error)
                return None
        return used


class _IdleThread:
    """Steps of work that nobody waits for, in a thread that gives way to all others."""

    def __init__(self, is_busy: Callable[[], bool], share: float) -> None:
        self._is_busy = is_busy
        self._share = share
        self._thread = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="train", initializer=self._begin)

    def _begin(self) -> None:
        self._thread = threading.get_native_id()
        be_idle()

    def __enter__(self) -> _IdleThread:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:  # a step that nobody waits for any more would keep the daemon from ending
            with contextlib.suppress(OSError):
                os.sched_setscheduler(self._thread, os.SCHED_OTHER, os.sched_param(0))
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, step: Callable[[], T]) -> T:
        """Do a step when the machine has time for it. Cancelled, it is left to itself."""
        while self._is_busy():
            await trio.sleep(_LOOK_S)
        began = time.monotonic()
        future = self._pool.submit(step)
        result = await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)
        await trio.sleep((time.monotonic() - began) * (1 / self._share - 1))
        return result


def _read_some(source: Store, samples: Sequence[list[Piece]]) -> list[bytes]:
    found = []
    for pieces in samples:
        try:
            found.append(source.get(pieces))
        except (CorruptBlock, FileNotFoundError):
            continue  # damaged, or moved meanwhile
    return found
