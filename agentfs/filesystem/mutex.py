"""Mutual exclusion between tasks, for what is mostly free: each file has its own."""

from __future__ import annotations

import trio


class Mutex:
    """A lock that costs no turn of the event loop while it is free, unlike those of trio.

    Given to who has waited longest.
    """

    __slots__ = ("_waiting", "is_held")

    def __init__(self) -> None:
        self.is_held = False
        self._waiting: trio.lowlevel.ParkingLot | None = None  # few are ever waited for

    def acquire_nowait(self) -> None:
        """:raises trio.WouldBlock: it is held"""
        if self.is_held:
            raise trio.WouldBlock
        self.is_held = True

    async def acquire(self) -> None:
        if not self.is_held:
            self.is_held = True
            return
        if self._waiting is None:
            self._waiting = trio.lowlevel.ParkingLot()
        await self._waiting.park()

    def release(self) -> None:
        if self._waiting:
            self._waiting.unpark()  # who is woken holds it from now on
        else:
            self.is_held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
