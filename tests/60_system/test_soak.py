"""Hours of one store under programs, kills, collection and compaction: nothing is left over."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import pytest

from fakes.load import Load
from fakes.recount import assert_no_orphans

WRITERS = 8
SHORT_S = 8.0
SOAK_S = 3600.0
LIFE_S = (2.0, 20.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seconds = SOAK_S if metafunc.config.getoption("--soak") else SHORT_S
    metafunc.parametrize("seconds", [pytest.param(seconds, marks=pytest.mark.timeout(3 * seconds))])


def test_after_hours_every_reference_counts_right_and_nothing_is_left_over(
    mounted: Any, tmp_path: Any, mode: str, seconds: float
) -> None:
    rng = random.Random(seconds)
    load = Load(mounted.path, tmp_path / "logs", WRITERS, 1, mode)
    began = time.monotonic()
    lives = 0
    while time.monotonic() - began < seconds:
        with load.running():
            for command in rng.sample(["gc", "compact", "sync", "fsck"], rng.randint(0, 2)):
                time.sleep(rng.uniform(0.5, LIFE_S[0]))
                mounted.agentfs(command, mounted.store)
            time.sleep(min(rng.uniform(*LIFE_S), seconds / 4))
            mounted.kill()
        mounted.mount()
        lives += 1
        load.check(lambda history: history.after_kill, f"kill {lives}")
    print(f"{lives} kills, {load.operations} operations", file=sys.stderr)
    assert_no_orphans(mounted)
