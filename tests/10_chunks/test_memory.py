"""What is freed goes back to the kernel."""

import subprocess
import sys

import pytest

HOLDS = """
import sys
from agentfs.chunks import map_from

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

if sys.argv[1:]:
    map_from(int(sys.argv[1]))
before, held = resident_kib(), []
b"x" * (8 << 20)
for number in range(4):
    large = b"x" * (8 << 20)
    held.append(b"y" * 100_000)  # lies above it, if it is in the heap
    del large
print(resident_kib() - before)
"""


def kept_kib(*arguments: str) -> int:
    command = [sys.executable, "-c", HOLDS, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_what_is_mapped_is_given_back_when_it_is_freed() -> None:
    assert kept_kib(str(4 << 20)) < 2000
    assert kept_kib() > 6000, "else nobody needs map_from"


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_what_is_no_size_is_refused(size: int) -> None:
    from agentfs.chunks import map_from

    with pytest.raises(ValueError, match="no size"):
        map_from(size)
