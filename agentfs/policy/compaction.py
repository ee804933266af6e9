"""Which segments are worth writing anew, and when.

Garbage makes a segment worth it for gc; so do blocks that are small, as single
fsyncs leave them. Compaction takes in addition what seals have written, which
are fast and see only what rested together: packed anew beside their like, in
large blocks at a strong level, the same chunks take a quarter less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentfs.model import SegmentUse

_HEADER_ROOM_BYTES = 4096
"""A segment is larger than its blocks by a header. By more: blocks of a seal that failed."""

_TINY_SHARE = 0.25
"""A segment whose blocks are on average smaller than this share of a full one is merged."""

_YOUNG_SHARE = 0.1
"""Of a segment's live bytes, from which on compaction takes it."""

WORTH_BYTES = 8 << 20
"""Young or garbage bytes for which background work begins: a block."""

_WARM_SHARE = 0.25
"""Of a segment's live bytes, up to which it is packed though the store does not rest."""

COLD_LOOK_S = 600.0
"""How often a store that does not rest is looked through for what has become cold."""

SMALL_FILE_BYTES = 64 << 10
"""Up to which a file lies at the beginning of its block, where it is cheap to read: of what agents
keep a third of the bytes and nearly all files."""

_SMALL_CHUNK_BYTES = 16 << 10
"""At most, of files below 16 MiB (docs/FORMAT.md); those of larger ones are mostly above it."""

_LARGE_FILE_BLOCK_BYTES = 4 << 20
"""A large file is read through more blocks than the cache holds, forth and back where its parts
are alike: 250 MB of conversations take 1.3 s of CPU out of these, 3.3 out of blocks of 8 MiB."""

REST_S = 60.0
"""Without a change, after which background work begins."""

BACKLOG_BYTES = 256 << 20
"""Young bytes for which it begins without rest: a store that is always written must not grow."""


def live_bytes(use: SegmentUse) -> int:
    """Stored bytes of a segment that chunks need."""
    return round(use.stored * use.live / use.raw)


def garbage_bytes(use: SegmentUse, file_bytes: int) -> int:
    """Stored bytes of a segment that nothing needs."""
    return use.stored - live_bytes(use) + _unknown_bytes(use, file_bytes)


def _unknown_bytes(use: SegmentUse, file_bytes: int) -> int:
    unknown = file_bytes - use.stored
    return unknown if unknown > _HEADER_ROOM_BYTES else 0


def is_garbage(use: SegmentUse, file_bytes: int, share: float) -> bool:
    """Whether at least *share* of the segment is garbage, and some is."""
    garbage = garbage_bytes(use, file_bytes)
    whole = use.stored + _unknown_bytes(use, file_bytes)
    return use.live == 0 or (garbage > 0 and garbage >= share * whole)


def to_collect(
    uses: Iterable[SegmentUse], sizes: Mapping[int, int], *, garbage_share: float, block_bytes: int
) -> list[SegmentUse]:
    """The segments that gc rewrites, those first that take least: what one frees, another takes.

    :param sizes: of the segments' files
    :param block_bytes: of a full block of a seal
    """
    chosen = [
        use
        for use in uses
        if is_garbage(use, sizes.get(use.number, use.stored), garbage_share)
        or (use.blocks > 1 and use.raw / use.blocks < block_bytes * _TINY_SHARE)
    ]
    return sorted(chosen, key=live_bytes)


def to_compact(
    uses: Iterable[SegmentUse],
    sizes: Mapping[int, int],
    *,
    garbage_share: float,
    segment_bytes: int,
) -> list[SegmentUse]:
    """The segments that compaction rewrites, in the order in which they were made.

    A packed segment that is no larger than all that is rewritten already, and less than half
    full, is taken along: so what trickles in does not end as a thousand small segments, and a
    byte is rewritten as often as its segment doubles.

    :param segment_bytes: of a full segment
    """
    chosen: list[SegmentUse] = []
    others: list[SegmentUse] = []
    for use in uses:
        size = sizes.get(use.number, use.stored)
        is_young = use.young > 0 and use.young >= _YOUNG_SHARE * use.live
        (chosen if is_young or is_garbage(use, size, garbage_share) else others).append(use)
    taken = sum(use.live for use in chosen)
    for use in sorted(others, key=lambda use: use.live):
        if use.live > taken or use.stored > segment_bytes // 2:
            break
        chosen.append(use)
        taken += use.live
    return sorted(chosen, key=lambda use: use.number)


def without_warm(uses: Iterable[SegmentUse], warm: Mapping[int, int]) -> list[SegmentUse]:
    """Those segments that hold little of what agents still use.

    :param warm: raw bytes of each that are in files that are not cold
    """
    return [use for use in uses if warm.get(use.number, 0) <= _WARM_SHARE * use.live]


def may_be_worth_it(garbage: float) -> bool:
    """Whether so much garbage, if it is as much, is worth work by itself."""
    return garbage >= WORTH_BYTES


def most_block_bytes(block_bytes: int, chunk_bytes: int) -> int:
    """Up to which a block may grow by a chunk of that size, where others may have *block_bytes*."""
    if chunk_bytes > _SMALL_CHUNK_BYTES:
        return min(block_bytes, _LARGE_FILE_BLOCK_BYTES)
    return block_bytes


def is_due(young: int, garbage: float, rested_s: float) -> bool:
    """Whether compaction should begin.

    :param young: raw bytes that compaction has not written
    :param garbage: bytes that could be given back
    :param rested_s: since the store last changed
    """
    if young >= BACKLOG_BYTES:
        return True
    return rested_s >= REST_S and (young >= WORTH_BYTES or may_be_worth_it(garbage))


def is_too_much(garbage: float, stored: int, share: float) -> bool:
    """Whether gc should begin although the store changes: garbage must not grow without bound.

    :param stored: bytes of all segments
    :param share: of them that may be garbage
    """
    return garbage >= max(WORTH_BYTES, share * stored)
