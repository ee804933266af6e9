"""A relay without a kernel: it counts what is attached and open, and passes nothing on."""

from __future__ import annotations

import os
from collections import Counter


class FakeRelay:
    """As `agentfs.filesystem.images.Relay`; tests open files by counting in `open_files`."""

    has_taken_over = False
    highest_nodeid = 1

    def __init__(self) -> None:
        self.attached: dict[int, int] = {}
        """Backing id by nodeid."""
        self.open_files: Counter[int] = Counter()
        self.registered: dict[int, tuple[int, int]] = {}
        self._last = 0

    def register(self, fd: int) -> int:
        self._last += 1
        status = os.fstat(fd)
        self.registered[self._last] = status.st_dev, status.st_ino
        return self._last

    def unregister(self, backing_id: int) -> None:
        del self.registered[backing_id]

    def attach(
        self,
        nodeid: int,
        backing_id: int,
        fd: int,
        *,
        writable: bool,
        fresh_until_ns: int,
        capability_free: bool,
    ) -> None:
        assert backing_id in self.registered
        self.attached[nodeid] = backing_id

    def detach(self, nodeid: int) -> bool:
        if self.open_files[nodeid]:
            return False
        self.attached.pop(nodeid, None)
        return True

    def opens(self, nodeid: int) -> int:
        return self.open_files[nodeid]

    def attr_changed(self, nodeid: int) -> None: ...

    def put_attr(self, *attributes: object) -> None: ...

    def set_ino(self, nodeid: int, ino: int) -> None: ...

    def forget_ino(self, nodeid: int) -> None: ...

    def rows(self) -> list[tuple[int, int, int, int, int, int]]:
        return []

    def backings(self) -> list[tuple[int, int, int]]:
        return []
