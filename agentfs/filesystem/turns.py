"""Long work on the event loop's thread, with turns for others."""

from __future__ import annotations

import time

import trio

_TURN_S = 0.002
"""Requests wait no longer than that for who counts or lists."""


class Turns:
    """Lets other tasks run when this one has run for a while."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def give(self) -> None:
        """Others may run in this, if it is their turn."""
        if time.perf_counter() - self._since > _TURN_S:
            await trio.lowlevel.checkpoint()
            self._since = time.perf_counter()
