"""Memory that gets short in a mount: the forecast acts before the budget is hit."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MountStore, wait_until

MIB = 1 << 20
BUDGET = 64 * MIB
FILE_BYTES = MIB
FILES = 160
PAUSE_S = 0.03
"""At full speed the budget is used up between two looks of the daemon."""


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """A profile with little room, by which nothing is sealed unless something calls for it."""
    profile = tmp_path / "little.toml"
    profile.write_text(
        f"[hot]\nbytes = {BUDGET}\n[seal]\nrest_s = 3600.0\nopen_rest_s = 3600.0\n"
        # What else runs on the machine is not to call for it.
        "[pressure]\navailable_share = 0.0\nstalled_share = 1.0\n"
    )
    return profile


def entered(figures: dict[str, Any]) -> int:
    """How often files began to be sealed early."""
    return int(figures["pressure_entered"]["seal and evict early"])


def test_growth_is_met_before_the_budget_is_hit(mount_store: MountStore, little: Path) -> None:
    mounted = mount_store("--profile", little)
    data = os.urandom(FILE_BYTES)
    for number in range(FILES):
        (mounted.path / str(number)).write_bytes(number.to_bytes(8, "big") + data[8:])
        time.sleep(PAUSE_S)
        if number % 8 == 7:
            figures = mounted.stats()
            assert figures["resident_bytes"] <= BUDGET
            if entered(figures):  # on a busy machine seals are slower than we are
                wait_until(lambda: mounted.stats()["staged_bytes"] < BUDGET // 2)
    figures = mounted.stats()
    assert entered(figures) >= 1
    assert figures["tmpfs_refusals"] == 0, "nothing had to go to disk"
    assert figures["writer_waits"] == 0, "and nobody had to wait"
    [staged] = re.findall(r"seal and evict early, was .*?staged on tmpfs (\d+)%", mounted.log())[:1]
    assert int(staged) < 75, "the rate, not what was staged"
    for number in range(FILES):
        assert (mounted.path / str(number)).read_bytes()[:8] == number.to_bytes(8, "big")
    wait_until(lambda: mounted.stats()["pressure"] == "normal")


def test_writers_are_slowed_while_tmpfs_is_full_and_no_longer(
    mount_store: MountStore, little: Path
) -> None:
    mounted = mount_store("--profile", little)
    with (mounted.path / "large").open("wb", buffering=0) as large:
        for _ in range(63):  # of 64
            large.write(os.urandom(MIB))
        wait_until(lambda: mounted.stats()["pressure"] == "slow writers")
        assert mounted.stats()["pressure_causes"] == ["tmpfs"]
        for number in range(3):
            (mounted.path / f"small-{number}").write_bytes(b"slow")
            assert (mounted.path / f"small-{number}").read_bytes() == b"slow"
        figures = mounted.stats()
        assert figures["writer_waits"] >= 3, "each waited"
        assert figures["resident_bytes"] == 63 * MIB, "and went to disk"
        large.write(b"end")
    wait_until(lambda: mounted.stats()["pressure"] == "normal")
    waits = mounted.stats()["writer_waits"]
    (mounted.path / "fast").write_bytes(b"fast")
    assert mounted.stats()["writer_waits"] == waits
    assert (mounted.path / "large").read_bytes()[-3:] == b"end"
