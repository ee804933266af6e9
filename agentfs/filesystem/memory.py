"""Whether the machine is short of memory."""

from __future__ import annotations

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
