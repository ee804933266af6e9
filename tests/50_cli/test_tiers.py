"""`agentfs pin`, `unpin` and `warm`: what they answer, and what is said when they cannot."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import NoSuchPath, NotMounted, UsageError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def directory(mounted: Any) -> Path:
    path: Path = mounted.path / "prompts"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_bytes(os.urandom(100_000))
    mounted.agentfs("sync", mounted.path)
    mounted.remount()
    return path


def test_warming_a_directory_brings_all_its_files(directory: Path, run: Run, mode: str) -> None:
    done = run("warm", directory)
    assert done.stdout == f"agentfs: {directory} is warm (2 files, 195 KiB)\n", done.stderr
    expected = {"relay": b"hot", "plain": b"warm"}[mode]
    for name in ("a", "b"):
        assert os.getxattr(directory / name, "user.agentfs.tier") == expected


def test_pinning_is_an_attribute_and_warms(directory: Path, run: Run) -> None:
    answer = json.loads(run("pin", directory / "a", "--json").stdout)
    assert answer == {
        "path": str(directory / "a"),
        "files": 1,
        "bytes": 100_000,
        "left_files": 0,
        "left_bytes": 0,
    }
    assert os.getxattr(directory / "a", "user.agentfs.pin") == b"1"
    assert run("unpin", directory / "a").stdout.endswith("is not pinned now\n")
    assert os.listxattr(directory / "a") == []


def test_what_has_no_room_is_named(mount_store: Any, run: Run, mode: str) -> None:
    mounted = mount_store("--hot-bytes", "1MiB", name="small")
    path = mounted.path / "x"
    path.write_bytes(os.urandom(2 << 20))
    mounted.agentfs("sync", mounted.path)
    mounted.remount()
    done = run("pin", path)
    assert ("no room for 1 files, 2.00 MiB" in done.stdout) == (mode == "relay"), done.stdout


def test_what_is_wrong_is_said_in_a_line(directory: Path, run: Run, tmp_path: Path) -> None:
    for kind, words in (
        (NotMounted, ("pin", tmp_path)),
        (NoSuchPath, ("warm", directory / "missing")),
        (UsageError, ("unpin", directory)),
    ):
        done = run(*words)
        assert (done.returncode, done.stdout) == (kind.exit_code, ""), words
        assert done.stderr.count("\n") == 1
