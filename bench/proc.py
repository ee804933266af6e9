"""Figures of /proc: of the machine, of a process, of a process and all below it."""

import mmap
import time
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


def available_bytes() -> int:
    """MemAvailable with the free pages that it does not count: those in lists of each processor,
    hundreds of MB that go back in half a minute, and those that a virtual machine is just reporting
    to its host. The latter are back at once, so this is the most of two seconds.
    """
    return max(_available_now_bytes() for _ in range(20))


def _available_now_bytes() -> int:
    time.sleep(0.1)
    lists = [line.split() for line in Path("/proc/zoneinfo").read_text().splitlines()]
    free_pages = sum(int(words[1]) for words in lists if words[:1] == ["count:"])
    return machine_bytes("MemAvailable") + free_pages * mmap.PAGESIZE


def processes(top: int) -> Iterator[int]:
    """A process and all below it."""
    yield top
    for task in Path(f"/proc/{top}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))
