"""What is left after a killed daemon, a failed sync, and a power cut."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio

from agentfs.filesystem.fsck import check
from agentfs.filesystem.namespace import RENAME_EXCHANGE
from agentfs.filesystem.repair import repair
from fakes.acl import ACCESS, packed
from fakes.damage import flip_in_log
from fakes.disk import Disk, watch
from fakes.recount import miscounts
from fakes.volumes import Machine, Shell, profile, running


def open_on(disk: Disk, machine: Machine) -> Shell:
    shell = machine.open()
    watch(shell.volume.index, disk)
    shell.volume.index.checkpoint()
    return shell


def cut_power(disk: Disk, machine: Machine, *, wal_reached_the_disk: bool = False) -> Shell:
    """Power goes, comes back, and the store is mounted again."""
    machine.kill()
    disk.cut_power(machine.tmpfs, wal_reached_the_disk=wal_reached_the_disk)
    new_boot(machine)
    return machine.open()


def new_boot(machine: Machine) -> None:
    """Nothing on disk may be taken for a file that was open a moment ago."""
    boot = machine.store / "boot"
    if boot.exists():
        boot.write_text("an earlier boot\n")


# Killed


async def test_a_killed_daemon_loses_nothing_that_was_done(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/sealed", b"sealed")
    await shell.sync()
    await shell.write("/staged", b"staged")
    await shell.append("/sealed", b" and changed")
    shell.mkdir("/d")
    shell.rename("/staged", "/d/moved")
    shell.symlink(b"moved", "/d/link")
    shell.change("/d/moved", mode=0o640, uid=5, mtime_ns=77)
    machine.kill()
    shell = machine.open()
    assert await shell.read("/sealed") == b"sealed and changed"
    assert await shell.read("/d/moved") == b"staged"
    assert shell.inode("/d/link").target == b"moved"
    inode = shell.inode("/d/moved")
    assert (inode.mode & 0o7777, inode.uid, inode.mtime_ns, inode.size) == (0o640, 5, 77, 6)
    await shell.sync()
    assert await shell.read("/d/moved") == b"staged"
    assert shell.inode("/d/moved").mtime_ns == 77
    assert not machine.staged_names()
    assert not miscounts(shell.volume.index)


async def test_times_set_by_a_program_survive_a_kill(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"bytes")
    shell.change("/a", atime_ns=1_000_000_001, mtime_ns=1_000_000_002)
    before = shell.inode("/a")
    machine.kill()
    after = machine.open().inode("/a")
    assert (after.atime_ns, after.mtime_ns) == (1_000_000_001, 1_000_000_002)
    assert after.ctime_ns == before.ctime_ns


async def test_a_killed_daemon_twice_over_loses_nothing(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"one")
    machine.kill()
    shell = machine.open()
    await shell.append("/a", b" two")
    machine.kill()
    shell = machine.open()
    assert await shell.read("/a") == b"one two"


async def test_holes_of_a_staged_file_survive_a_kill(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"x" * 4096, 1 << 22)
    holes = shell.inode("/a").holes
    machine.kill()
    shell = machine.open()
    assert shell.inode("/a").holes == holes == 1 << 22
    await shell.sync()
    assert shell.recipe("/a")[0] == (None, 1 << 22)


async def test_an_unlinked_file_that_was_open_is_gone_after_a_kill(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/sealed", b"x" * 10_000)
    await shell.sync()
    for path in ("/sealed", "/new"):
        handle = shell.open(path, os.O_RDWR | os.O_CREAT)
        await shell.volume.files.write(handle, 0, b"open")
        shell.unlink(path)
        assert await shell.volume.files.read(handle, 0, 4) == b"open"
    machine.kill()
    shell = machine.open()
    assert shell.names() == []
    assert not machine.staged_names()
    (inodes,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert inodes == 1
    assert not miscounts(shell.volume.index)


async def test_a_file_without_a_name_is_gone_after_a_kill(machine: Machine) -> None:
    shell = machine.open()
    unnamed, named = shell.open_unnamed(), shell.open_unnamed()
    for handle in (unnamed, named):
        await shell.pwrite(handle, b"bytes" * 1000, 0)
    shell.name(named, "/a")
    await shell.sync()
    machine.kill()
    shell = machine.open()
    assert shell.names() == [b"a"]
    assert await shell.read("/a") == b"bytes" * 1000
    assert len(machine.staged_names()) <= 1
    (inodes,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert inodes == 2
    assert not miscounts(shell.volume.index)


async def test_a_staged_file_without_an_inode_is_dropped(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"a")
    machine.kill()
    [folder] = machine.tmpfs.iterdir()
    (folder / "fff").write_bytes(b"whose?")
    shell = machine.open()
    assert await shell.read("/a") == b"a"
    assert len(machine.staged_names()) == 1


async def test_a_number_is_not_given_again_while_its_staged_file_is_there(
    machine: Machine,
) -> None:
    shell = machine.open()
    await shell.write("/a", b"old bytes")
    shell.unlink("/a")
    shell.mknod("/b", 0o100644)
    assert await shell.read("/b") == b""
    machine.kill()
    shell = machine.open()
    assert await shell.read("/b") == b""


# A sync that fails


async def test_fsync_fails_when_the_segments_cannot_be_synced_and_the_file_stays_staged(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        await shell.write("/a", b"precious" * 1000)
        disk.fails = True
        with pytest.raises(OSError, match="the disk failed") as failure:
            await shell.fsync("/a")
        assert failure.value.errno == errno.EIO
        assert shell.is_staged("/a")
        assert shell.file("/a").is_dirty
        assert await shell.read("/a") == b"precious" * 1000
        disk.fails = False
        await shell.fsync("/a")
    assert shell.inode("/a").content is not None
    assert not miscounts(shell.volume.index)


async def test_fsync_fails_when_the_index_cannot_be_synced(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        await shell.write("/a", b"precious")
        await shell.seal("/a")
        disk.fails = True
        with pytest.raises(OSError, match="the disk failed"):
            await shell.fsync("/a")
        disk.fails = False
        await shell.fsync("/a")
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"precious"


async def test_all_who_waited_for_a_flush_that_failed_are_told(
    disk: Disk, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk reports a lost write once; to sync again and succeed would be a lie."""
    shell = open_on(disk, machine)
    index, failures = shell.volume.index, iter([True])
    sync_wal = index.sync_wal

    def fail_once() -> None:
        if next(failures, False):
            raise OSError(errno.EIO, "the disk failed")
        sync_wal()

    monkeypatch.setattr(index, "sync_wal", fail_once)
    shell.mkdir("/d")
    outcomes: list[str] = []

    async def ask() -> None:
        try:
            await shell.volume.durability.sync()
            outcomes.append("durable")
        except OSError:
            outcomes.append("failed")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert outcomes == ["failed"] * 5


async def test_after_a_failed_flush_the_next_one_does_not_trust_the_log(
    disk: Disk, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has forgotten which pages it could not write; the checkpoint writes them anew."""
    shell = open_on(disk, machine)

    def fail() -> None:
        raise OSError(errno.EIO, "the disk failed")

    shell.mkdir("/d")
    with monkeypatch.context() as patch:
        patch.setattr(shell.volume.index, "sync_wal", fail)
        with pytest.raises(OSError, match="the disk failed"):
            await shell.volume.durability.sync()
    monkeypatch.setattr(shell.volume.index, "sync_wal", lambda: None)  # the kernel's false "yes"
    await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert shell.inode("/d").is_directory


async def test_many_who_fsync_at_once_share_the_flushes(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        for number in range(50):
            await shell.write(f"/{number}", b"%d" % number * 1000)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(shell.fsync, f"/{number}")
    assert disk.segment_syncs <= 3
    assert disk.index_syncs <= 5
    shell = cut_power(disk, machine)
    for number in range(50):
        assert await shell.read(f"/{number}") == b"%d" % number * 1000


async def test_a_flush_covers_what_was_committed_before_it_was_asked_for(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            shell.mkdir(f"/{number}")
            nursery.start_soon(shell.volume.durability.sync)
            await trio.sleep(0)
    shell = cut_power(disk, machine)
    assert len(shell.names()) == 20


async def test_nothing_is_flushed_when_nothing_changed(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    shell.mkdir("/d")
    await shell.volume.durability.sync()
    flushes = disk.index_syncs
    await shell.volume.durability.sync()
    assert disk.index_syncs == flushes


# The log damaged


def findings(machine: Machine) -> str:
    return "\n".join(check(machine.store, lambda *_: None).findings)


def make_names(shell: Shell, prefix: str) -> None:
    for number in range(50):
        shell.mkdir(f"/{prefix}{number}")


def kill_and_damage_the_log(machine: Machine) -> None:
    shell = machine.open()
    make_names(shell, "a")
    machine.kill()
    flip_in_log(machine.store)


def test_damage_to_the_log_of_a_killed_daemon_is_told_until_it_is_repaired(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    kill_and_damage_the_log(machine)
    assert "log was damaged" in findings(machine)
    shell = machine.open()
    assert "log was damaged" in caplog.text
    left = len(shell.names())
    assert 0 < left < 50
    assert 0 < shell.volume.commits_lost <= 50 - left
    assert not miscounts(shell.volume.index)
    machine.close()
    machine.open()
    machine.close()
    assert "log was damaged" in findings(machine)
    assert "given up" in "\n".join(repair(machine.store, lambda *_: None).done)
    assert not findings(machine)


def test_damage_to_the_log_is_repaired_before_any_mount(machine: Machine) -> None:
    kill_and_damage_the_log(machine)
    assert "given up" in "\n".join(repair(machine.store, lambda *_: None).done)
    assert not findings(machine)
    assert machine.open().volume.commits_lost == 0


def test_damage_to_the_log_is_counted_once(machine: Machine) -> None:
    kill_and_damage_the_log(machine)
    shell = machine.open()
    lost = shell.volume.commits_lost
    shell.mkdir("/b")
    machine.kill()
    shell = machine.open()
    assert shell.exists("/b")
    assert shell.volume.commits_lost == 0
    assert shell.volume.index.lost_commits == lost


def test_the_end_of_a_log_that_power_left_torn_is_no_damage(machine: Machine) -> None:
    kill_and_damage_the_log(machine)
    new_boot(machine)
    assert not findings(machine)
    shell = machine.open()
    assert shell.volume.index.commits_passed_over > 0
    make_names(shell, "b")
    machine.kill()
    assert not findings(machine), "what the cut left behind the end is not found again"
    shell = machine.open()
    assert shell.volume.commits_lost == 0
    assert shell.exists("/b49")


def test_a_killed_daemons_log_has_no_damage(machine: Machine) -> None:
    shell = machine.open()
    make_names(shell, "a")
    machine.kill()
    assert not findings(machine)
    shell = machine.open()
    assert shell.volume.commits_lost == 0
    assert len(shell.names()) == 50


# Power cuts


async def test_crash_before_the_commit_keeps_the_old_file(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    await shell.write("/a", b"old" * 1000)
    await shell.sync()
    await shell.write("/a", b"new" * 1000)
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"old" * 1000
    assert not miscounts(shell.volume.index)


async def test_what_was_synced_survives_a_power_cut(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    for number in range(40):
        await shell.write(f"/{number}", b"%d" % number * 2000)
    await shell.sync()
    shell = cut_power(disk, machine)
    for number in range(40):
        assert await shell.read(f"/{number}") == b"%d" % number * 2000


async def test_what_was_fsynced_before_it_got_a_name_survives_a_power_cut(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        handle = shell.open_unnamed()
        await shell.pwrite(handle, b"whole" * 1000, 0)
        await shell.volume.sealer.fsync(handle.file)
        shell.name(handle, "/a")
        await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"whole" * 1000
    assert not miscounts(shell.volume.index)


async def test_a_file_renamed_over_another_falls_back_to_what_the_name_showed(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        await shell.write("/a", b"old" * 1000)
        await shell.fsync("/a")
        await shell.replace("/a", b"new" * 1000)
        await shell.volume.durability.sync()
        assert await shell.read("/a") == b"new" * 1000
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"old" * 1000
    assert not miscounts(shell.volume.index)


async def test_a_file_renamed_over_another_twice_falls_back_as_well(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    await shell.write("/a", b"old" * 1000)
    await shell.sync()
    for version in range(3):
        await shell.replace("/a", b"%d" % version * 3000)
    await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"old" * 1000
    assert not miscounts(shell.volume.index)


async def test_what_a_file_falls_back_to_does_not_move_on_with_it(
    disk: Disk, machine: Machine
) -> None:
    for move in ("rename", "link", "exchange", "clone"):
        shell = open_on(disk, machine)
        await shell.write("/a", b"old" * 1000)
        await shell.sync()
        await shell.replace("/a", b"new" * 1000)
        if move == "rename":
            shell.rename("/a", "/b")
        elif move == "link":
            shell.link("/a", "/b")
        elif move == "clone":
            await shell.clone("a", "b")
        else:
            shell.mknod("/b", 0o100644)
            shell.rename("/a", "/b", RENAME_EXCHANGE)
        await shell.volume.durability.sync()
        shell = cut_power(disk, machine)
        assert await shell.read("/b") == b"", move
        assert not miscounts(shell.volume.index)
        for name in shell.names():
            shell.unlink(f"/{name.decode()}")
        machine.close()


async def test_a_file_more_may_read_does_not_fall_back_to_one_that_fewer_may(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    await shell.write("/a", b"secret" * 1000)
    shell.change("/a", mode=0o600)
    await shell.sync()
    await shell.replace("/a", b"public" * 1000)
    await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b""
    assert not miscounts(shell.volume.index)


async def test_a_file_without_a_list_does_not_fall_back_to_one_that_has_one(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    await shell.write("/a", b"secret" * 1000)
    shell.set_xattr("/a", ACCESS.encode(), packed("u::rw- u:4001:r-- g::--- m::r-- o::r--"))
    await shell.sync()
    await shell.replace("/a", b"public" * 1000)
    assert shell.inode("/a").mode & 0o777 == 0o644, "as far as modes go the same may read both"
    await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b""
    assert not miscounts(shell.volume.index)


async def test_a_file_that_fell_back_is_its_own_after_a_kill_as_well(
    disk: Disk, machine: Machine
) -> None:
    shell = open_on(disk, machine)
    await shell.write("/a", b"old" * 1000)
    await shell.sync()
    await shell.replace("/a", b"new" * 1000)
    machine.kill()
    shell = open_on(disk, machine)
    shell.rename("/a", "/b")
    await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/b") == b""
    shell.rename("/b", "/a")
    assert not miscounts(shell.volume.index)


async def test_an_empty_file_renamed_over_another_is_empty(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        await shell.write("/a", b"old" * 1000)
        await shell.fsync("/a")
        handle = shell.open("/b", os.O_RDWR | os.O_CREAT)
        await shell.pwrite(handle, b"to be cut", 0)
        await shell.truncate("/b", 0)
        await shell.volume.sealer.fsync(handle.file)
        shell.rename("/b", "/a")
        await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b""
    assert not miscounts(shell.volume.index)


async def test_a_file_renamed_over_and_fsynced_is_the_new_one(disk: Disk, machine: Machine) -> None:
    shell = open_on(disk, machine)
    async with running(shell.volume):
        await shell.write("/a", b"old" * 1000)
        await shell.fsync("/a")
        await shell.write("/a.new", b"new" * 1000)
        await shell.fsync("/a.new")
        shell.rename("/a.new", "/a")
        await shell.volume.durability.sync()
    shell = cut_power(disk, machine)
    assert await shell.read("/a") == b"new" * 1000
    assert shell.names() == [b"a"]


async def test_a_staged_file_on_disk_does_not_replace_what_was_fsynced_before_the_cut(
    disk: Disk, machine: Machine
) -> None:
    """The staged copy was never synced: after the cut it may hold anything."""
    shell = machine.open(profile(budget_bytes=1))
    watch(shell.volume.index, disk)
    async with running(shell.volume):
        handle = shell.open("/a", os.O_RDWR | os.O_CREAT)
        await shell.volume.files.write(handle, 0, b"precious" * 1000)
        await shell.volume.sealer.fsync(handle.file)
    staged = machine.store / "staging" / f"{handle.file.inode.id:x}"
    assert staged.exists(), "it is open, so it stays staged"
    machine.kill()
    disk.cut_power(machine.tmpfs)
    staged.write_bytes(bytes(8000))  # length reached the disk, bytes did not
    new_boot(machine)
    shell = machine.open()
    assert await shell.read("/a") == b"precious" * 1000


async def test_a_file_staged_on_disk_survives_a_kill(machine: Machine) -> None:
    shell = machine.open(profile(budget_bytes=1))
    await shell.write("/a", b"on disk")
    machine.kill()
    assert os.listdir(machine.store / "staging")
    shell = machine.open()
    assert await shell.read("/a") == b"on disk"


async def test_a_file_left_staged_on_disk_by_an_orderly_end_is_there_after_a_reboot(
    machine: Machine,
) -> None:
    """As when the disk below the store was full and nothing could be sealed."""
    shell = machine.open(profile(budget_bytes=1))
    await shell.write("/a", b"could not be sealed")
    machine.close()
    new_boot(machine)
    shell = machine.open()
    assert await shell.read("/a") == b"could not be sealed"


@pytest.mark.parametrize("wal_reached_the_disk", [False, True])
@pytest.mark.parametrize("seed", range(12))
async def test_a_power_cut_at_any_time_loses_nothing_fsynced_and_tears_nothing(
    disk: Disk, machine: Machine, seed: int, wal_reached_the_disk: bool
) -> None:
    """Files are rewritten, appended, replaced, fsynced, sealed and collected; then power goes."""
    rng = random.Random(seed)
    shell = open_on(disk, machine)
    versions: dict[str, list[bytes]] = {f"/{number}": [b""] for number in range(6)}
    fsynced: dict[str, int] = {}
    for path in versions:
        shell.mknod(path, 0o100644)
    await shell.volume.durability.sync()
    async with running(shell.volume):
        for step in range(rng.randrange(20, 90)):
            path = rng.choice(list(versions))
            data = b"%d %d;" % (seed, step) * rng.randrange(1, 4000)
            action = rng.random()
            if action < 0.3:
                await shell.truncate(path, 0)
                await shell.write(path, data)
                versions[path] += [b"", data]
            elif action < 0.45:
                await shell.append(path, data)
                versions[path].append(versions[path][-1] + data)
            elif action < 0.6:
                await shell.replace(path, data)
                versions[path].append(data)
            elif action < 0.75:
                await shell.fsync(path)
                fsynced[path] = len(versions[path]) - 1
            elif action < 0.85 and shell.is_staged(path):
                await shell.seal(path)
            elif action < 0.9:
                await shell.collect()
            elif action < 0.93:
                shell.volume.index.checkpoint()
    shell = cut_power(disk, machine, wal_reached_the_disk=wal_reached_the_disk)
    for path, history in versions.items():
        allowed = history[fsynced.get(path, 0) :]
        assert await shell.read(path) in allowed, path
        await shell.append(path, b"!")  # makes, and checks, the whole copy
    await shell.sync()
    assert not miscounts(shell.volume.index)
    await shell.collect()
    assert not miscounts(shell.volume.index)
