"""The daemon is killed at any moment under busy programs: nothing that was done is lost."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from fakes.load import Load
from fakes.recount import assert_no_orphans

KILLS = 5
WRITERS = 8


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
