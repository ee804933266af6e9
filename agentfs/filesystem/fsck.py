"""Checks a store: every page of its index, every row, every block and every content.

Reads only, with a reader of its own for the segments and without what the kernel has cached of
them. What is damaged is led back to the files that need it. Garbage is not looked at: nobody will.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentfs.chunks import CorruptBlock, NewerFormat, Store
from agentfs.chunks.digest import ContentHasher, DomainKeys, chunk_digest
from agentfs.chunks.recipe import Recipe
from agentfs.errors import StoreDamaged
from agentfs.filesystem import copies
from agentfs.filesystem.contents import pieces_of
from agentfs.filesystem.staging import was_used_in_this_boot
from agentfs.index import (
    INDEX_NAME,
    ChunkLost,
    Index,
    Unreadable,
    commits_behind_end,
    damaged_pages,
)
from agentfs.index.audit import findings, paths_of, segment_findings
from agentfs.index.contents import UNKNOWN_CHUNK_DIGEST, chunk_ids
from agentfs.index.dump import agrees
from agentfs.model import StoredBlock

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""

SEGMENTS = "segments"

_WINDOW_BYTES = 8 << 20
_CACHE_BYTES = 64 << 20
_TOLD = 200
"""Findings, blocks and files named each; of the others how many there are."""

_TOLD_BYTES = 40_000
"""Of paths: an answer over the control socket has 64 KiB."""


@dataclass(slots=True)
class LostFile:
    """A file that cannot be read whole."""

    path: bytes
    ranges: list[tuple[int, int]]
    """(offset, length) of what is lost, in order."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": os.fsdecode(self.path),
            "lost_bytes": sum(length for _, length in self.ranges),
            "ranges": self.ranges[:16],
        }


@dataclass(slots=True)
class Report:
    """What a check found."""

    findings: list[str] = field(default_factory=list)
    """A sentence each, on the index and the segments."""
    blocks: dict[tuple[int, int], str] = field(default_factory=dict)
    """Why each damaged block is: by (segment, offset)."""
    readable_again: list[tuple[int, int]] = field(default_factory=list)
    """Blocks that are marked damaged and are not."""
    chunks: set[int] = field(default_factory=set)
    """Chunks in good blocks that do not have their digest: their rows are wrong."""
    contents: set[int] = field(default_factory=set)
    """Contents made of good blocks that do not have their digest."""
    headers: list[int] = field(default_factory=list)
    """Segments whose own header is damaged; their blocks need none."""
    dictionaries: list[int] = field(default_factory=list)
    """Those of which one copy is damaged and the other serves."""
    copies: list[int] = field(default_factory=list)
    """Copies of the namespace that do not hold."""
    files: list[LostFile] = field(default_factory=list)
    chunk_digests: dict[int, bytes] = field(default_factory=dict)
    """Of chunks whose digest was not known."""
    content_digests: dict[int, bytes] = field(default_factory=dict)
    blocks_checked: int = 0
    contents_checked: int = 0
    bytes_checked: int = 0

    @property
    def is_clean(self) -> bool:
        damage = (self.findings, self.blocks, self.chunks, self.contents, self.headers, self.copies)
        return not any(damage) and not self.dictionaries

    def as_dict(self) -> dict[str, Any]:
        """For people and programs; long lists are cut, `totals` says how long they were."""
        told, size = list[dict[str, Any]](), 0
        for file in self.files[:_TOLD]:
            size += len(file.path)
            if size > _TOLD_BYTES:
                break
            told.append(file.as_dict())
        return {
            "clean": self.is_clean,
            "findings": [text[:200] for text in self.findings[: _TOLD // 4]],
            "damaged_blocks": [
                {"segment": segment, "offset_bytes": offset, "reason": reason}
                for (segment, offset), reason in list(self.blocks.items())[: _TOLD // 4]
            ],
            "damaged_segment_headers": self.headers[:_TOLD],
            "damaged_dictionaries": self.dictionaries[:_TOLD],
            "damaged_copies": self.copies,
            "files": told,
            "totals": {
                "findings": len(self.findings),
                "damaged_blocks": len(self.blocks),
                "damaged_chunks": len(self.chunks),
                "damaged_contents": len(self.contents),
                "files": len(self.files),
            },
            "blocks_checked": self.blocks_checked,
            "contents_checked": self.contents_checked,
            "bytes_checked": self.bytes_checked,
        }


def lost_to_a_kill(store: Path) -> int:
    """Changes that damage to the log has taken from a daemon that was killed. It is not mounted."""
    return commits_behind_end(store / INDEX_NAME) if was_used_in_this_boot(store) else 0


def check(store: Path, progress: Progress, *, index_directory: Path | None = None) -> Report:
    """Check all of a store, which nobody changes meanwhile; blocks may be added.

    :param index_directory: where a copy of its index lies, if it is mounted
    """
    directory = index_directory or store
    report = Report()
    progress("checking the index", 0, 0)
    report.copies = copies.damaged(store)
    pages = damaged_pages(directory / INDEX_NAME)
    if pages:
        some = ", ".join(map(str, pages[:20])) + (", ..." if len(pages) > 20 else "")
        report.findings.append(f"{len(pages)} pages of the index are damaged: {some}")
    try:
        index = Index(directory, read_only=True)
    except StoreDamaged as error:
        report.findings.append(str(error))
        return report
    lost = index.lost_commits + (lost_to_a_kill(store) if directory is store else 0)
    if lost:
        report.findings.append(
            f"the index's log was damaged: at least {lost} changes that were made just before a "
            "daemon was killed are lost"
        )
    segments = Store(store / SEGMENTS, cache_bytes=_CACHE_BYTES, read_only=True)
    try:
        Checker(index, segments, store, report, progress).run()
    except Unreadable as error:
        report.findings.append(f"the rest cannot be checked before the index is repaired: {error}")
    finally:
        segments.close()
        index.close()
    return report


class Checker:
    """One pass over a store."""

    def __init__(
        self, index: Index, segments: Store, store: Path, report: Report, progress: Progress
    ) -> None:
        self._index = index
        self._keys = DomainKeys(index.secret)
        self._segments = segments
        self._directory = store / SEGMENTS
        self._report = report
        self._progress = progress
        self._lost_chunks: set[int] = set()

    def run(self) -> None:
        """:raises Unreadable: a page of the index is damaged"""
        self.check_rows()
        self.check_bytes()

    def check_rows(self) -> None:
        """Whether the rows agree with each other, and with the segments' sizes."""
        report, sizes = self._report, dict(self._segments.segments())
        report.findings += self._index.inconsistencies()
        report.findings += (finding.text for finding in findings(self._index))
        report.findings += (found.text for found in segment_findings(self._index, sizes))

    def check_bytes(self) -> None:
        """Whether blocks can be read, and contents have their digests; who needs what is lost."""
        check_headers(self._segments, self._report)
        found = self._segments.dictionaries()
        self._report.dictionaries += [number for number, _, copies, _ in found if copies == 1]
        self._check_blocks()
        self._check_contents()
        self._name_files()

    def _check_blocks(self) -> None:
        blocks = self._index.execute(
            "SELECT stored, raw, id, segment, offset, chunks FROM block WHERE live > 0"
            " ORDER BY segment, offset"
        ).fetchall()
        marked = self._index.contents.damaged_blocks()
        last = None
        for done, (stored, raw, *row) in enumerate(blocks):
            block = StoredBlock(*row)
            if block.segment != last:
                self._forget_cached_pages(block.segment)
                last = block.segment
            self._progress("checking blocks", done, len(blocks))
            if self._can_be_read(block, raw):
                if (block.segment, block.offset) in marked:
                    self._report.readable_again.append((block.segment, block.offset))
            else:
                chunks = self._index.contents.chunks_of(block)
                self._lost_chunks.update(chunk.id for chunk in chunks)
            self._report.blocks_checked += 1
            self._report.bytes_checked += stored
        self._lost_chunks.update(self._index.contents.lost_chunks())

    def _forget_cached_pages(self, segment: int) -> None:
        """What the kernel has cached says nothing of the disk."""
        try:
            fd = os.open(self._directory / f"{segment:016x}.seg", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def _can_be_read(self, block: StoredBlock, raw: int) -> bool:
        segment, offset = block.segment, block.offset
        try:
            data = memoryview(self._segments.get([(segment, offset, 0, raw)]))
        except (CorruptBlock, NewerFormat) as error:
            self._report.blocks[segment, offset] = error.reason
            return False
        except OSError as error:
            self._report.blocks[segment, offset] = error.strerror or str(error)
            return False
        for chunk in self._index.contents.chunks_of(block):
            start = chunk.place.start
            key = self._keys.of(chunk.domain)
            found = chunk_digest(data[start : start + chunk.place.length], key)
            if chunk.digest == UNKNOWN_CHUNK_DIGEST:
                self._report.chunk_digests[chunk.id] = found
            elif found != chunk.digest:
                self._report.chunks.add(chunk.id)
                self._lost_chunks.add(chunk.id)
        return True

    def _check_contents(self) -> None:
        report = self._report
        ids = [row[0] for row in self._index.execute("SELECT id FROM content WHERE refs > 0")]
        for done, content in enumerate(ids):
            self._progress("checking contents", done, len(ids))
            digest, size, encoded, domain = self._index.contents.get(content)
            if not self._lost_chunks.isdisjoint(chunk_ids(encoded)):
                continue
            try:
                found = self._digest(Recipe(digest, size, encoded, domain))
            except (CorruptBlock, ChunkLost, LookupError, OSError, ValueError):
                report.contents.add(content)
                continue
            if not agrees(digest, found):
                report.contents.add(content)
            elif found != digest:
                report.content_digests[content] = found
            report.contents_checked += 1

    def _digest(self, recipe: Recipe) -> bytes:
        hasher = ContentHasher(sparse=recipe.is_sparse, key=self._keys.of(recipe.domain))
        for start, length, is_hole in recipe.extents(recipe.size):
            if is_hole:
                hasher.hole(start, length)
                continue
            for offset in range(start, start + length, _WINDOW_BYTES):
                size = min(_WINDOW_BYTES, start + length - offset)
                hasher.data(self._segments.get(pieces_of(self._index, recipe, offset, size)))
        return hasher.digest()

    def _name_files(self) -> None:
        """Lead what is lost back to the files that need it."""
        if not (self._lost_chunks or self._report.contents):
            return
        lost: dict[int, list[tuple[int, int]]] = {}
        for content, size, encoded in self._index.execute("SELECT id, size, recipe FROM content"):
            if content in self._report.contents:
                lost[content] = [(0, size)]
            elif not self._lost_chunks.isdisjoint(chunk_ids(encoded)):
                lost[content] = self._lost_ranges(Recipe(b"", size, encoded))
        inodes = {
            inode: content
            for inode, content in self._index.execute(
                "SELECT id, content FROM inode WHERE content IS NOT NULL"
            )
            if content in lost
        }
        self._report.files += (
            LostFile(path, lost[inodes[inode]])
            for inode, paths in paths_of(self._index, inodes.keys()).items()
            for path in paths
        )
        self._report.files.sort(key=lambda file: file.path)

    def _lost_ranges(self, recipe: Recipe) -> list[tuple[int, int]]:
        return merged(
            (offset, length)
            for offset, (chunk, _, length) in _with_offsets(recipe.parts())
            if chunk in self._lost_chunks
        )


def check_headers(segments: Store, report: Report) -> None:
    """Whether the segments' own headers hold. Blocks are found through the index."""
    for segment, _ in segments.segments():
        try:
            segments.blocks(segment)
        except CorruptBlock as error:
            if error.offset_bytes == 0:
                report.headers.append(segment)
        except NewerFormat as error:
            report.findings.append(str(error))


def _with_offsets(
    parts: Iterable[tuple[int | None, int, int]],
) -> Iterator[tuple[int, tuple[int | None, int, int]]]:
    offset = 0
    for part in parts:
        yield offset, part
        offset += part[2]


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, length) of the runs that ranges in order make."""
    runs: list[tuple[int, int]] = []
    for offset, length in ranges:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((offset, length))
    return runs
