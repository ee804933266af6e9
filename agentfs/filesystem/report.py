"""What a store holds and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentfs.filesystem import copies
from agentfs.index import Index


def store_totals(index: Index, path: Path) -> dict[str, Any]:
    """Counts, bytes and ratios of a store.

    logical_bytes is what its files say they hold; unique_bytes what is left of
    that after deduplication; young_bytes what of that compaction has not packed
    yet; stored_bytes what segments, index and its copies take on disk, garbage
    included. reduction is the first over the last.
    """
    totals = dict(index.contents.totals())
    segment_bytes = sum(file.stat().st_size for file in (path / "segments").glob("*.seg"))
    raw, live = totals.pop("block_raw_bytes"), totals.pop("block_live_bytes")
    stored = totals.pop("block_stored_bytes")
    live_stored = stored * live / raw if raw else 0
    sealed = totals["logical_bytes"]
    copy_bytes = copies.size_bytes(path)
    stored_bytes = segment_bytes + index.bytes_on_disk() + copy_bytes
    return totals | {
        "stored_bytes": stored_bytes,
        "segment_bytes": segment_bytes,
        "index_bytes": index.bytes_on_disk(),
        "namespace_copy_bytes": copy_bytes,
        "garbage_bytes": round(stored - live_stored),
        "reduction": _ratio(sealed, stored_bytes),
        "dedup_ratio": _ratio(sealed, totals["unique_bytes"]),
        "compression_ratio": _ratio(totals["unique_bytes"], live_stored),
    }


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
