"""Makes the store's disk stand still, in a daemon that finds this on its path, while a file exists.

A slow disk, with the waiting drawn out until the test has looked. What needs the disk waits, that
is appending blocks and flushing; what the page cache takes does not. STOPPED_DISK names the file.
"""

from __future__ import annotations

import os
import time
from typing import Any

from agentfs import chunks
from agentfs.index import Index

STOPPED = os.environ["STOPPED_DISK"]

_Store, _sync_wal = chunks.Store, Index.sync_wal


def _wait() -> None:
    while os.path.exists(STOPPED):
        time.sleep(0.01)


class StoppedStore:
    """A chunk store on that disk."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._store = _Store(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, *args: Any) -> tuple[int, int, int]:
        _wait()
        return self._store.put(*args)

    def sync(self) -> None:
        _wait()
        self._store.sync()


def _stopped_sync_wal(index: Index) -> None:
    _wait()
    _sync_wal(index)


chunks.Store = StoppedStore  # type: ignore[misc, assignment]
Index.sync_wal = _stopped_sync_wal  # type: ignore[method-assign]
