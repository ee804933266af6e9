"""What is freed goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from agentfs.filesystem import memory

KEEPS = """
import sys
from agentfs.filesystem import memory

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

if "map" in sys.argv:
    memory.map_from(4 << 20)
before, held = resident_kib(), []
b"x" * (8 << 20)
for number in range(4):
    large = b"x" * (8 << 20)
    held.append(b"y" * 100_000)  # lies above it, if it is in the heap
    del large
if "give" in sys.argv:
    memory.give_back()
print(resident_kib() - before)
"""


def kept_kib(*what: str) -> int:
    command = [sys.executable, "-c", KEEPS, *what]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_glibc_keeps_what_was_freed_unless_it_is_told_not_to() -> None:
    assert kept_kib() > 6000
    assert kept_kib("map") < 2000
    assert kept_kib("give") < 2000


async def test_the_heap_is_given_back_when_it_has_grown_and_once_more_when_less_is_in_use(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    used, kept, given = 100, 0, []

    def give_back() -> None:
        nonlocal kept
        kept = 0
        given.append(used)

    monkeypatch.setattr(memory, "own_bytes", lambda: used + kept << 20)
    monkeypatch.setattr(memory, "give_back", give_back)
    heap = memory.Heap(lambda: None)
    for used in (131, 133):  # noqa: B007
        await heap.tidy()
    assert given == [133]
    used, kept = 80, 50
    await heap.tidy()
    assert given == [133], "what is freed now is not known at once"
    for _ in range(5):
        await trio.sleep(10)
        await heap.tidy()
    assert given == [133, 80, 80], "the last brought nothing"


async def test_a_little_is_given_back_when_the_heap_neither_grows_nor_shrinks(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    used, given = 100, []
    monkeypatch.setattr(memory, "own_bytes", lambda: used << 20)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(used))
    heap = memory.Heap(lambda: None)
    for used in (102, 104, 103):  # noqa: B007
        await heap.tidy()
    assert not given
    await heap.tidy()
    assert given == [103]
    for _ in range(3):
        await trio.sleep(10)
        await heap.tidy()
    assert given == [103, 103], "it is in use"
