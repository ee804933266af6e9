"""A damaged store under a real mount: what programs see, what fsck says, and how it heals."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import DamageFound, NotMounted, StoreBusy, StoreDamaged
from agentfs.model import Location
from fakes.damage import blocks, damage_block, flip
from tests.conftest import Mounted, run_agentfs

MIB = 1 << 20


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def fsck(target: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = run_agentfs("fsck", target, "--json", *options)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def damage_third_block(store: Path) -> None:
    segment, offset, _ = blocks(store)[2]
    damage_block(store, Location(segment, offset, 0, 0))


@pytest.fixture
def damaged(mounted: Mounted) -> Mounted:
    """`large` and its copy `twin`, 4 MiB with a damaged block in the middle; `other`."""
    (mounted.path / "large").write_bytes(noise(1, 4 * MIB))
    mounted.agentfs("sync", mounted.store)
    (mounted.path / "twin").write_bytes(noise(1, 4 * MIB))
    (mounted.path / "other").write_bytes(noise(2, 100_000))
    mounted.umount()
    damage_third_block(mounted.store)
    mounted.mount()
    return mounted


def lost_pages(path: Path, expected: bytes) -> list[int]:
    """Offsets of the pages that give EIO; all others are right."""
    lost = []
    fd = os.open(path, os.O_RDONLY)
    try:
        for offset in range(0, len(expected), 4096):
            try:
                assert os.pread(fd, 4096, offset) == expected[offset : offset + 4096]
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                lost.append(offset)
    finally:
        os.close(fd)
    return lost


def test_programs_get_EIO_for_what_is_damaged_and_all_else(damaged: Mounted) -> None:  # noqa: N802
    lost = lost_pages(damaged.path / "large", noise(1, 4 * MIB))
    assert lost
    assert max(lost) - min(lost) <= MIB + 8192, "one block"
    assert (damaged.path / "other").read_bytes() == noise(2, 100_000)


def test_fsck_of_a_mount_names_the_files_and_writing_them_again_heals(damaged: Mounted) -> None:
    code, report = fsck(damaged.path)
    assert code == DamageFound.exit_code
    assert [file["path"] for file in report["files"]] == ["/large", "/twin"]
    assert report["totals"]["damaged_blocks"] == 1
    assert lost_pages(damaged.path / "twin", noise(1, 4 * MIB))
    (damaged.path / "again").write_bytes(noise(1, 4 * MIB))
    damaged.agentfs("sync", damaged.store)
    assert lost_pages(damaged.path / "twin", noise(1, 4 * MIB)) == []
    assert fsck(damaged.path)[0] == 0
    damaged.remount()
    assert (damaged.path / "large").read_bytes() == noise(1, 4 * MIB)


def test_a_file_with_lost_bytes_can_be_replaced_and_removed(damaged: Mounted) -> None:
    (damaged.path / "large").write_bytes(b"something else")
    (damaged.path / "twin").unlink()
    damaged.agentfs("sync", damaged.store)
    assert (damaged.path / "large").read_bytes() == b"something else"
    damaged.agentfs("gc", damaged.store)
    assert fsck(damaged.path)[0] == 0


def test_fsck_says_the_same_of_a_store_that_is_not_mounted(damaged: Mounted) -> None:
    damaged.umount()
    code, report = fsck(damaged.store)
    assert code == DamageFound.exit_code
    assert [file["path"] for file in report["files"]] == ["/large", "/twin"]
    text = run_agentfs("fsck", damaged.store)
    assert "/twin" in text.stdout
    assert "2 files have lost bytes" in text.stdout


def test_an_index_with_a_damaged_page_is_repaired(mounted: Mounted) -> None:
    for number in range(200):
        (mounted.path / f"{number}.json").write_bytes(noise(number, 2_000))
    mounted.umount()
    flip(mounted.store / "index.db", 50)
    refused = run_agentfs("mount", mounted.path, "--store", mounted.store)
    assert refused.returncode == StoreDamaged.exit_code
    assert "agentfs fsck --repair" in refused.stderr
    code, report = fsck(mounted.store)
    assert code == DamageFound.exit_code
    assert "1 pages of the index are damaged: 1" in report["findings"][0]
    code, report = fsck(mounted.store, "--repair")
    assert code == 0, report
    assert "the index was rebuilt" in report["repaired"][0]
    mounted.mount()
    for number in range(200):
        assert (mounted.path / f"{number}.json").read_bytes() == noise(number, 2_000)
    assert fsck(mounted.path)[0] == 0


def test_a_store_in_use_has_one_owner(mounted: Mounted, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    second = run_agentfs("mount", tmp_path / "elsewhere", "--store", mounted.store)
    assert second.returncode == StoreBusy.exit_code
    assert str(mounted.pid) in second.stderr
    repair = run_agentfs("fsck", "--repair", mounted.store)
    assert repair.returncode == StoreBusy.exit_code
    assert "agentfs umount" in repair.stderr


def test_the_lock_of_a_dead_daemon_holds_nobody_up(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"x" * 10_000)
    mounted.agentfs("sync", mounted.store)
    mounted.kill()
    assert (mounted.store / "lock").read_text().strip()
    assert fsck(mounted.store)[0] == 0
    assert fsck(mounted.store, "--repair")[0] == 0
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x" * 10_000


def test_gc_of_a_store_without_a_daemon_says_so(mounted: Mounted) -> None:
    mounted.umount()
    assert run_agentfs("gc", mounted.store).returncode == NotMounted.exit_code
