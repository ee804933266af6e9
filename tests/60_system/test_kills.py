"""The daemon is killed at any moment under busy programs: nothing that was done is lost."""

from __future__ import annotations

import random
import shutil
import time
from typing import Any

import pytest

from fakes.load import Load

KILLS = 5
WRITERS = 8
SEGMENT_HEADER_BYTES = 32


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(20 if metafunc.config.getoption("--soak") else 1))


def test_a_kill_at_any_moment_loses_nothing_that_was_done(
    mounted: Any, tmp_path: Any, seed: int, mode: str
) -> None:
    rng = random.Random(seed)
    load = Load(mounted.path, tmp_path / "logs", WRITERS, seed, mode)
    for kill in range(KILLS):
        with load.running():
            time.sleep(rng.uniform(0.3, 2.0))
            mounted.kill()
        mounted.mount()
        load.check(lambda history: history.after_kill, f"kill {kill}")
    mounted.remount()
    load.check(lambda history: history.after_kill, "an orderly end")
    assert_no_orphans(mounted)


def assert_no_orphans(mounted: Any) -> None:
    """Every reference counts right, and when the last file has gone so has all that was kept."""
    mounted.agentfs("gc", mounted.store)
    mounted.agentfs("fsck", mounted.store)  # fails on findings
    for path in mounted.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    mounted.remount()  # nothing is open any more, and staged files have been dealt with
    mounted.agentfs("gc", mounted.store)
    mounted.agentfs("fsck", mounted.store)
    stats = mounted.stats()
    assert stats["logical_bytes"] == stats["unique_bytes"] == stats["garbage_bytes"] == 0
    assert stats["staged_files"] == stats["resident_bytes"] == 0
    assert stats["segment_bytes"] <= SEGMENT_HEADER_BYTES
