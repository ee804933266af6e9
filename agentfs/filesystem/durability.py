"""What fsync waits for: one disk flush of the index's log, shared by all who ask.

A caller that arrives while a flush is under way waits for the next one, since
the running flush may have begun before the caller's changes were committed.
"""

from __future__ import annotations

import trio

from agentfs.index import Index


class _Flush:
    """One flush under way, and how it ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: OSError | None = None


class Durability:
    """Groups the flushes of the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._durable_changes = -1  # what an earlier daemon committed may not be on the disk
        self._running: _Flush | None = None
        self._log_is_suspect = False
        """A flush of the log failed. The kernel reports that once and then forgets which pages
        it could not write, so only a checkpoint, which writes them elsewhere, helps."""

    async def sync(self) -> None:
        """Return when all that is committed now survives a power cut.

        :raises OSError: the disk failed; nothing may be assumed of recent changes
        """
        wanted = self._index.changes
        while self._durable_changes < wanted:
            if self._running is None:
                await self._flush()
                continue
            running = self._running
            await running.done.wait()
            if running.error is not None:
                raise OSError(*running.error.args)

    async def _flush(self) -> None:
        self._running = running = _Flush()
        covered = self._index.changes
        try:
            if self._log_is_suspect:
                self._index.checkpoint()
                self._log_is_suspect = False
            await trio.to_thread.run_sync(self._index.sync_wal)
            self._durable_changes = covered
        except OSError as error:
            running.error = error
            self._log_is_suspect = True
            raise
        finally:
            self._running = None
            running.done.set()
