"""Makes a damaged store whole again as far as its bytes allow, and says what they do not.

The caller holds the store's lock. The index is rebuilt only where pages of it are damaged, from
what can be read and from the newest copy of the namespace; then its rows are made to agree, every
block and content is read, and what does not hold is marked: it is EIO for those ranges alone, and
whole again when a program writes the same bytes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentfs.chunks import Store, crc32c
from agentfs.errors import StoreDamaged
from agentfs.filesystem import copies
from agentfs.filesystem.fsck import (
    SEGMENTS,
    Checker,
    Progress,
    Report,
    check_headers,
    lost_to_a_kill,
)
from agentfs.index import INDEX_NAME, Index, Unreadable, damaged_pages
from agentfs.index.audit import findings
from agentfs.index.mend import mend
from agentfs.index.salvage import rebuild

_CACHE_BYTES = 64 << 20

_SEGMENT_HEADER = struct.Struct("<8sIIQI")
"""As docs/FORMAT.md has it, without its CRC."""


@dataclass(slots=True)
class Repaired:
    """What was done, and what is left of the damage."""

    done: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    def as_dict(self) -> dict[str, Any]:
        return self.report.as_dict() | {"repaired": [text[:200] for text in self.done]}


def repair(store: Path, progress: Progress) -> Repaired:
    """Repair a store that nobody has mounted.

    :raises StoreDamaged: neither the index nor a copy of it can be read; nothing was changed
    :raises OSError: there is no room
    """
    result = Repaired()
    progress("repairing the index", 0, 0)
    lost = lost_to_a_kill(store)
    index = _readable_index(store, result)
    try:
        _give_up(index, lost + index.lost_commits, result)
        _mend_headers(store, result)
        _mend_dictionaries(store, result)
        with index.transaction:
            result.done += mend(index)
        segments = Store(store / SEGMENTS, cache_bytes=_CACHE_BYTES, read_only=True)
        try:
            Checker(index, segments, store, result.report, progress).check_bytes()
        finally:
            segments.close()
        _record(index, result)
        result.report.findings += (finding.text for finding in findings(index))
        index.checkpoint()
        copies.write(store, index)
    finally:
        index.close()
    return result


def _readable_index(store: Path, result: Repaired) -> Index:
    """The store's index, rebuilt if a page of it is damaged."""
    try:
        if (store / INDEX_NAME).exists() and not damaged_pages(store / INDEX_NAME):
            index = Index(store)
            try:
                if not index.inconsistencies():
                    return index
            except Unreadable:
                pass  # in the log
            index.close()
    except StoreDamaged:
        pass
    salvaged = rebuild(store, copies.batches_of_newest(store))
    read, restored = sum(salvaged.read.values()), sum(salvaged.from_copy.values())
    result.done.append(
        f"the index was rebuilt: {read} rows could be read, {restored} are from a copy; "
        f"what was there is {INDEX_NAME}.damaged"
    )
    return Index(store)


def _give_up(index: Index, lost: int, result: Repaired) -> None:
    if lost:
        index.forget_lost_commits()
        result.done.append(
            f"at least {lost} changes that the index's log had no more are given up; a file of "
            "theirs may be as it was before, or missing"
        )


def _mend_headers(store: Path, result: Repaired) -> None:
    for number in _damaged_headers(store / SEGMENTS):
        path = store / SEGMENTS / f"{number:016x}.seg"
        header = _SEGMENT_HEADER.pack(b"agentSEG", 1, 0, number, 0)
        header += struct.pack("<I", crc32c(header))
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(fd, header, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        result.done.append(f"the header of segment {number} was written anew")


def _mend_dictionaries(store: Path, result: Repaired) -> None:
    """A store that may write mends a damaged copy by looking at it."""
    before = _dictionaries(store, read_only=True)
    if 1 in before.values():
        after = _dictionaries(store, read_only=False)
        result.done += (
            f"a copy of dictionary {number} was written anew"
            for number, copies in after.items()
            if copies > before[number]
        )


def _dictionaries(store: Path, *, read_only: bool) -> dict[int, int]:
    """How many copies hold, by number."""
    segments = Store(store / SEGMENTS, cache_bytes=0, read_only=read_only)
    try:
        return {number: copies for number, _, copies, _ in segments.dictionaries()}
    finally:
        segments.close()


def _damaged_headers(directory: Path) -> list[int]:
    segments = Store(directory, cache_bytes=_CACHE_BYTES, read_only=True)
    report = Report()
    try:
        check_headers(segments, report)
    finally:
        segments.close()
    return report.headers


def _record(index: Index, result: Repaired) -> None:
    """Mark what the check found, and note the digests that it computed."""
    report = result.report
    contents = index.contents
    with index.transaction:
        contents.record_check(
            damaged=report.blocks, readable=report.readable_again, misplaced=report.chunks
        )
        contents.set_digests(report.chunk_digests, report.content_digests)
        for content in report.contents:
            contents.condemn(content)
        mend(index)
