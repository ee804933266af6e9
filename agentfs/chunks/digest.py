"""Names of bytes: BLAKE3 of a chunk, and of a whole content.

A content without holes is named by the BLAKE3 of its bytes, as b3sum prints it.
One with holes is named by BLAKE3 in key derivation mode over its data, then for
each hole its place and length, then the number of holes: hashing the zeros of a
terabyte hole would take minutes. Holes come last and counted, so that no data
can pass for a hole. Two files that differ only in what is a hole share chunks, not a name.
"""

from __future__ import annotations

import struct

from blake3 import blake3

_SPARSE_CONTEXT = "agentfs 2026-11-21 content with holes"

Bytes = bytes | bytearray | memoryview

_HOLE = struct.Struct("<QQ")
_COUNT = struct.Struct("<Q")


class ContentHasher:
    """Names a content from its parts, given in order."""

    __slots__ = ("_hasher", "_holes", "_is_sparse")

    def __init__(self, *, sparse: bool) -> None:
        """:param sparse: whether it has any hole"""
        self._is_sparse = sparse
        self._holes = bytearray()
        if sparse:
            self._hasher = blake3(derive_key_context=_SPARSE_CONTEXT, max_threads=blake3.AUTO)
        else:
            self._hasher = blake3(max_threads=blake3.AUTO)

    def data(self, data: Bytes) -> None:
        self._hasher.update(data)

    def hole(self, offset: int, length: int) -> None:
        """A hole of *length* bytes at *offset*."""
        self._holes += _HOLE.pack(offset, length)

    def digest(self) -> bytes:
        """Once, when all parts have been given."""
        if self._is_sparse:
            self._hasher.update(self._holes + _COUNT.pack(len(self._holes) // _HOLE.size))
        return self._hasher.digest()


CHUNK_DIGEST_BYTES = 16
"""Enough that no two of 2^32 chunks share it by chance (1 in 2^65), and that nobody finds a
second chunk to a given one; the whole content is checked against all 32 bytes of its own."""


def chunk_digest(data: Bytes) -> bytes:
    """What a chunk is known by: the first half of its BLAKE3."""
    return blake3(data).digest(CHUNK_DIGEST_BYTES)


def digest_of(data: Bytes) -> bytes:
    """BLAKE3 of *data*, 32 bytes."""
    return blake3(data).digest()
