"""How a content is put together: an ordered list of chunks and holes.

Stored as pairs of little-endian 32-bit numbers (id, length). An id of 2 or more
is a chunk of that many bytes; id 0 is a hole of *length* bytes; id 1 is a hole
of *length* GiB, so that a file may be sparse up to the largest offset there is.
Fixed width costs a byte or two a chunk over varints and is decoded by one C
call, which a 1 GB file of 16,000 chunks needs on its first read.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

HOLE = 0
HOLE_GIB = 1
_GIB = 1 << 30
_NUMBER_MAX = (1 << 32) - 1


def encode(parts: Iterable[tuple[int | None, int]]) -> bytes:
    """Pack (chunk id, or None for a hole; length in bytes) pairs."""
    numbers = array("I")
    for chunk, length in parts:
        if chunk is not None:
            numbers.append(chunk)
            numbers.append(length)
            continue
        gibs, rest = divmod(length, _GIB)
        while gibs:  # once, unless the hole is larger than 4 EiB
            taken = min(gibs, _NUMBER_MAX)
            numbers.extend((HOLE_GIB, taken))
            gibs -= taken
        if rest:
            numbers.extend((HOLE, rest))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


class Recipe:
    """A decoded recipe that finds the parts of a byte range."""

    __slots__ = ("_ends", "_ids", "_lengths", "digest", "domain", "size")

    def __init__(self, digest: bytes, size: int, encoded: bytes, domain: int | None = None) -> None:
        """
        :param digest: BLAKE3 of the whole content, 32 bytes
        :param size: bytes, holes included
        :param encoded: as `encode` returns it
        :param domain: in which the digest names it
        """
        numbers = array("I")
        numbers.frombytes(encoded)
        if sys.byteorder == "big":
            numbers.byteswap()
        self.digest = digest
        self.size = size
        self.domain = domain
        self._ids = numbers[0::2]
        lengths = numbers[1::2]
        self._lengths = (
            [n * _GIB if i == HOLE_GIB else n for i, n in zip(self._ids, lengths, strict=True)]
            if HOLE_GIB in self._ids
            else lengths
        )
        self._ends = array("Q", accumulate(self._lengths))

    @property
    def chunks(self) -> Iterator[int]:
        """The ids of all its chunks, in order, as often as they stand in it."""
        return (chunk for chunk in self._ids if chunk > HOLE_GIB)

    @property
    def is_sparse(self) -> bool:
        return HOLE in self._ids or HOLE_GIB in self._ids

    def extents(self, size: int, offset: int = 0) -> Iterator[tuple[int, int, bool]]:
        """(start, length, whether it is a hole) of the runs that make *size* bytes."""
        start, length = offset, 0
        was_hole = False
        for chunk, _, taken in self.parts(offset, size):
            is_hole = chunk is None
            if is_hole != was_hole and length:
                yield start, length, was_hole
                start, length = start + length, 0
            was_hole = is_hole
            length += taken
        if length:
            yield start, length, was_hole

    def parts(
        self, offset: int = 0, size: int | None = None
    ) -> Iterator[tuple[int | None, int, int]]:
        """What covers *size* bytes from *offset* on, clipped to both ends, in order.

        Yields (chunk id, or None for a hole; offset within it; length), all in bytes.
        """
        end = self.size if size is None else min(self.size, offset + size)
        position = bisect_right(self._ends, offset)
        while offset < end:
            chunk, length, part_end = (
                self._ids[position],
                self._lengths[position],
                self._ends[position],
            )
            within = offset - (part_end - length)
            taken = min(part_end, end) - offset
            yield (chunk if chunk > HOLE_GIB else None), within, taken
            offset += taken
            position += 1
