"""Power goes at any moment under busy programs: what was fsynced is there, and nothing is torn."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest

from agentfs.index import Index
from fakes.acl import ACCESS, packed
from fakes.history import History, Seen
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


@contextmanager
def compacting(mounted: Any) -> Iterator[None]:
    """The store is packed meanwhile, and its index; the command ends as it may."""
    command = [sys.executable, "-m", "agentfs.cli", "compact", mounted.store]
    with subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL, cwd="/") as program:
        yield
        program.kill()


def test_a_power_cut_at_any_moment_loses_nothing_fsynced_and_tears_nothing(
    make_disk: MakeDisk, mount_store: Any, tmp_path: Path, seed: int, mode: str
) -> None:
    disk = make_disk("xfs" if seed % 2 else "ext4")
    mounted = mount_store()
    rng = random.Random(seed)
    load = Load(mounted.path, tmp_path / "logs", WRITERS, seed, mode)
    for cut in range(CUTS):
        with load.running(), compacting(mounted) if cut % 2 else nullcontext():
            time.sleep(rng.uniform(0.3, 2.0))
            load.power_fails()
            disk.cut_power()
            mounted.kill()
        restart(mounted, disk)
        load.check(lambda history: history.after_cut, f"cut {cut}")
    assert_consistent(mounted)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_comes_back_though_another_mount_namespace_has_the_disk(
    make_disk: MakeDisk, kind: str
) -> None:
    disk = make_disk(kind)
    (disk.path / "file").write_bytes(b"synced")
    os.sync()
    program = ["unshare", "--mount", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.read(1)
        try:
            disk.cut_power()
            disk.restart()
            assert (disk.path / "file").read_bytes() == b"synced"
            (disk.path / "file").write_bytes(b"new")
        finally:
            other.kill()


def test_an_fsync_promises_nothing_that_was_answered_after_the_power_failed(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    old = {"a": Seen(1, 0o644, b"old"), "b": Seen(2, 0o644, b"")}
    done = [("rename", "b", "a"), ("create", "b"), ("fsync", "b")]
    log.write_text("".join(f"{json.dumps(op)}\nok {at}.5\n" for at, op in enumerate(done)))
    for power_fails_at in (2.0, 3.0):
        history = History.read(log, old, msync_reaches_us=True, power_fails_at=power_fails_at)
        is_allowed = history.after_cut(old) is None
        assert is_allowed == (power_fails_at < 2.5)


def replace(path: Path, data: bytes, mode: int = 0o644, *, another: Path | None = None) -> None:
    """Write beside a file and rename over it; nothing is fsynced."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.chmod(mode)
    if another is not None:
        os.link(new, another)
    new.rename(path)


def test_a_file_renamed_over_another_is_the_old_or_the_new_one_whole(
    make_disk: MakeDisk, mount_store: Any
) -> None:
    """The names reach the disk, as fsync of the directory says; the bytes only if they must."""
    disk = make_disk("ext4")
    mounted = mount_store()
    root = mounted.path
    old, new = b"old" * 3000, b"new" * 5000
    names = ("plain", "more may read", "two names", "linked later", "chmod later", "moved on")
    names += ("list later",)
    for name in names:
        (root / name).write_bytes(old)
        (root / name).chmod(0o600 if name == "more may read" else 0o644)
    mounted.agentfs("sync", root)
    for name in names:
        replace(root / name, new, another=root / "second" if name == "two names" else None)
    os.link(root / "linked later", root / "third")
    (root / "chmod later").chmod(0o666)
    os.setxattr(root / "list later", ACCESS, packed("u::rw- u:4001:r-- g::r-- m::r-- o::r--"))
    (root / "moved on").rename(root / "elsewhere")
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    disk.cut_power()
    restart(mounted, disk)
    found = {path.name: path.read_bytes() for path in root.iterdir()}
    assert found.pop("elsewhere") in (b"", new), "it never showed what it replaced elsewhere"
    assert found.pop("plain") in (old, new)
    sealed = ("more may read", "two names", "second", "linked later", "third", "chmod later")
    assert found == dict.fromkeys((*sealed, "list later"), new)
    assert_consistent(mounted)
