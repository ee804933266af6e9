"""Staged files: on tmpfs, on disk when there is no room, and found again after a kill."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from agentfs.errors import StoreUnusable
from agentfs.filesystem import ranges, staging
from agentfs.filesystem.ranges import data_extents
from agentfs.filesystem.staging import Staging
from fakes.recount import miscounts
from fakes.volumes import MIB, Machine, Shell, profile

NUMBER = "0" * 32


@pytest.fixture
def staged(machine: Machine) -> Staging:
    return Staging(machine.store, NUMBER, budget_bytes=1 << 20)


@pytest.fixture
def small_tmpfs(machine: Machine) -> Iterator[Path]:
    """A real tmpfs of 1 MiB where staging looks for one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    options = ["-t", "tmpfs", "-o", "size=1m"]
    if subprocess.run(["mount", *options, "agentfs-test", machine.tmpfs], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield machine.tmpfs
    machine.close()
    subprocess.run(["umount", "-l", machine.tmpfs], check=True)


def test_a_survivor_is_found_with_its_bytes(staged: Staging, machine: Machine) -> None:
    file = staged.create(0xABC)
    os.pwrite(file.descriptor(), b"unsealed", 0)
    file.close()
    again = Staging(machine.store, NUMBER, budget_bytes=1 << 20)
    [(number, survivor, _)] = again.survivors()
    assert number == 0xABC
    assert os.pread(survivor.descriptor(), 100, 0) == b"unsealed"
    assert again.used_bytes == 8
    survivor.close()


def test_an_incomplete_copy_is_no_survivor(staged: Staging, machine: Machine) -> None:
    file = staged.create_incomplete(1, 10)
    os.pwrite(file.descriptor(), b"half", 0)
    file.close()
    again = Staging(machine.store, NUMBER, budget_bytes=1 << 20)
    assert not list(again.survivors())
    assert not machine.staged_names()


def test_a_complete_copy_is_a_survivor(staged: Staging, machine: Machine) -> None:
    file = staged.create_incomplete(1, 10)
    staged.complete(file)
    file.close()
    again = Staging(machine.store, NUMBER, budget_bytes=1 << 20)
    assert [number for number, _, _ in again.survivors()] == [1]


def test_what_does_not_fit_the_budget_goes_to_disk(staged: Staging, machine: Machine) -> None:
    file = staged.create(1, size_bytes=2 << 20)
    assert file.on_disk
    assert os.listdir(machine.store / "staging") == ["1"]
    staged.discard(file)
    assert not machine.staged_names()


def test_moving_to_disk_keeps_bytes_holes_and_times(staged: Staging, machine: Machine) -> None:
    file = staged.create(1)
    os.pwrite(file.descriptor(), b"end", 4 * MIB)
    os.utime(file.descriptor(), ns=(11, 22))
    staged.count(file, 4 * MIB + 3)
    staged.switch_to_disk(file, staged.copy_to_disk(file))
    status = os.fstat(file.descriptor())
    assert (status.st_size, status.st_mtime_ns) == (4 * MIB + 3, 22)
    assert os.pread(file.descriptor(), 3, 4 * MIB) == b"end"
    assert status.st_blocks * 512 <= 64 * 1024
    assert (file.on_disk, staged.used_bytes) == (True, 0)
    assert machine.staged_names() == ["1"]
    file.close()


def test_a_kill_in_the_middle_of_a_move_leaves_one_copy(machine: Machine) -> None:
    """Both copies are there: the move had been finished but for removing the first."""
    shell = machine.open()
    number = shell.mknod("/a", 0o100644).id
    machine.kill()
    [fast] = machine.tmpfs.iterdir()
    for place in (fast, machine.store / "staging"):
        (place / f"{number:x}").write_bytes(b"both")
    assert machine.open().volume.table.live(number) is not None
    assert len(machine.staged_names()) == 1


async def test_a_copy_left_by_a_move_never_comes_back_over_newer_bytes(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"old")
    number = shell.inode("/a").id
    machine.kill()
    (machine.store / "staging" / f"{number:x}").write_bytes(b"old")
    shell = machine.open()
    await shell.write("/a", b"new")
    await machine.unmount()
    shell = machine.open()
    assert await shell.read("/a") == b"new"
    await machine.unmount()
    assert not (machine.store / "staging" / f"{number:x}").exists()


def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a directory away takes root")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(StoreUnusable, match="belongs to someone else"):
        staging.open_private_directory(theirs)


def test_nobody_else_can_enter_the_directories(staged: Staging, machine: Machine) -> None:
    places = [machine.store / "staging", *machine.tmpfs.iterdir()]
    assert [place.stat().st_mode & 0o777 for place in places] == [0o700, 0o700]


def test_the_directory_on_tmpfs_goes_when_it_is_empty(machine: Machine) -> None:
    machine.open()
    assert list(machine.tmpfs.iterdir())
    machine.close()
    assert not list(machine.tmpfs.iterdir())


@pytest.fixture
def own_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where stores that root mounts have a tmpfs each; the fixture's own place for it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    place = tmp_path / "run"
    monkeypatch.setattr(staging, "OWN_TMPFS", place)
    yield place
    for left in place.iterdir():
        subprocess.run(["umount", "--lazy", left], check=False)


def privately_staged(store: Path, store_id: str) -> Staging:
    store.mkdir()
    try:
        return Staging(store, store_id, budget_bytes=1 << 20, private=True)
    except StoreUnusable:
        pytest.skip("no tmpfs can be mounted here")


def test_a_tmpfs_of_ones_own_goes_when_it_is_empty(own_tmpfs: Path, machine: Machine) -> None:
    staged = privately_staged(machine.store / "a", "a")
    assert os.path.ismount(own_tmpfs / "a")
    staged.close()
    assert not list(own_tmpfs.iterdir())


def test_the_next_mount_gives_back_what_deleted_stores_left(
    own_tmpfs: Path, machine: Machine
) -> None:
    """What is staged there stays: the store may come back. So does what was never ours."""
    for name in ("deleted", "moved", "in-use"):
        staged = privately_staged(machine.store / name, name)
        staged.image_directory()
        if name == "moved":
            staged.create(1).close()
        if name != "in-use":
            (machine.store / name).rename(machine.store / f"{name}-away")
    (own_tmpfs / "killed-before-it-mounted").mkdir()
    (own_tmpfs / "strange" / "something").mkdir(parents=True)
    privately_staged(machine.store / "next", "next").close()
    assert sorted(os.listdir(own_tmpfs)) == ["in-use", "moved", "strange"]
    assert (own_tmpfs / "moved" / "1").exists()


def test_a_store_whose_disk_fails_is_not_gone_and_keeps_nobody_else_from_mounting(
    own_tmpfs: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = machine.store / "broken"
    privately_staged(broken, "broken")
    look = os.stat

    def fail(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if path == broken:
            raise OSError(errno.EIO, "the disk failed")
        return look(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        privately_staged(machine.store / "next", "next").close()
    assert os.listdir(own_tmpfs) == ["broken"]


def test_a_machine_without_tmpfs_stages_on_disk(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "TMPFS", machine.tmpfs / "missing")
    staged = Staging(machine.store, NUMBER, budget_bytes=1 << 30)
    file = staged.create(1)
    assert file.on_disk
    staged.discard(file)
    assert staged.used_bytes == 0
    staged.close()
    assert (machine.store / "staging").is_dir()


def test_extents_are_what_was_written(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb+") as file:
        fd = file.fileno()
        for start in (0, 5 * MIB):
            os.pwrite(fd, b"x" * 4096, start)
        os.ftruncate(fd, 9 * MIB)
        assert list(data_extents(fd, 9 * MIB)) == [(0, 4096), (5 * MIB, 5 * MIB + 4096)]
        assert list(data_extents(fd, 5 * MIB)) == [(0, 4096)]
        assert list(data_extents(fd, 100)) == [(0, 100)]


# Through a volume


async def test_a_file_that_outgrows_the_budget_moves_to_disk_and_goes_on(machine: Machine) -> None:
    shell = machine.open(profile(budget_bytes=MIB))
    handle = shell.open("/a", os.O_RDWR | os.O_CREAT)
    for number in range(40):
        await shell.volume.files.write(handle, number * 65536, bytes([number]) * 65536)
    staged = handle.file.staged
    assert staged is not None
    assert staged.on_disk
    assert shell.volume.staging.used_bytes == 0
    expected = b"".join(bytes([number]) * 65536 for number in range(40))
    assert await shell.read("/a") == expected
    shell.close(handle)
    await shell.sync()
    assert await shell.read("/a") == expected
    assert not machine.staged_names()


@pytest.fixture
def stopping_copy(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Copies stop when all is copied, which sets the first, until the second is set."""
    original = ranges.copy_range
    copied, go_on = trio.Event(), trio.Event()

    def slow_copy(source: int, target: int, start: int, end: int) -> None:
        original(source, target, start, end)
        trio.from_thread.run_sync(copied.set)
        trio.from_thread.run(go_on.wait)

    monkeypatch.setattr(ranges, "copy_range", slow_copy)
    return copied, go_on


async def test_bytes_written_while_the_file_moves_to_disk_are_kept(
    machine: Machine, stopping_copy: tuple[trio.Event, trio.Event]
) -> None:
    """The move copies in a thread; another write must not go to the copy that is left behind."""
    shell = machine.open(profile(budget_bytes=MIB))
    await shell.write("/a", b"." * MIB)
    handles = [shell.open("/a"), shell.open("/a")]
    copied, go_on = stopping_copy
    write = shell.volume.files.write
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, handles[0], MIB, b"grows")
        await copied.wait()
        nursery.start_soon(write, handles[1], 0, b"over")
        await trio.testing.wait_all_tasks_blocked(0.05)
        go_on.set()
    assert await shell.read("/a") == b"over" + b"." * (MIB - 4) + b"grows"
    for handle in handles:
        shell.close(handle)


async def test_bytes_cut_while_the_file_moves_to_disk_stay_cut(
    machine: Machine, stopping_copy: tuple[trio.Event, trio.Event]
) -> None:
    shell = machine.open(profile(budget_bytes=MIB))
    await shell.write("/a", b"." * MIB)
    handle = shell.open("/a")
    copied, go_on = stopping_copy
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.volume.files.write, handle, MIB, b"grows")
        await copied.wait()
        nursery.start_soon(shell.truncate, "/a", 10)
        await trio.testing.wait_all_tasks_blocked(0.05)
        go_on.set()
    size = shell.inode("/a").size
    assert size == os.fstat(handle.file.staged.descriptor()).st_size  # type: ignore[union-attr]
    assert size in (10, MIB + 5), "one after the other, in either order"
    shell.close(handle)


async def test_a_full_tmpfs_sends_a_growing_file_to_disk(
    small_tmpfs: Path, machine: Machine
) -> None:
    shell = machine.open()
    data = bytes(range(256)) * 4096
    for number in range(3):
        await shell.write(f"/{number}", data)
    assert [await shell.read(f"/{number}") for number in range(3)] == [data] * 3
    assert os.listdir(machine.store / "staging")
    await shell.sync()
    assert [await shell.read(f"/{number}") for number in range(3)] == [data] * 3


async def test_a_full_tmpfs_sends_the_copy_of_a_sealed_file_to_disk(
    small_tmpfs: Path, machine: Machine
) -> None:
    shell = machine.open()
    data = bytes(range(256)) * 3072
    for name in ("/a", "/b"):
        await shell.write(name, data + name.encode())
        await shell.sync()
    for name in ("/a", "/b"):
        await shell.append(name, b"more")
    for name in ("/a", "/b"):
        assert await shell.read(name) == data + name.encode() + b"more"
    await shell.sync()
    assert not miscounts(shell.volume.index)


async def test_the_count_of_bytes_on_tmpfs_follows_what_is_there(
    machine: Machine, shell: Shell
) -> None:
    def on_tmpfs() -> int:
        return sum(path.stat().st_size for path in machine.tmpfs.glob("*/[0-9a-f]*"))

    await shell.write("/a", b"x" * 1000)
    await shell.write("/a", b"y" * 100, 500)
    await shell.truncate("/a", 700)
    await shell.write("/b", b"z" * 300)
    assert shell.volume.staging.used_bytes == on_tmpfs() == 1000
    await shell.sync()
    assert shell.volume.staging.used_bytes == on_tmpfs() == 0
    await shell.append("/a", b"!")
    assert shell.volume.staging.used_bytes == on_tmpfs() == 701
    shell.unlink("/a")
    assert shell.volume.staging.used_bytes == on_tmpfs() == 0


async def test_a_failed_copy_leaves_the_sealed_file(
    machine: Machine, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.write("/a", b"sealed" * 1000)
    await shell.sync()

    def fail(fd: int, data: bytes, offset: int) -> None:
        raise OSError(errno.EIO, "the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr("agentfs.filesystem.contents.write_all", fail)
        with pytest.raises(OSError, match="the disk failed"):
            await shell.append("/a", b"more")
    assert not machine.staged_names()
    assert await shell.read("/a") == b"sealed" * 1000
    assert shell.volume.staging.used_bytes == 0


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EOPNOTSUPP, None])
def test_copies_keep_holes_also_between_filesystems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """A copy to *ahead* of where the bytes were, over what was there."""

    def refuse(*_: object) -> int:
        raise OSError(refusal, "between two filesystems")

    if refusal is not None:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    os.pwrite(source, b"x" * 10_000, 2 * MIB)
    os.ftruncate(source, 8 * MIB)
    os.pwrite(target, b"." * 3 * MIB, 0)
    try:
        assert ranges.copy_extents(source, target, MIB, 8 * MIB, -MIB) == 7 * MIB
        assert os.pread(target, 8 * MIB, 0) == (
            bytes(MIB) + b"x" * 10_000 + bytes(6 * MIB - 10_000)
        )
        assert os.fstat(target).st_blocks * 512 < MIB
        assert ranges.copy_extents(source, target, MIB, 8 * MIB, 93 * MIB) == 7 * MIB
        assert os.fstat(target).st_size == 101 * MIB
    finally:
        os.close(source)
        os.close(target)


def test_what_was_copied_before_the_disk_was_full_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1]

    def full(source: int, target: int, start: int, end: int, ahead: int) -> int:
        if not left:
            raise OSError(errno.ENOSPC, "full")
        return left.pop() * (end - start)

    monkeypatch.setattr(ranges, "copy_range", full)
    source = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    os.pwrite(source, b"x" * (20 * MIB), 0)
    try:
        assert ranges.copy_extents(source, target, 0, 20 * MIB, 0) == 8 * MIB
        with pytest.raises(OSError, match="full"):
            ranges.copy_extents(source, target, 0, 20 * MIB, 0)
    finally:
        os.close(source)
        os.close(target)


def test_what_somebody_else_takes_away_meanwhile_keeps_no_store_from_mounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
    unmount = staging.unmount

    def unmount_as_second(path: Path) -> None:
        path.rmdir()
        unmount(path)

    monkeypatch.setattr(staging, "OWN_TMPFS", tmp_path)
    monkeypatch.setattr(staging, "unmount", unmount_as_second)
    staging.unmount_orphans()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root")
@pytest.mark.parametrize("planted", ["directory", "symbolic link"])
async def test_what_another_user_puts_where_a_store_would_stage_keeps_nobody_from_mounting(
    shell: Shell, machine: Machine, planted: str
) -> None:
    await shell.write("/a", b"staged once")
    await shell.seal("/a")
    store_id = shell.volume.index.store_id
    machine.close()
    place = staging.directory_on_tmpfs(store_id, private=False)
    assert not place.exists()
    if planted == "directory":
        place.mkdir()
        os.chown(place, 65534, 65534)
    else:
        place.symlink_to(machine.store)
    again = machine.open()
    assert again.volume.index.store_id != store_id
    assert await again.read("/a") == b"staged once"
