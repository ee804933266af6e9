"""What a store holds and what it saves."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agentfs.filesystem import copies
from agentfs.index import Index

_COST_SHARE = 0.05
"""Of the time may be spent on counting for those who ask again and again."""


def store_totals(index: Index, path: Path) -> dict[str, Any]:
    """Counts, bytes and ratios of a store.

    logical_bytes is what its files say they hold; unique_bytes what is left of
    that after deduplication; young_bytes what of that compaction has not packed
    yet; stored_bytes what segments, dictionaries, index and its copies take on disk, garbage
    included. reduction is the first over the last.
    """
    totals = dict(index.contents.totals())
    segment_bytes = _bytes_of((path / "segments").glob("*.seg"))
    copies_of_dictionaries = list((path / "segments").glob("*.dict"))
    dictionary_bytes = _bytes_of(copies_of_dictionaries)
    dictionary_bytes += _bytes_of((path / "segments").glob("*.twin"))
    raw, live = totals.pop("block_raw_bytes"), totals.pop("block_live_bytes")
    stored = totals.pop("block_stored_bytes")
    live_stored = stored * live / raw if raw else 0
    sealed = totals["logical_bytes"]
    copy_bytes = copies.size_bytes(path)
    stored_bytes = segment_bytes + dictionary_bytes + index.bytes_on_disk() + copy_bytes
    return totals | {
        "stored_bytes": stored_bytes,
        "segment_bytes": segment_bytes,
        "dictionaries": len(copies_of_dictionaries),
        "dictionary_bytes": dictionary_bytes,
        "index_bytes": index.bytes_on_disk(),
        "namespace_copy_bytes": copy_bytes,
        "garbage_bytes": round(stored - live_stored),
        "reduction": _ratio(sealed, stored_bytes),
        "dedup_ratio": _ratio(sealed, totals["unique_bytes"]),
        "compression_ratio": _ratio(totals["unique_bytes"], live_stored),
    }


def _bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


class Totals:
    """The same of a store that is open, looked at no more often than it is worth.

    To count takes a look at every row of a chunk, on the event loop: 0.1 us each.
    """

    def __init__(self, index: Index, path: Path) -> None:
        self._index = index
        self._path = path
        self._last: dict[str, Any] = {}
        self._good_until = 0.0

    def now(self) -> dict[str, Any]:
        began = time.monotonic()
        self._last = store_totals(self._index, self._path)
        ended = time.monotonic()
        self._good_until = ended + (ended - began) / _COST_SHARE
        return self._last

    def recent(self) -> dict[str, Any]:
        """For those who ask again and again."""
        return self._last if time.monotonic() < self._good_until else self.now()


def offline_stats(store: Path) -> dict[str, Any]:
    """The same of a store that no daemon has open; opens the index read-only.

    :raises AgentfsError: it is not a store, or not one this version can read
    """
    index = Index(store, read_only=True)
    try:
        return store_totals(index, store)
    finally:
        index.close()


def _ratio(before: float, after: float) -> float:
    return round(before / after, 3) if before and after else 1.0
