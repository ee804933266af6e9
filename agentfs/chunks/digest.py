"""Names of bytes: BLAKE3 of a chunk, and of a whole content.

A content without holes is named by the BLAKE3 of its bytes, as b3sum prints it.
One with holes is named by BLAKE3 in key derivation mode over its data, then for
each hole its place and length, then the number of holes: hashing the zeros of a
terabyte hole would take minutes. Holes come last and counted, so that no data
can pass for a hole. Two files that differ only in what is a hole share chunks, not a name.

Where users are to share nothing, all this is BLAKE3 with a key that is the user's own (one with
holes: with a key derived from that): equal bytes of two users have names that have nothing in
common. A user's uid is their *domain*.
"""

from __future__ import annotations

import struct

from blake3 import blake3

_SPARSE_CONTEXT = "agentfs 2026-11-21 content with holes"

Bytes = bytes | bytearray | memoryview

_HOLE = struct.Struct("<QQ")
_COUNT = struct.Struct("<Q")
_UID = struct.Struct("<Q")


class DomainKeys:
    """By which bytes are named in each domain."""

    __slots__ = ("_keys", "_secret")

    def __init__(self, secret: bytes) -> None:
        """:param secret: the store's, 32 bytes"""
        self._secret = secret
        self._keys: dict[int, bytes] = {}

    def of(self, domain: int | None) -> bytes | None:
        """Of the user with that uid, 32 bytes; None: the bytes are anybody's."""
        if domain is None:
            return None
        key = self._keys.get(domain)
        if key is None:
            key = self._keys[domain] = blake3(_UID.pack(domain), key=self._secret).digest()
        return key


class ContentHasher:
    """Names a content from its parts, given in order."""

    __slots__ = ("_hasher", "_holes", "_is_sparse")

    def __init__(self, *, sparse: bool, key: bytes | None = None) -> None:
        """
        :param sparse: whether it has any hole
        :param key: of its domain
        """
        self._is_sparse = sparse
        self._holes = bytearray()
        if key is not None:
            if sparse:
                key = blake3(key, derive_key_context=_SPARSE_CONTEXT).digest()
            self._hasher = blake3(key=key, max_threads=blake3.AUTO)
        elif sparse:
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


def chunk_digest(data: Bytes, key: bytes | None) -> bytes:
    """What a chunk is known by: the first half of its BLAKE3."""
    return _hashed(data, key).digest(CHUNK_DIGEST_BYTES)


def digest_of(data: Bytes, key: bytes | None) -> bytes:
    """BLAKE3 of *data*, 32 bytes."""
    return _hashed(data, key).digest()


def _hashed(data: Bytes, key: bytes | None) -> blake3:
    return blake3(data) if key is None else blake3(data, key=key)
