"""The relay as the filesystem sees it, without a kernel: which files are attached and open.

It fails where the kernel would answer a program with EIO: an inode that is open, or is opened,
through a backing file that was given back.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any


class FakeRelay:
    """As `agentfs.filesystem.relay.Relay`; tests open files by counting in `open_files`."""

    has_taken_over = False
    highest_nodeid = 1

    def __init__(self) -> None:
        self.attached: dict[int, int] = {}
        """Backing id by nodeid."""
        self.open_files: Counter[int] = Counter()
        self.registered: dict[int, tuple[int, int]] = {}
        """(device, inode) by backing id."""
        self.fresh_until_ns: dict[int, int] = {}
        """By nodeid: until when it may be opened for reading without us."""
        self.opens_writes: dict[int, bool] = {}
        """By nodeid: it may be opened for writing without us."""
        self.writing: Counter[int] = Counter()
        self.writes: Counter[int] = Counter()
        self._last = 0

    def register(self, fd: int) -> int:
        self._last += 1
        status = os.fstat(fd)
        self.registered[self._last] = status.st_dev, status.st_ino
        return self._last

    def unregister(self, backing_id: int) -> None:
        assert backing_id not in self.attached.values(), "somebody would get EIO"
        del self.registered[backing_id]

    def attach(self, nodeid: int, backing_id: int, fd: int = -1, **options: Any) -> None:
        assert backing_id == 0 or backing_id in self.registered, "somebody would get EIO"
        assert not self.open_files[nodeid] or self.attached[nodeid] == backing_id
        self.attached[nodeid] = backing_id
        self.fresh_until_ns[nodeid] = int(options.get("fresh_until_ns", 0))
        self.opens_writes[nodeid] = bool(options.get("opens_writes"))

    def detach(self, nodeid: int) -> bool:
        if self.open_files[nodeid]:
            return False
        self.attached.pop(nodeid, None)
        return True

    def opens(self, nodeid: int) -> int:
        return self.open_files[nodeid]

    def writers(self, nodeid: int) -> tuple[int, int]:
        return self.writing[nodeid], self.writes[nodeid]

    def opened(self, nodeid: int, *, writes: bool = False) -> None:
        """A program has opened what is attached."""
        assert nodeid in self.attached
        assert not writes or self.opens_writes[nodeid]
        self.open_files[nodeid] += 1
        self.writing[nodeid] += writes
        self.writes[nodeid] += writes

    def closed(self, nodeid: int, *, writes: bool = False) -> None:
        """A program has closed it."""
        self.open_files[nodeid] -= 1
        self.writing[nodeid] -= writes

    def measured(self, nodeid: int) -> None:
        """It has no descriptors."""

    def attr_changed(self, nodeid: int) -> None:
        """Nobody asks the fake for attributes."""

    def put_attr(self, nodeid: int, *attributes: object) -> None:
        """The same."""

    def set_ino(self, nodeid: int, ino: int) -> None:
        """The same."""

    def forget_ino(self, nodeid: int) -> None:
        """The same."""

    def set_acl_free(self, is_free: bool) -> None:
        """The same."""

    def rows(self) -> list[tuple[int, int, int, int, int, int, int]]:
        return []

    def backings(self) -> list[tuple[int, int, int]]:
        return []
