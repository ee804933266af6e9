"""The filesystem testers of others, where the environment says they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., str]
Given = Callable[[str], Path]


@pytest.fixture
def open_to_all(mounted: Any) -> Iterator[None]:
    """Every directory above the mount can be passed through by other users."""
    changed = []
    for path in mounted.path.parents:
        mode = path.stat().st_mode
        if not mode & 0o001:
            path.chmod(mode | 0o001)
            changed.append((path, mode))
    yield
    for path, mode in changed:
        path.chmod(mode)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_fsx(mounted: Any, program: Program, given: Given, tmp_path: Path, seed: int) -> None:
    fsx = given("AGENTFS_FSX")
    operations = os.environ.get("AGENTFS_FSX_OPERATIONS", "20000")
    place = ["-P", tmp_path, mounted.path / "fsx"]
    program(fsx, "-q", "-N", operations, "-S", seed, *place, cwd=tmp_path)


@pytest.mark.timeout(600)
def test_fsstress(mounted: Any, program: Program, given: Given) -> None:
    fsstress = given("AGENTFS_FSSTRESS")
    operations = os.environ.get("AGENTFS_FSSTRESS_OPERATIONS", "2000")
    work = mounted.path / "fsstress"
    work.mkdir()
    program(fsstress, "-d", work, "-n", operations, "-p", 4, "-s", 42)
    before = program("find", work, "-printf", "%P %y %m %s %l %n\\n")
    mounted.remount()
    assert program("find", work, "-printf", "%P %y %m %s %l %n\\n") == before
    assert "Traceback" not in mounted.log()


@pytest.mark.timeout(1200)
def test_pjdfstest(
    mounted: Any, program: Program, given: Given, open_to_all: None, tmp_path: Path
) -> None:
    runner = given("AGENTFS_PJDFSTEST")
    if os.geteuid() != 0:
        pytest.skip("pjdfstest needs root")
    environment = os.environ | {"PJD_JOBS": "4", "PJD_LOG": str(tmp_path / "tap")}
    summary = program(runner, mounted.path, timeout=1100, env=environment)
    assert "Failed" not in summary
    assert "Traceback" not in mounted.log()
