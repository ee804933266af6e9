"""What fsync waits for: one disk flush of the index's log, shared by all who ask.

A caller that arrives while a flush is under way waits for the next one, since
the running flush may have begun before the caller's changes were committed.
"""

from __future__ import annotations

import trio

from agentfs.index import Index


class Durability:
    """Groups the flushes of the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._durable_changes = 0
        self._finished: trio.Event | None = None  # set while a flush is under way

    async def sync(self) -> None:
        """Return when all that is committed now survives a power cut.

        :raises OSError: the disk failed; nothing may be assumed of recent changes
        """
        wanted = self._index.changes
        while self._durable_changes < wanted:
            if self._finished is not None:
                await self._finished.wait()
                continue
            self._finished = finished = trio.Event()
            covered = self._index.changes
            try:
                await trio.to_thread.run_sync(self._index.sync_wal)
                self._durable_changes = covered
            finally:
                self._finished = None
                finished.set()
