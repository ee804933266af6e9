"""Copies of the namespace that a store keeps by itself, for the day its index is damaged.

Each is a segment of its own below STORE/namespace: blocks of rows (`index.dump`), and a last
block that says how many there are and has the BLAKE3 of them all. A copy counts only if that holds,
so one that was being written when the power went is none. The newest few are kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from agentfs.chunks import CorruptBlock, NewerFormat, Store
from agentfs.index import COPIES_DIRECTORY, INDEX_NAME, Index, dump

log = logging.getLogger(__name__)

KEPT = 2
"""Copies; a second one for when the first is damaged as well."""

_LEVEL = 15
"""Of zstd: 147 kB of 820; level 9 151, level 19 145, for as long as it takes to gather the rows."""

_CACHE_BYTES = 1 << 20
_NEVER_FULL = 1 << 40
_FORMAT = 2
_FORMATS = (1, _FORMAT)
"""That are read."""


def write(store: Path, index: Index) -> int:
    """Make a copy of all rows, durably, and remove those that are too old; its bytes.

    :raises OSError: there is no room; the copies that are there stay
    """
    directory = store / COPIES_DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    segments = Store(directory, cache_bytes=_CACHE_BYTES, segment_bytes=_NEVER_FULL)
    try:
        generation = segments.roll()
        hasher, count = blake3(), 0
        for batch in dump.batches(index):
            segments.put([batch], _LEVEL)
            hasher.update(batch)
            count += 1
        end = {"format": _FORMAT, "batches": count, "blake3": hasher.hexdigest()}
        segments.put([json.dumps(end).encode()], _LEVEL)
        segments.sync()
        there = sorted(number for number, _ in segments.segments())
        for number in there[:-KEPT]:
            segments.remove(number)
        return dict(segments.segments())[generation]
    finally:
        segments.close()


def batches_of_newest(store: Path) -> Iterator[bytes]:
    """The batches of the newest copy that is whole; none: there is no such copy."""
    directory = store / COPIES_DIRECTORY
    if not directory.is_dir():
        return
    segments = Store(directory, cache_bytes=_CACHE_BYTES, read_only=True)
    try:
        for number, _ in sorted(segments.segments(), reverse=True):
            if (places := _checked(segments, number)) is not None:
                for offset, raw in places:
                    yield segments.get([(number, offset, 0, raw)])
                return
    finally:
        segments.close()


def is_current(store: Path) -> bool:
    """Whether nothing has changed since the newest copy. To be asked before the index is opened."""
    made = [file.stat().st_mtime_ns for file in (store / COPIES_DIRECTORY).glob("*.seg")]
    changed = [
        file.stat().st_mtime_ns
        for file in (store / INDEX_NAME, store / f"{INDEX_NAME}-wal")
        if file.exists()
    ]
    return bool(made and changed) and max(made) >= max(changed)


def damaged(store: Path) -> list[int]:
    """The numbers of the copies that do not hold."""
    directory = store / COPIES_DIRECTORY
    if not directory.is_dir():
        return []
    segments = Store(directory, cache_bytes=_CACHE_BYTES, read_only=True)
    try:
        return [number for number, _ in segments.segments() if _checked(segments, number) is None]
    finally:
        segments.close()


def size_bytes(store: Path) -> int:
    """What all copies take on the disk."""
    return sum(file.stat().st_size for file in (store / COPIES_DIRECTORY).glob("*.seg"))


def _checked(segments: Store, number: int) -> list[tuple[int, int]] | None:
    """(offset, raw bytes) of each batch of a copy; None: it does not hold."""
    try:
        places = [(offset, raw) for offset, raw, *_ in segments.blocks(number)]
        *batches, end = places
        hasher = blake3()
        for offset, raw in batches:
            hasher.update(segments.get([(number, offset, 0, raw)]))
        said: dict[str, Any] = json.loads(segments.get([(number, end[0], 0, end[1])]))
    except (CorruptBlock, NewerFormat, FileNotFoundError, ValueError) as error:
        log.error("copy %d of the namespace does not hold: %s", number, error)
        return None
    is_known = said.get("format") in _FORMATS
    holds = said.get("batches") == len(batches) and said.get("blake3") == hasher.hexdigest()
    return batches if is_known and holds else None
