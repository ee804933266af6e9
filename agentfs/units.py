"""How quantities are written for people."""

from __future__ import annotations


def size(count_bytes: float) -> str:
    """Return bytes in a binary unit with three digits: 0 B, 9.91 MiB, 1.20 TiB."""
    if count_bytes < 1024:
        return f"{count_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count_bytes /= 1024
        if count_bytes < 1023.5 or unit == "TiB":
            break
    digits = 2 if count_bytes < 9.995 else 1 if count_bytes < 99.95 else 0
    return f"{count_bytes:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: 4 s, 3 min 20 s, 2 d 5 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
