"""Through the kernel: every test here works in a real mount."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., "subprocess.Popen[str]"]
RunAs = Callable[..., str]


@pytest.fixture
def mnt(mounted: Any) -> Path:
    """The mounted directory."""
    path: Path = mounted.path
    return path


@pytest.fixture
def as_root() -> None:
    """Skip a test that needs rights only root has."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


_TO_ALL = stat.S_IXGRP | stat.S_IXOTH


@pytest.fixture
def open_to_all(tmp_path: Path) -> None:
    """Let other users through to the mount, for good: other tests have the same directories."""
    path = tmp_path
    while path != path.parent and path.stat().st_uid == os.geteuid():
        mode = path.stat().st_mode
        if mode | _TO_ALL != mode:
            path.chmod(mode | _TO_ALL)
        path = path.parent


def start_script(
    script: str, *arguments: object, uid: int | None = None, groups: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Run Python in another process, as another user if asked."""
    head = "import os, sys, mmap\n"
    if uid is not None:  # only now: the interpreter may lie where others cannot go
        head += f"os.setgroups({list(groups)}); os.setgid({uid}); os.setuid({uid})\n"
    return subprocess.Popen(
        [sys.executable, "-I", "-c", head + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def script() -> Script:
    """`script(code, arguments, uid=...)` starts Python on *code*."""
    return start_script


@pytest.fixture
def run_as(script: Script) -> RunAs:
    """`run_as(uid, code, arguments, groups=...)` runs Python as a user; what it printed."""

    def run(uid: int, code: str, *arguments: object, groups: tuple[int, ...] = ()) -> str:
        child = script(code, *arguments, uid=uid, groups=groups)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0, out
        return str(out)

    return run
