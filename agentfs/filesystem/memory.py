"""Whether the machine is short of memory, and what of ours goes back to it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_SCARCE_SHARE = 0.1
"""Of RAM, below which what is available is scarce."""

_STALL_PERCENT = 10.0
"""Of the last ten seconds in which some program waited for memory, from which on it is."""

_MEMINFO = Path("/proc/meminfo")
_PRESSURE = Path("/proc/pressure/memory")


def is_scarce() -> bool:
    """By MemAvailable, and by pressure stall information where the kernel keeps it; 50 us."""
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    available, total = (int(fields[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    return available < _SCARCE_SHARE * total or _stalled_percent() >= _STALL_PERCENT


def _stalled_percent() -> float:
    try:
        some = _PRESSURE.read_text().splitlines()[0]
    except OSError:  # kernels may be built, or booted, without it
        return 0.0
    return float(some.split("avg10=")[1].split()[0])


_libc = ctypes.CDLL(None)
_M_MMAP_THRESHOLD = -3
"""From malloc.h."""


def map_from(size_bytes: int) -> None:
    """Let each allocation from that size on be a mapping of its own, and end with it.

    By itself glibc raises that limit to the largest that was freed, and keeps what is below it
    in a heap for each thread.
    """
    mallopt = getattr(_libc, "mallopt", None)  # not everybody's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size_bytes)


def give_back() -> None:
    """Return to the kernel what malloc keeps for later; some ms."""
    trim = getattr(_libc, "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
