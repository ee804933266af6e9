"""The rows of an index as bytes that compress well: docs/FORMAT.md, "Copies of the namespace".

What can be counted or computed anew is left out: reference counts, live bytes, lists of chunks,
lengths that those of chunks add up to, and digests, which do not compress and would be more than
half of it; of a content's 4 bytes are kept. Loans are left out as well: one that has
ended since would have a file give up content that was fsynced. Rows are written in batches, a
column at a time; a column of numbers as differences to what is likely, as narrow as they fit. What
others are measured by comes first: chunks before contents before inodes.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import sub
from typing import Any

from agentfs.index.connection import IndexConnection
from agentfs.index.contents import (
    FIRST_CHUNK_ID,
    HALF_BYTES,
    PART_BYTES,
    UNKNOWN_CHUNK_DIGEST,
    recipe_parts,
)

_DIGEST_BYTES = 32
_KEPT_BYTES = 8
"""Of a content's digest in a copy of format 1, which has more of it than one of format 2."""


def agrees(known: bytes, found: bytes) -> bool:
    """Whether a content's digest is what is known of it: of each half all, or how it begins.

    Of a restored row it is how the first half begins (format 1) or the second one (format 2). A
    content that is one chunk lacks the first half when that chunk's row was restored.
    """
    return all(
        known[half] == found[half]
        or (
            not any(known[half][_KEPT_BYTES:]) and found[half].startswith(known[half].rstrip(b"\0"))
        )
        for half in (slice(HALF_BYTES), slice(HALF_BYTES, _DIGEST_BYTES))
    )


_ROWS = 4096
"""In a batch; fewer where rows are large."""

_BATCH_BYTES = 1 << 20
"""Of blobs, from which on a batch ends; a row has 64 KiB of them at most, but for a recipe."""

_SECOND_NS = 1_000_000_000
_NULL = -1
_WIDTHS = "bhiq"
_COLUMN = struct.Struct("<cI")

Row = tuple[Any, ...]


def batches(index: IndexConnection) -> Iterator[bytes]:
    """All rows of an index."""
    settings = dict(index.execute("SELECT name, value FROM setting").fetchall())
    yield bytes([_SETTINGS]) + json.dumps(settings).encode()
    for number in _WRITTEN:
        table = _TABLES[number]
        for rows in _slices(index.execute(table.query), table.blobs):
            columns: list[Any] = list(zip(*rows, strict=True))
            encoded = b"".join(_sized(encode(columns)) for encode, _ in table.codecs)
            yield struct.pack("<BI", number, len(rows)) + encoded


class Reader:
    """Reads the batches of one copy, in their order."""

    def __init__(self) -> None:
        self._lengths: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def read(self, batch: bytes) -> tuple[str, list[Row]]:
        """(table, its rows with all their columns) of a batch; counts are 0, lists of chunks empty.

        :raises ValueError: it is none
        """
        if batch[0] == _SETTINGS:
            return "setting", list(json.loads(batch[1:]).items())
        table = _TABLES[batch[0]]
        (count,) = struct.unpack_from("<I", batch, 1)
        pieces = _pieces(memoryview(batch)[5:])
        columns: list[Any] = []
        for _, decode in table.codecs:
            columns.append(decode(next(pieces, memoryview(b"")), count, columns))
        rows = [table.complete(row) for row in zip(*columns, strict=True)]
        if batch[0] == _CONTENTS:
            rows = [self._with_lengths(row) for row in rows]
        elif batch[0] == _INODES:
            rows = [self._with_size(row) for row in rows]
        elif batch[0] == _CHUNKS:
            self._lengths.update((row[0], row[4]) for row in rows)
        return table.name, rows

    def _with_lengths(self, row: Row) -> Row:
        numbers = array("I", row[3])
        numbers[1::2] = array(
            "I",
            (
                length if chunk < FIRST_CHUNK_ID else self._lengths.get(chunk, length)
                for chunk, length in zip(numbers[0::2], numbers[1::2], strict=True)
            ),
        )
        recipe = numbers.tobytes()
        size = self._sizes[row[0]] = sum(length for _, length in recipe_parts(recipe))
        return (*row[:2], size, recipe, *row[4:])

    def _with_size(self, row: Row) -> Row:
        size = row[5] + self._sizes.get(row[9], 0)
        return (*row[:5], size, *row[6:])


def _slices(rows: Iterable[Row], blobs: Sequence[int]) -> Iterator[list[Row]]:
    taken: list[Row] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += sum(len(row[column] or b"") for column in blobs)
        if len(taken) == _ROWS or size >= _BATCH_BYTES:
            yield taken
            taken, size = [], 0
    if taken:
        yield taken


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _pieces(data: memoryview) -> Iterator[memoryview]:
    while data:
        (size,) = struct.unpack_from("<I", data)
        yield data[4 : 4 + size]
        data = data[4 + size :]


# Columns

Encode = Callable[[list[Any]], bytes]
Decode = Callable[[memoryview, int, list[Any]], list[Any]]


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _pack(numbers: list[int]) -> bytes:
    low, high = min(numbers), max(numbers)
    if low < -(1 << 63) or high >= 1 << 63:  # a difference of two times at both ends
        numbers = [_wrapped(number) for number in numbers]
        low, high = min(numbers), max(numbers)
    width = next(w for w in _WIDTHS if _fits(low, high, array(w).itemsize * 8))
    return width.encode() + array(width, numbers).tobytes()


def _fits(low: int, high: int, bits: int) -> bool:
    return -(1 << bits - 1) <= low and high < 1 << bits - 1


def _unpack(data: memoryview) -> list[int]:
    return array(chr(data[0]), bytes(data[1:])).tolist()


def _numbers(column: int) -> tuple[Encode, Decode]:
    return lambda columns: _pack(columns[column]), lambda data, count, before: _unpack(data)


def _steps(column: int) -> tuple[Encode, Decode]:
    """Numbers as differences to the one before; NULL is -1."""

    def encode(columns: list[Any]) -> bytes:
        values = [_NULL if value is None else value for value in columns[column]]
        return _pack([values[0], *map(sub, values[1:], values)])

    def decode(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        return [_wrapped(value) for value in accumulate(_unpack(data))]

    return encode, decode


def _nullable(codec: tuple[Encode, Decode]) -> tuple[Encode, Decode]:
    encode, decode = codec

    def decode_nulls(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        return [None if value == _NULL else value for value in decode(data, count, before)]

    return encode, decode_nulls


def _later(codec: tuple[Encode, Decode]) -> tuple[Encode, Decode]:
    """A last column that earlier versions did not write: NULL in their copies."""
    encode, decode = codec

    def decode_if_there(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        return decode(data, count, before) if data else [None] * count

    return encode, decode_if_there


def _beside(column: int, other: int, unit: int = 1) -> tuple[Encode, Decode]:
    """Numbers as differences to those of another column that stands before it, in whole units."""

    def encode(columns: list[Any]) -> bytes:
        pairs = zip(columns[column], columns[other], strict=True)
        return _pack([(value - base) // unit for value, base in pairs])

    def decode(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        pairs = zip(_unpack(data), before[other], strict=True)
        return [_wrapped(difference * unit + base) for difference, base in pairs]

    return encode, decode


def _following(column: int, group: int, length: int, first: int) -> tuple[Encode, Decode]:
    """Places, as differences to where the one before in the same group ends."""

    def encode(columns: list[Any]) -> bytes:
        gaps, last, end = [], None, first
        rows = zip(columns[group], columns[column], columns[length], strict=True)
        for member, place, taken in rows:
            gaps.append(place - (end if member == last else first))
            last, end = member, place + taken
        return _pack(gaps)

    def decode(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        places, last, end = [], None, first
        rows = zip(before[group], _unpack(data), before[length], strict=True)
        for member, gap, taken in rows:
            place = gap + (end if member == last else first)
            places.append(place)
            last, end = member, place + taken
        return places

    return encode, decode


def _blobs(column: int) -> tuple[Encode, Decode]:
    """Lengths, then bytes; the length of NULL is -1."""

    def encode(columns: list[Any]) -> bytes:
        values = columns[column]
        lengths = _pack([_NULL if value is None else len(value) for value in values])
        return _sized(lengths) + b"".join(value or b"" for value in values)

    def decode(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        lengths, start, values = next(_pieces(data)), 0, list[bytes | None]()
        data = data[4 + len(lengths) :]
        for length in _unpack(lengths):
            if length == _NULL:
                values.append(None)
                continue
            values.append(bytes(data[start : start + length]))
            start += length
        return values

    return encode, decode


def _recipes(column: int, *, are_chunks_measured: bool = False) -> tuple[Encode, Decode]:
    """How many parts each has; the ids of all parts, as differences; their lengths.

    :param are_chunks_measured: by their own rows, and need no length here: 0
    """

    def encode(columns: list[Any]) -> bytes:
        numbers = array("I", b"".join(columns[column]))
        ids, lengths = numbers[0::2].tolist(), numbers[1::2].tolist()
        if are_chunks_measured:
            pairs = zip(ids, lengths, strict=True)
            lengths = [0 if number >= FIRST_CHUNK_ID else length for number, length in pairs]
        counts = _pack([len(recipe) // PART_BYTES for recipe in columns[column]])
        steps = _pack([ids[0], *map(sub, ids[1:], ids)])
        return b"".join(map(_sized, (counts, steps, _pack(lengths))))

    def decode(data: memoryview, count: int, before: list[Any]) -> list[Any]:
        counts, steps, lengths = map(_unpack, _pieces(data))
        numbers = array("I", bytes(8 * len(lengths)))
        numbers[0::2] = array("I", accumulate(steps))
        numbers[1::2] = array("I", lengths)
        encoded = numbers.tobytes()
        ends = list(accumulate(counts, initial=0))
        return [encoded[8 * ends[i] : 8 * ends[i + 1]] for i in range(count)]

    return encode, decode


def _padded(digest: bytes, start: int = 0) -> bytes:
    return (bytes(start) + digest).ljust(_DIGEST_BYTES, b"\0")


class _Table:
    """How the rows of one table are written; columns that others are measured by stand first."""

    def __init__(
        self,
        name: str,
        query: str,
        codecs: Sequence[tuple[Encode, Decode]],
        complete: Callable[[Row], Row] = lambda row: row,
        blobs: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.query = query
        self.codecs = codecs
        self.complete = complete
        self.blobs = blobs


_SETTINGS = 255

_TABLES = (
    _Table(  # 0: inodes of format 1
        "inode",
        "",
        (
            *(_steps(column) for column in range(6)),
            _numbers(6),
            _beside(7, 0),
            _beside(8, 0),
            *(_nullable(_steps(column)) for column in (9, 10, 11)),
            _blobs(12),
            _nullable(_steps(13)),
        ),
        lambda row: (*row[1:8], row[0], *row[8:]),
    ),
    _Table(
        "dentry",
        "SELECT parent, name, inode FROM dentry ORDER BY parent, name",
        (_steps(0), _blobs(1), _steps(2)),
        blobs=(1,),
    ),
    _Table(
        "xattr",
        "SELECT inode, name, value FROM xattr ORDER BY inode, name",
        (_steps(0), _blobs(1), _blobs(2)),
        blobs=(1, 2),
    ),
    _Table(  # 3: contents of format 1
        "content",
        "",
        (
            _steps(0),
            _blobs(1),
            _numbers(2),
            _recipes(3),
            _later(_nullable(_steps(4))),
            _later(_nullable(_steps(5))),
        ),
        lambda row: (row[0], _padded(row[1]), row[2], row[3], 0, row[4], row[5]),
    ),
    _Table(
        "chunk",
        "SELECT id, block, length, start, domain FROM chunk ORDER BY id",
        (
            _steps(0),
            _steps(1),
            _numbers(2),
            _following(3, 1, 2, 0),
            _later(_nullable(_steps(4))),
        ),
        lambda row: (row[0], UNKNOWN_CHUNK_DIGEST, row[1], row[3], row[2], 0, row[4]),
    ),
    _Table(
        "block",
        "SELECT id, segment, stored, raw, offset, packed FROM block ORDER BY id",
        (
            _steps(0),
            _steps(1),
            _numbers(2),
            _numbers(3),
            _following(4, 1, 2, 32),
            _later(_nullable(_steps(5))),
        ),
        lambda row: (row[0], row[1], row[4], row[2], row[3], 0, b"", row[5]),
    ),
    _Table("damaged", "SELECT block FROM damaged ORDER BY block", (_steps(0),)),
    _Table(  # 7: sizes are those of contents, or beside them
        "inode",
        "SELECT mtime, inode.id, mode, uid, gid, nlink, inode.size - ifnull(content.size, 0),"
        " atime, ctime, content, holes, rdev, target, parent"
        " FROM inode LEFT JOIN content ON content.id = inode.content ORDER BY inode.id",
        (
            *(_steps(column) for column in range(6)),
            _numbers(6),
            _beside(7, 0, _SECOND_NS),
            _beside(8, 0),
            *(_nullable(_steps(column)) for column in (9, 10, 11)),
            _blobs(12),
            _nullable(_steps(13)),
        ),
        lambda row: (*row[1:8], row[0], *row[8:]),
        blobs=(12,),
    ),
    _Table(  # 8: lengths are those of chunks, sizes their sums
        "content",
        "SELECT id, substr(digest, -16, 4), recipe, kind, domain FROM content ORDER BY id",
        (
            _steps(0),
            _blobs(1),
            _recipes(2, are_chunks_measured=True),
            _nullable(_steps(3)),
            _nullable(_steps(4)),
        ),
        lambda row: (row[0], _padded(row[1], HALF_BYTES), 0, row[2], 0, row[3], row[4]),
        blobs=(1, 2),
    ),
)
"""A batch names its table by its place here."""

_CHUNKS, _INODES, _CONTENTS = 4, 7, 8
_WRITTEN = (_CHUNKS, _CONTENTS, _INODES, 1, 2, 5, 6)
