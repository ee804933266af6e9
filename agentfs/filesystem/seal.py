"""Sealing: staged files become contents made of chunks, durably.

For each file: read it once, hash it; a digest that is known is done. Otherwise
cut it, hash the chunks, append those that are unknown in compressed blocks.
Then, in this order: the segments are made durable, the blocks and chunks are
recorded, the inode names its new content. A crash in between leaves bytes or
rows that nothing refers to, which gc removes; no row ever names bytes that a
power cut could still take.

A file may be written while it is sealed. Each byte is read once, so what is
stored is what was hashed; the file's version says whether it must be sealed again.

Bytes are handled in worker threads (`_store`), which ask the event loop's thread
for what is known; rows are written on the event loop's thread, in transactions
short enough not to be noticed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import trio

from agentfs.chunks import Store, cut, params_for_size
from agentfs.chunks.digest import ContentHasher, DomainKeys, chunk_digest, digest_of
from agentfs.chunks.recipe import encode
from agentfs.filesystem.dictionaries import Dictionaries
from agentfs.filesystem.durability import Durability
from agentfs.filesystem.gate import Gate
from agentfs.filesystem.livefile import LiveFile
from agentfs.filesystem.ranges import data_extents
from agentfs.filesystem.room import Room
from agentfs.filesystem.staging import StagedFile
from agentfs.index import Index
from agentfs.model import SECTOR_BYTES, Kind, NewBlock
from agentfs.policy.kinds import SNIFFED_BYTES, sniff

log = logging.getLogger(__name__)

WINDOW_BYTES = 16 << 20
"""Read, cut and hashed at once; files up to this size are sealed together, up to twice it."""

HEAD_BYTES = 2 << 20
"""Holds the first chunk of a file of any size."""

_BATCH_FILES = 4096
"""Sealed together at most, however small they are: 4 MB of memory, and as many locks held."""

_SEALS_AT_ONCE = 4
"""Batches of small files in threads at once, and as many large files: 32 MiB of memory each. Those
that wait for a slow disk take no thread from reads."""

_COMMIT_FILES = 32
"""Files recorded in one transaction, about 1 ms."""

_NO_PROGRESS: Callable[[int, int], None] = lambda done, total: None  # noqa: E731


@dataclass(slots=True)
class _Snapshot:
    """A file as a seal finds it, and what becomes of it."""

    file: LiveFile
    taken_at: float
    """time.monotonic()"""
    version: int
    path: str
    domain: int | None
    """Whose bytes they are: the uid that owns the file now; None: anybody's."""
    key: bytes | None
    """Of the domain."""
    size: int = 0
    holes: int = 0
    digest: bytes = b""
    kind: Kind = Kind.OTHER
    """What the bytes of a new content look like."""
    parts: list[tuple[bytes | None, int]] = field(default_factory=list)
    """(chunk digest, or None for a hole; length in bytes)."""


_Put = Future[tuple[int, int, int]]
"""Of `Store.put`."""


class _Packer:
    """Collects new chunks into blocks and compresses those side by side. One thread's own."""

    def __init__(
        self,
        store: Store,
        room: Room,
        pool: ThreadPoolExecutor,
        level: int,
        block_bytes: int,
        dictionaries: Dictionaries,
        known: dict[bytes, int],
    ) -> None:
        self.known = known
        """Ids of chunks that are in the store; grows as they are found."""
        self.domain: int | None = None
        """Of the chunks that come next; changed when none is waiting: a block is of one domain."""
        self.kind = Kind.OTHER
        """Of the file that the next block begins with: which dictionary is worth trying."""
        self._store = store
        self._room = room
        self._pool = pool
        self._level = level
        self._block_bytes = block_bytes
        self._dictionaries = dictionaries
        self._digests: list[tuple[bytes, int]] = []
        self._views: list[memoryview] = []
        self._bytes = 0
        self._running: list[tuple[_Put, list[tuple[bytes, int]], int | None]] = []
        self._packed: set[bytes] = set()
        self.blocks: list[NewBlock] = []

    def add(self, digest: bytes, view: memoryview) -> None:
        if digest in self._packed:
            return
        self._packed.add(digest)
        if self._bytes + len(view) > self._block_bytes:
            self.flush()
        self._digests.append((digest, len(view)))
        self._views.append(view)
        self._bytes += len(view)

    def flush(self) -> None:
        """Start compressing what has been collected; wait when enough is under way."""
        if not self._views:
            return
        while len(self._running) >= 2 * _WORKERS:
            self._finish_one()
        self._room.require_for_seal(self._bytes)
        dictionary = self._dictionaries.number(self.kind, self.domain, self._bytes)
        future = self._pool.submit(self._store.put, self._views, self._level, dictionary)
        self._running.append((future, self._digests, self.domain))
        self._digests, self._views, self._bytes = [], [], 0

    def finish(self) -> list[NewBlock]:
        """Wait for all blocks; their places."""
        self.flush()
        while self._running:
            self._finish_one()
        return self.blocks

    def salvage(self) -> list[NewBlock]:
        """The blocks that were stored before a failure, none of which need be stored again."""
        while self._running:
            with contextlib.suppress(OSError):
                self._finish_one()
        return self.blocks

    def _finish_one(self) -> None:
        future, digests, domain = self._running.pop(0)
        segment, offset, stored = future.result()
        self.blocks.append(NewBlock(segment, offset, stored, digests, domain))


_WORKERS = os.cpu_count() or 1


class Sealer:
    """Turns staged files into contents."""

    def __init__(
        self,
        index: Index,
        store: Store,
        room: Room,
        durability: Durability,
        gate: Gate,
        keys: DomainKeys,
        *,
        level: int,
        block_bytes: int,
        dictionaries: Dictionaries,
        dedups_by_user: bool,
        on_sealed: Callable[[LiveFile], None],
    ) -> None:
        """
        :param level: of zstd
        :param block_bytes: raw bytes compressed together at most
        :param dedups_by_user: files share bytes with others of the same owner only
        :param on_sealed: called for each file whose content has been recorded
        """
        self._index = index
        self._contents = index.contents
        self._store = store
        self._room = room
        self._durability = durability
        self._gate = gate
        self._keys = keys
        self._level = level
        self._block_bytes = block_bytes
        self._dictionaries = dictionaries
        self._dedups_by_user = dedups_by_user
        self._on_sealed = on_sealed
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="compress")
        self._urgent: list[tuple[LiveFile, _Ticket]] = []
        self._urgent_arrived = trio.Event()
        self._storing = 0
        self._small_at_once = trio.CapacityLimiter(_SEALS_AT_ONCE)
        self._large_at_once = trio.CapacityLimiter(_SEALS_AT_ONCE)

    @property
    def is_busy(self) -> bool:
        """Whether files are being cut and compressed just now."""
        return self._storing > 0

    async def fsync(self, file: LiveFile) -> None:
        """Return when the file's bytes, and every name committed so far, survive a power cut."""
        if file.is_dirty and not file.inode.is_doomed:
            ticket = _Ticket()
            self._urgent.append((file, ticket))
            self._urgent_arrived.set()
            await ticket.done.wait()
            if ticket.error is not None:
                raise ticket.error
        await self._durability.sync()

    async def serve_fsync(self) -> None:
        """Seal what fsync asks for, all that has come together. Runs until cancelled.

        A large file is sealed beside the others, which would wait seconds for it.
        """
        async with trio.open_nursery() as nursery:
            while True:
                await self._urgent_arrived.wait()
                self._urgent_arrived = trio.Event()
                urgent, self._urgent = self._urgent, []
                large = [one for one in urgent if one[0].inode.size > WINDOW_BYTES]
                for one in large:
                    nursery.start_soon(self._seal_urgent, [one])
                small = [one for one in urgent if one not in large]
                if small:
                    await self._seal_urgent(small)

    async def _seal_urgent(self, urgent: list[tuple[LiveFile, _Ticket]]) -> None:
        error: OSError | None = OSError(errno.EIO, "the file could not be sealed")
        try:
            await self.seal(list(dict.fromkeys(file for file, _ in urgent)), wait=True)
            error = None
        except OSError as failure:
            error = failure
        except Exception:
            log.exception("sealing for fsync failed")
        finally:
            for _, ticket in urgent:
                ticket.error = error
                ticket.done.set()

    async def seal(
        self,
        files: Sequence[LiveFile],
        *,
        wait: bool,
        progress: Callable[[int, int], None] = _NO_PROGRESS,
    ) -> None:
        """Seal files in the order given, which is the order of their bytes in the store.

        :param wait: for files whose state is changing just now; else they are passed over
        :param progress: called with (files done, files in all)
        :raises OSError: the store could not be written; the files not yet done stay staged
        """
        done = 0
        for batch in _batches(files):
            await self._seal_batch(batch, wait=wait)
            done += len(batch)
            progress(done, len(files))

    async def _seal_batch(self, files: Sequence[LiveFile], *, wait: bool) -> None:
        held: set[LiveFile] = set()
        try:
            for file in sorted(files, key=lambda file: file.inode.id):  # one order: no deadlock
                try:
                    file.lock.acquire_nowait()
                except trio.WouldBlock:
                    if not wait:
                        continue
                    await file.lock.acquire()
                held.add(file)
            snapshots = [
                self._snapshot(file, file.staged)
                for file in files
                if file in held
                and file.staged is not None
                and file.is_dirty
                and not file.inode.is_doomed
            ]
            if snapshots:
                async with self._gate.shared():
                    await self._store_and_record(snapshots)
        finally:
            for file in held:
                file.lock.release()

    def _snapshot(self, file: LiveFile, staged: StagedFile) -> _Snapshot:
        domain = file.inode.uid if self._dedups_by_user else None
        return _Snapshot(
            file, time.monotonic(), file.version, staged.path, domain, self._keys.of(domain)
        )

    async def _store_and_record(self, snapshots: list[_Snapshot]) -> None:
        while snapshots:
            marks = self._contents.marks
            generation = self._contents.generation
            ids: dict[bytes, int] = {}
            self._storing += 1
            try:
                blocks, error = await trio.to_thread.run_sync(
                    self._store_snapshots, snapshots, ids, limiter=self._limiter(snapshots)
                )
            finally:
                self._storing -= 1
            await self._record_blocks(blocks, ids, generation)
            if error is not None:
                raise error
            snapshots = await self._record_files(snapshots, ids, marks)

    def _limiter(self, snapshots: list[_Snapshot]) -> trio.CapacityLimiter:
        is_large = any(snapshot.file.inode.size > WINDOW_BYTES for snapshot in snapshots)
        return self._large_at_once if is_large else self._small_at_once

    # In a worker thread

    def _store_snapshots(
        self, snapshots: list[_Snapshot], ids: dict[bytes, int]
    ) -> tuple[list[NewBlock], OSError | None]:
        """Append what is new of the files; notes the *ids* of what is not.

        On a disk that is full, what was appended before, and the error.
        """
        error = None
        packer = _Packer(
            self._store,
            self._room,
            self._pool,
            self._level,
            self._block_bytes,
            self._dictionaries,
            ids,
        )
        try:
            blocks = self._pack(snapshots, packer)
        except OSError as failure:
            if failure.errno != errno.ENOSPC:
                raise
            blocks, error = packer.salvage(), failure
        if blocks:
            self._store.sync()
        return blocks, error

    def _pack(self, snapshots: list[_Snapshot], packer: _Packer) -> list[NewBlock]:
        small: list[tuple[_Snapshot, memoryview, list[tuple[int, int]]]] = []
        for snapshot in snapshots:
            try:
                fd = os.open(snapshot.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # unlinked meanwhile
            try:
                while not self._take(snapshot, fd, small, packer):
                    pass  # it was cut short in the middle: what was read never existed
            finally:
                os.close(fd)
        self._store_small(small, packer)
        return packer.finish()

    def _take(
        self,
        snapshot: _Snapshot,
        fd: int,
        small: list[tuple[_Snapshot, memoryview, list[tuple[int, int]]]],
        packer: _Packer,
    ) -> bool:
        """Read a file, and store it if it is large; False when it was cut short meanwhile."""
        snapshot.parts = []
        snapshot.size = os.fstat(fd).st_size
        extents = _extents(fd, snapshot.size)
        snapshot.holes = snapshot.size - sum(end - start for start, end in extents)
        if snapshot.size > WINDOW_BYTES:
            return self._store_large(snapshot, fd, extents, packer)
        data = memoryview(os.pread(fd, snapshot.size, 0))
        if len(data) == snapshot.size:
            small.append((snapshot, data, extents))
        return len(data) == snapshot.size

    def _store_small(
        self,
        small: list[tuple[_Snapshot, memoryview, list[tuple[int, int]]]],
        packer: _Packer,
    ) -> None:
        for snapshot, data, extents in small:
            snapshot.digest = _digest(data, extents, snapshot.key)
        digests = {snapshot.digest for snapshot, _, _ in small}
        known = trio.from_thread.run_sync(self._contents.find_whole, digests)
        cut_already: dict[bytes, _Snapshot] = {}
        views: dict[int | None, tuple[Kind, list[tuple[bytes, memoryview]]]] = {}
        for snapshot, data, extents in small:
            if snapshot.digest in known:
                continue
            twin = cut_already.setdefault(snapshot.digest, snapshot)
            if twin is not snapshot:
                snapshot.parts, snapshot.kind = twin.parts, twin.kind
                continue
            snapshot.kind = sniff(bytes(data[:SNIFFED_BYTES]))
            params = params_for_size(snapshot.size)
            _, found = views.setdefault(snapshot.domain, (snapshot.kind, []))
            for view in _parts(data, extents):
                if isinstance(view, int):
                    snapshot.parts.append((None, view))
                    continue
                for digest, chunk in _chunks(view, params, snapshot.key):
                    snapshot.parts.append((digest, len(chunk)))
                    found.append((digest, chunk))
        for domain, (kind, chunks) in views.items():
            self._pack_unknown(chunks, packer, domain, kind)

    def _store_large(
        self, snapshot: _Snapshot, fd: int, extents: list[tuple[int, int]], packer: _Packer
    ) -> bool:
        if self._is_known_whole(snapshot, fd, extents):
            return True
        params = params_for_size(snapshot.size)
        snapshot.kind = sniff(os.pread(fd, SNIFFED_BYTES, 0))
        hasher = ContentHasher(sparse=bool(snapshot.holes), key=snapshot.key)
        position = 0
        for start, end in extents:
            if start > position:
                hasher.hole(position, start - position)
                snapshot.parts.append((None, start - position))
            position = start
            while position < end:
                window = memoryview(os.pread(fd, min(WINDOW_BYTES, end - position), position))
                if not window:
                    return False
                chunks = list(_chunks(window, params, snapshot.key))
                if position + len(window) < end and len(chunks) > 1:
                    chunks.pop()  # its end is the window's, not a cut
                taken = sum(len(chunk) for _, chunk in chunks)
                hasher.data(window[:taken])
                snapshot.parts.extend((digest, len(chunk)) for digest, chunk in chunks)
                self._pack_unknown(chunks, packer, snapshot.domain, snapshot.kind)
                position += taken
        if position < snapshot.size:
            hasher.hole(position, snapshot.size - position)
            snapshot.parts.append((None, snapshot.size - position))
        snapshot.digest = hasher.digest()
        return True

    def _is_known_whole(self, snapshot: _Snapshot, fd: int, extents: list[tuple[int, int]]) -> bool:
        """Name a large file that begins with a known chunk; True if its content is known.

        A copy is then done with one pass of hashing: 50 MB in 20 ms, against 100 ms for cutting
        it as well. A file that only grew pays that pass in vain.
        """
        if snapshot.holes:
            return False
        head = memoryview(os.pread(fd, HEAD_BYTES, 0))
        if not head:
            return False  # cut short meanwhile
        first, _ = next(_chunks(head, params_for_size(snapshot.size), snapshot.key))
        if not trio.from_thread.run_sync(self._contents.find_chunks, {first}):
            return False
        hasher = ContentHasher(sparse=False, key=snapshot.key)
        for position in range(0, snapshot.size, WINDOW_BYTES):
            size = min(WINDOW_BYTES, snapshot.size - position)
            data = os.pread(fd, size, position)
            if len(data) < size:
                return False
            hasher.data(data)
        digest = hasher.digest()
        if not trio.from_thread.run_sync(self._contents.find_whole, {digest}):
            return False
        snapshot.digest = digest
        return True

    def _pack_unknown(
        self,
        chunks: list[tuple[bytes, memoryview]],
        packer: _Packer,
        domain: int | None,
        kind: Kind,
    ) -> None:
        known = packer.known
        packer.domain, packer.kind = domain, kind
        digests = {digest for digest, _ in chunks if digest not in known}
        known.update(trio.from_thread.run_sync(self._contents.find_chunks, digests))
        for digest, chunk in chunks:
            if digest not in known:
                packer.add(digest, chunk)
        packer.flush()

    # On the event loop's thread

    async def _record_blocks(
        self, blocks: list[NewBlock], ids: dict[bytes, int], generation: int
    ) -> None:
        """:param generation: of the contents, when the blocks' chunks were unknown"""
        for block in blocks:
            is_alone = generation == self._contents.generation  # no other seal came between
            with self._index.transaction:
                chunk_ids = self._contents.add_block(block, are_new=is_alone)
            if is_alone:
                generation = self._contents.generation
            ids.update(zip((digest for digest, _ in block.chunks), chunk_ids, strict=True))
            if self._room.is_short:
                self._index.checkpoint()  # the log would take what the next rows need
            await trio.lowlevel.checkpoint()

    async def _record_files(
        self, snapshots: list[_Snapshot], ids: dict[bytes, int], marks: int
    ) -> list[_Snapshot]:
        """Those that were not recorded: a chunk that was known may have turned out damaged."""
        for start in range(0, len(snapshots), _COMMIT_FILES):
            if marks != self._contents.marks:
                return snapshots[start:]
            group = snapshots[start : start + _COMMIT_FILES]
            with self._index.transaction:
                contents = [
                    (snapshot, self._record_file(snapshot, ids))
                    for snapshot in group
                    if snapshot.digest and not snapshot.file.inode.is_doomed
                ]
            for snapshot, content in contents:
                self._note(snapshot, content)
            for snapshot in group:
                self._on_sealed(snapshot.file)
            await trio.lowlevel.checkpoint()
        return []

    def _record_file(self, snapshot: _Snapshot, ids: dict[bytes, int]) -> int | None:
        inode = snapshot.file.inode
        content = self._content(snapshot, ids) if snapshot.size else None
        self._contents.release(inode.content)
        self._index.loans.end(inode.id)
        self._index.inodes.set_sealed(inode, content, snapshot.size, snapshot.holes or None)
        return content

    @staticmethod
    def _note(snapshot: _Snapshot, content: int | None) -> None:
        """The record is committed: let the file in memory say so too."""
        file = snapshot.file
        file.inode.holes = snapshot.holes or None
        file.note_sealed(content, snapshot.version, snapshot.taken_at)

    def _content(self, snapshot: _Snapshot, ids: dict[bytes, int]) -> int:
        """The content's id, with one reference more."""
        content = self._contents.find(snapshot.digest)
        if content is not None:
            self._contents.reference(content)
            if self._contents.is_damaged(content):
                self._contents.rewrite(content, snapshot.digest, self._recipe(snapshot, ids))
            return content
        recipe = self._recipe(snapshot, ids)
        return self._contents.add(
            snapshot.digest, snapshot.size, recipe, snapshot.kind, snapshot.domain
        )

    def _recipe(self, snapshot: _Snapshot, ids: dict[bytes, int]) -> bytes:
        parts: list[tuple[int | None, int]] = []
        for digest, length in snapshot.parts:
            if digest is None:
                parts.append((None, length))
                continue
            chunk = ids.get(digest)
            if chunk is None:
                chunk = self._contents.find_chunk(digest)
                if chunk is None:
                    raise RuntimeError(f"chunk {digest.hex()} was neither known nor stored")
                ids[digest] = chunk
            parts.append((chunk, length))
        return encode(parts)


class _Ticket:
    """One caller's wait for a seal."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: OSError | None = None


def _batches(files: Sequence[LiveFile]) -> Iterator[list[LiveFile]]:
    """Groups of files to seal together, by the sizes they have now."""
    batch: list[LiveFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.inode.size
        if size >= WINDOW_BYTES or len(batch) == _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of a file's data, in order; one for all of it when it has no holes."""
    if os.fstat(fd).st_blocks * SECTOR_BYTES >= size:
        return [(0, size)] if size else []
    return list(data_extents(fd, size))


def _parts(data: memoryview, extents: list[tuple[int, int]]) -> Iterator[memoryview | int]:
    """The data of each extent, and the length of each hole, in order."""
    position = 0
    for start, end in extents:
        if start > position:
            yield start - position
        if start < len(data):
            yield data[start:end]
        position = end
    if position < len(data):
        yield len(data) - position


def _digest(data: memoryview, extents: list[tuple[int, int]], key: bytes | None) -> bytes:
    if extents == [(0, len(data))]:
        return digest_of(data, key)
    hasher = ContentHasher(sparse=True, key=key)
    position = 0
    for part in _parts(data, extents):
        if isinstance(part, int):
            hasher.hole(position, part)
            position += part
        else:
            hasher.data(part)
            position += len(part)
    return hasher.digest()


def _chunks(data: memoryview, params: int, key: bytes | None) -> Iterator[tuple[bytes, memoryview]]:
    """(digest, bytes) of each chunk of *data*, in order."""
    lengths = array("I", cut(data, params))
    start = 0
    for length in lengths:
        view = data[start : start + length]
        yield chunk_digest(view, key), view
        start += length
