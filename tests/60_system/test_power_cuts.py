"""Power goes at any moment under busy programs: what was fsynced is there, and nothing is torn."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentfs.index import Index
from fakes.load import Load
from fakes.power import LoopDisk
from fakes.recount import miscounts

CUTS = 5
WRITERS = 4

MakeDisk = Callable[[str], LoopDisk]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    soak = metafunc.config.getoption("--soak")
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(10 if soak else 1))


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """The disk that the store is on, with a filesystem of the given kind."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    disks = []

    def make(kind: str) -> LoopDisk:
        disks.append(LoopDisk(tmp_path / "agentmem.store", kind))
        return disks[0]

    yield make
    for disk in disks:
        disk.remove()


def restart(mounted: Any, disk: LoopDisk) -> None:
    """Power is back: the machine has another boot, and nothing on its tmpfs."""
    mounted.kill()
    mounted.lose_tmpfs()
    disk.restart()
    boot = mounted.store / "boot"
    if boot.exists():
        boot.write_text("an earlier boot\n")
    mounted.mount()


def assert_consistent(mounted: Any) -> None:
    """The store is in order, with nothing repaired."""
    mounted.umount()
    index = Index(mounted.store, read_only=True)
    try:
        assert not miscounts(index)
    finally:
        index.close()
    mounted.mount()


def test_a_power_cut_at_any_moment_loses_nothing_fsynced_and_tears_nothing(
    make_disk: MakeDisk, mount_store: Any, tmp_path: Path, seed: int, mode: str
) -> None:
    disk = make_disk("xfs" if seed % 2 else "ext4")
    mounted = mount_store()
    rng = random.Random(seed)
    load = Load(mounted.path, tmp_path / "logs", WRITERS, seed, mode)
    for cut in range(CUTS):
        with load.running():
            time.sleep(rng.uniform(0.3, 2.0))
            disk.cut_power()
            mounted.kill()
        restart(mounted, disk)
        load.check(lambda history: history.after_cut, f"cut {cut}")
    assert_consistent(mounted)
