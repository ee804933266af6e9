"""Sets of chunk ids in few bytes: given out in order, the ids of a block are mostly runs.

block.chunks is such a set. It names every chunk of the block, and perhaps others, which were moved
or dropped since: nothing else leads from a block to its chunks.
"""

from __future__ import annotations

import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter


def pack_runs(ids: Iterable[int]) -> bytes:
    """Pack ascending ids as pairs of little-endian 32-bit numbers (first, count)."""
    numbers = array("I")
    for number in ids:
        if numbers and number == numbers[-2] + numbers[-1]:
            numbers[-1] += 1
        else:
            numbers.extend((number, 1))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack_runs(encoded: bytes) -> Iterator[tuple[int, int]]:
    """(first, last) of each run."""
    numbers = array("I")
    numbers.frombytes(encoded)
    if sys.byteorder == "big":
        numbers.byteswap()
    for first, count in zip(numbers[0::2], numbers[1::2], strict=True):
        yield first, first + count - 1


def list_chunks(execute: Callable[..., sqlite3.Cursor]) -> None:
    """Make the sets of all blocks anew from the rows of chunks. In a transaction.

    :param execute: of the database
    """
    execute("UPDATE block SET chunks = x''")
    rows = execute("SELECT block, id FROM chunk WHERE block <> 0 ORDER BY block, id")
    for block, members in groupby(rows, itemgetter(0)):
        ids = pack_runs(chunk for _, chunk in members)
        execute("UPDATE block SET chunks = ? WHERE id = ?", (ids, block))
