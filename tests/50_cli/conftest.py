"""The command in a process of its own, with or without a real daemon behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import agentfs

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]

COMMAND_LIMIT_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment whose default store is below tmp_path (unless root)."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AGENTFS_")}
    source = str(Path(agentfs.__file__).resolve().parents[1])
    return kept | {"PYTHONPATH": source, "XDG_DATA_HOME": str(tmp_path / "data"), "TERM": "dumb"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run `agentfs` and return how it ended."""

    def run_(*arguments: str | Path, **extra: str) -> Result:
        return start(["-m", "agentfs.cli"], arguments, environment | extra)

    return run_


@pytest.fixture
def run_fake(environment: dict[str, str]) -> Run:
    """Run `agentfs` with a daemon that does as FAKE_DAEMON says, without FUSE."""

    def run_(*arguments: str | Path, behaviour: str) -> Result:
        script = Path(__file__).with_name("fake_daemon.py")
        return start([str(script)], arguments, environment | {"FAKE_DAEMON": behaviour})

    return run_


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def start(
    program: list[str], arguments: tuple[str | Path, ...], environment: dict[str, str]
) -> Result:
    """Run Python on *program* with nothing on stdin."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_LIMIT_S,
        env=environment,
    )
