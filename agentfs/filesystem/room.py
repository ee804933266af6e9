"""Room on the store's disk that data may not take.

On a disk that is full to the last byte no file could be removed either, since
that is a change of the index. So bytes of files stop short of the end, and the
index has the rest to itself.
"""

from __future__ import annotations

import errno
import math
import os
import time
from pathlib import Path

RESERVE_BYTES = 64 << 20
"""The index's log at its largest, and as much for the database to take it in."""

_RESERVE_SHARE = 0.1
"""Of a small disk, if that is less."""


_RECENTLY_S = 0.02
"""How old an answer may be that is only to say whether there is plenty."""


class Room:
    """Free space below a store. Safe in any thread."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._spare_bytes = 0
        self._read_at = -math.inf

    def require(self, size_bytes: int) -> None:
        """:raises OSError: ENOSPC, when *size_bytes* of data would leave too little"""
        self._require_beyond(1, size_bytes)

    def require_for_seal(self, size_bytes: int) -> None:
        """The same for bytes that were accepted already: they may have half of the reserve.

        What was accepted was weighed without rows, headers and what does not compress.
        """
        self._require_beyond(0.5, size_bytes)

    def require_for_gc(self, size_bytes: int) -> None:
        """The same for copies that give back more than they take: the index keeps a quarter."""
        self._require_beyond(0.25, size_bytes)

    def _require_beyond(self, share: float, size_bytes: int) -> None:
        """:param share: of the reserve, which must stay"""
        disk = os.statvfs(self._store)
        if _free_bytes(disk) - int(_reserve_bytes(disk) * share) < size_bytes:
            raise _no_space()

    @property
    def is_short(self) -> bool:
        """Nothing is left but the reserve."""
        return self.spare_bytes() <= 0

    def spare_bytes(self) -> int:
        """What data may take; less than nothing when the reserve is in use."""
        disk = os.statvfs(self._store)
        return _free_bytes(disk) - _reserve_bytes(disk)

    def recent_spare_bytes(self) -> int:
        """The same, a moment ago: asking costs as much as making a file on tmpfs."""
        now = time.monotonic()
        if now - self._read_at > _RECENTLY_S:
            self._spare_bytes, self._read_at = self.spare_bytes(), now
        return self._spare_bytes


def _free_bytes(disk: os.statvfs_result) -> int:
    return disk.f_bavail * disk.f_frsize


def _reserve_bytes(disk: os.statvfs_result) -> int:
    return min(RESERVE_BYTES, int(disk.f_blocks * disk.f_frsize * _RESERVE_SHARE))


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, "no space left below the store")
