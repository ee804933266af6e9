"""Who may use chunks and who may remove them: many sealers, or one collector.

Between finding that a chunk is known and recording that it is used again, a seal
relies on the chunk staying. It passes the gate; the collector closes it. A
collector that waits keeps new seals out, so it waits for those under way only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Gate:
    """A lock that many share or one holds alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._closing = trio.Lock()
        self._empty = trio.Event()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._closing:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._closing:
            while self._inside:
                self._empty = trio.Event()
                await self._empty.wait()
            yield
