"""Memory that gets short in a mount: the forecast acts before the budget is hit."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from conftest import MountStore, wait_until

MIB = 1 << 20
BUDGET = 64 * MIB
FILE_BYTES = MIB
FILES = 160


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
        if number % 8 == 7:
            figures = mounted.stats()
            assert figures["resident_bytes"] <= BUDGET
    figures = mounted.stats()
    assert entered(figures) >= 1
    assert figures["tmpfs_refusals"] == 0, "nothing had to go to disk"
    assert figures["writer_waits"] == 0, "and nobody had to wait"
    [staged] = re.findall(r"seal and evict early, was .*?staged on tmpfs (\d+)%", mounted.log())[:1]
    assert int(staged) < 75, "the rate, not what was staged"
    for number in range(FILES):
        assert (mounted.path / str(number)).read_bytes()[:8] == number.to_bytes(8, "big")
    wait_until(lambda: mounted.stats()["pressure"] == "normal")
