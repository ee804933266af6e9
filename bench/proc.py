"""Figures of /proc: of the machine, of a process, of a process and all below it."""

from collections.abc import Iterator
from pathlib import Path


def field(file: str, name: str) -> str | None:
    """What a file says behind `NAME:`, the first time; None: nothing."""
    for line in Path(file).read_text().splitlines():
        found, colon, text = line.partition(":")
        if colon and found.strip() == name:
            return text.strip()
    return None


def field_bytes(file: str, name: str) -> int:
    """The same of a field in kB. KeyError: there is none."""
    text = field(file, name)
    if text is None:
        raise KeyError(name)
    return int(text.split()[0]) * 1024


def machine_bytes(name: str) -> int:
    """A figure of /proc/meminfo."""
    return field_bytes("/proc/meminfo", name)


def processes(top: int) -> Iterator[int]:
    """A process and all below it."""
    yield top
    for task in Path(f"/proc/{top}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))
