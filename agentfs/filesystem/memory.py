"""How short of memory machine, control group and process are, and what of ours goes back.

Nothing is read unless somebody asks, 100 us for all of it. What may change between two
questions, the kernel tells: a trigger of pressure stall information makes `alarm`
readable, so that nobody need ask often.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
from collections.abc import Callable
from pathlib import Path

import trio

from agentfs.machine.reading import Machine

_TRIGGER = b"some 200000 2000000\0"
"""Some program waited for memory for 0.2 of 2 s. Who is not root may ask for multiples of 2 s."""

TRIGGER_SHARE = 0.1

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_GROWN_BYTES = 32 << 20
_RESTING_BYTES = 64 << 10
"""What differs by less from one look to the next is at rest."""

_WORTH_BYTES = 512 << 10
_AGAIN_S = 1.0

_STATM = Path("/proc/self/statm")

_libc = ctypes.CDLL(None)
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""From malloc.h."""


class Memory:
    """What there is to know, and a descriptor that says when to ask."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._groups = machine.memory_groups()
        self._pressure_files = machine.pressure_files()
        self._triggers = [fd for fd in map(self._trigger, self._pressure_files) if fd is not None]
        self.alarm: select.epoll | None = None
        """Owned. Readable when programs wait for memory; None: the kernel does not tell."""
        if self._triggers:
            self.alarm = select.epoll()
            for fd in self._triggers:
                self.alarm.register(fd, select.EPOLLPRI)

    def _trigger(self, path: str) -> int | None:
        """A descriptor on which the kernel reports; None: it has no PSI, or we have no right."""
        try:
            fd = os.open(self._machine.path(path), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            self._require_pollable(fd)  # or it is no file of the kernel's
            os.write(fd, _TRIGGER)
        except OSError:
            os.close(fd)
            return None
        return fd

    @staticmethod
    def _require_pollable(fd: int) -> None:
        with select.epoll() as probe:
            probe.register(fd, select.EPOLLPRI)

    def acknowledge(self) -> None:
        """Let `alarm` be silent until the kernel reports again."""
        assert self.alarm is not None
        self.alarm.poll(0)

    def available_share(self) -> float:
        """Of RAM, or of what a control group of ours may use, the least that is available."""
        shares = [group.available_share() for group in self._groups]
        memory = self._machine.memory()
        with contextlib.suppress(KeyError):
            shares.append(memory["MemAvailable"] / memory["MemTotal"])
        return min(shares, default=1.0)

    def stalled_share(self) -> float:
        """Of the last ten seconds, in which some program waited for memory; 0 without PSI."""
        texts = map(self._machine.text, self._pressure_files)
        return max((_stalled_share(text) for text in texts if text), default=0.0)

    def close(self) -> None:
        if self.alarm is not None:
            self.alarm.close()
        for fd in self._triggers:
            os.close(fd)


def _stalled_share(text: str) -> float:
    some = text.splitlines()[0]
    return float(some.split("avg10=")[1].split()[0]) / 100


def map_from(size_bytes: int) -> None:
    """Let each allocation from that size on be a mapping of its own, and end with it.

    By itself glibc raises that limit to the largest that was freed, and keeps what is below it
    in a heap for each thread.
    """
    _mallopt(_M_MMAP_THRESHOLD, size_bytes)


def limit_heaps(count: int) -> None:
    """Let all threads together have so many heaps, not eight for each core.

    What one has freed in its own no other finds.
    """
    _mallopt(_M_ARENA_MAX, count)


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(_libc, "mallopt", None)  # glibc's alone
    if mallopt is not None:
        mallopt(option, value)


def give_back() -> None:
    """Return to the kernel what malloc keeps for later."""
    trim = getattr(_libc, "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def own_bytes() -> int:
    """Memory of this process that is nobody else's and no file's; 15 us."""
    _, resident, shared, *_ = map(int, _STATM.read_text().split())
    return (resident - shared) * _PAGE_BYTES


class Heap:
    """Gives back what seals, compaction and reads have left: when it has become much, or when it
    is worth it and grows no more.
    """

    def __init__(self, free_idle: Callable[[], None]) -> None:
        """:param free_idle: frees what is kept outside of malloc's sight; in a thread"""
        self._free_idle = free_idle
        self._least_bytes = own_bytes()
        """Since it was last given back."""
        self._last_bytes = self._least_bytes
        self._look_again_at = math.inf

    def ask(self) -> None:
        """Give back with the next `tidy`, whether it has become much or not."""
        self._look_again_at = -math.inf

    async def tidy(self) -> None:
        """To be called now and then.

        What was in use when it was given back may be free later: that is tried again until
        there is nothing more to be had.
        """
        now_bytes, now_s = own_bytes(), trio.current_time()
        is_at_rest = abs(now_bytes - self._last_bytes) < _RESTING_BYTES
        worth_bytes = _WORTH_BYTES if is_at_rest else _GROWN_BYTES
        has_grown = now_bytes > self._least_bytes + worth_bytes
        self._last_bytes = now_bytes
        self._least_bytes = min(self._least_bytes, now_bytes)
        if not has_grown and now_s < self._look_again_at:
            return
        await trio.to_thread.run_sync(self._give_back)
        self._least_bytes = self._last_bytes = own_bytes()
        was_worth_it = now_bytes - self._least_bytes >= _WORTH_BYTES
        self._look_again_at = now_s + _AGAIN_S if has_grown or was_worth_it else math.inf

    def _give_back(self) -> None:
        self._free_idle()
        give_back()
