"""The structures and numbers that agentfs gives the kernel are the kernel's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentfs.fuse.abi import Opcode


def test_opcodes_are_those_of_the_kernel() -> None:
    header = Path("/usr/include/linux/fuse.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    found = re.findall(r"^\tFUSE_(\w+)\s*= (\d+),", header.read_text(), flags=re.MULTILINE)
    known = {name: int(number) for name, number in found}
    ours = {opcode.name: int(opcode) for opcode in Opcode if opcode.name in known}
    assert ours.items() <= known.items()
    assert set(Opcode) - set(map(Opcode, ours.values())) <= {Opcode.COPY_FILE_RANGE_64}, (
        "headers of before Linux 6.18 lack it"
    )
