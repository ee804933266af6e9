"""Ranges of files: data found and copied, holes found, kept and made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from agentfs.chunks import fallocate
from agentfs.model import SECTOR_BYTES

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16
"""Modes of fallocate(2), from linux/falloc.h."""

_COPY_BYTES = 1 << 20
_PIECE_BYTES = 8 << 20
"""Copied before a failure counts."""


def holes_in(status: os.stat_result) -> int | None:
    """Bytes of a file that take no room; None: none."""
    holes = status.st_size - status.st_blocks * SECTOR_BYTES
    return holes if holes > 0 else None


def data_extents(fd: int, end: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole from *start* to *end*, in order."""
    position = start
    while position < end:
        try:
            found = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if found >= end:
            return
        position = min(os.lseek(fd, found, os.SEEK_HOLE), end)
        yield found, position


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first *size* bytes to an empty file; holes stay holes."""
    for start, end in data_extents(source, size):
        copy_range(source, target, start, end)
    os.ftruncate(target, size)


def copy_range(source: int, target: int, start: int, end: int, ahead: int = 0) -> int:
    """Copy bytes *start* to *end*, to *ahead* of there in another file; how many there were."""
    position = start
    try:
        while position < end:
            copied = os.copy_file_range(source, target, end - position, position, position + ahead)
            if not copied:
                break
            position += copied
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP):
            raise
        while position < end:  # from tmpfs to disk, or back
            data = os.pread(source, min(_COPY_BYTES, end - position), position)
            if not data:
                break
            write_all(target, data, position + ahead)
            position += len(data)
    return position - start


def copy_extents(source: int, target: int, start: int, end: int, ahead: int) -> int:
    """Like `copy_range`, but holes become holes, and what was copied before a failure counts.

    :raises OSError: nothing could be copied
    """
    position = start
    try:
        for data_start, data_end in data_extents(source, end, start):
            make_hole(target, position + ahead, data_start - position)
            position = data_start
            while position < data_end:
                piece_end = min(position + _PIECE_BYTES, data_end)
                position += copy_range(source, target, position, piece_end, ahead)
                if position < piece_end:  # it was cut short meanwhile
                    return position - start
        make_hole(target, position + ahead, end - position)
    except OSError:
        if position == start:
            raise
        return position - start
    return end - start


def make_hole(fd: int, start: int, length: int) -> None:
    """Make a range read as zeros and take no room; beyond its end the file grows."""
    size = os.fstat(fd).st_size
    inside = min(size, start + length) - start
    if inside > 0:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, inside)
    if length and start + length > size:
        os.ftruncate(fd, start + length)


def allocate(fd: int, mode: int, start: int, length: int) -> None:
    """fallocate(2), with FALLOC_FL_ZERO_RANGE also where there is none, as on tmpfs."""
    if mode & FALLOC_ZERO_RANGE:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, length)
        mode &= FALLOC_KEEP_SIZE
    fallocate(fd, mode, start, length)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite(2) until all of *data* is written."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
