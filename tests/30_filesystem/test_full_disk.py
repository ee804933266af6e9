"""A disk without room: operations fail with ENOSPC and leave things as they were."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentfs.config import Store
from agentfs.filesystem import room
from contracts.namespace import refused
from fakes.recount import miscounts
from fakes.volumes import KIB, MIB, Machine, Shell, profile, running


@contextmanager
def index_full(shell: Shell) -> Iterator[None]:
    """No commit of the index finds room; SQLite rolls back by itself then."""
    transaction = shell.volume.index.transaction
    execute = transaction._execute

    def full(statement: str, *values: Any) -> Any:
        if statement != "COMMIT":
            return execute(statement, *values)
        execute("ROLLBACK")
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    transaction._execute = full
    try:
        yield
    finally:
        transaction._execute = execute


Disk = namedtuple("Disk", ["f_blocks", "f_frsize", "f_bavail"])


@contextmanager
def no_room_for_data() -> Iterator[None]:
    """Only the reserve is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.os, "statvfs", lambda path: Disk(1 << 30, 4096, 100))
        yield


async def test_changes_that_find_no_room_change_nothing(shell: Shell) -> None:
    shell.mkdir("/d")
    await shell.write("/d/sealed", b"sealed" * 1000)
    await shell.sync()
    await shell.write("/staged", b"staged" * 1000)
    before = {path: shell.attributes(path) for path in ("", "/d", "/d/sealed", "/staged")}
    with index_full(shell):
        for change in (
            lambda: shell.mkdir("/new"),
            lambda: shell.mknod("/new", stat.S_IFREG),
            lambda: shell.link("/staged", "/new"),
            lambda: shell.unlink("/staged"),
            lambda: shell.unlink("/d/sealed"),
            lambda: shell.rename("/staged", "/d/sealed"),
            lambda: shell.rename("/d", "/moved"),
            lambda: shell.rename("/d", "/staged", 2),
            lambda: shell.set_xattr("/staged", b"user.a", b"1"),
        ):
            with refused(errno.ENOSPC):
                change()
    assert {path: shell.attributes(path) for path in before} == before
    assert shell.names() == [b"d", b"staged"]
    assert await shell.read("/staged") == b"staged" * 1000
    await shell.sync()
    assert not shell.is_staged("/staged")
    assert await shell.read("/staged") == b"staged" * 1000
    assert not miscounts(shell.volume.index)


async def test_a_seal_that_cannot_be_recorded_leaves_the_file_staged(
    machine: Machine, shell: Shell
) -> None:
    handle = shell.open("/a", os.O_RDWR | os.O_CREAT)
    await shell.pwrite(handle, b"precious" * 1000, 0)
    with index_full(shell), refused(errno.ENOSPC):
        await shell.seal("/a")
    assert shell.file("/a").is_dirty
    shell.close(handle)
    assert shell.is_staged("/a")
    machine.kill()
    shell = machine.open()
    assert await shell.read("/a") == b"precious" * 1000
    await shell.sync()
    assert await shell.read("/a") == b"precious" * 1000
    assert not miscounts(shell.volume.index)


async def test_a_rename_that_finds_no_room_does_not_lend_its_victims_content(
    shell: Shell,
) -> None:
    await shell.write("/old", b"old" * 1000)
    await shell.sync()
    await shell.write("/new", b"new" * 1000)
    with index_full(shell), refused(errno.ENOSPC):
        shell.rename("/new", "/old")
    await shell.sync()
    assert await shell.read("/new") == b"new" * 1000
    assert await shell.read("/old") == b"old" * 1000
    assert not miscounts(shell.volume.index)


async def test_a_time_of_access_that_finds_no_room_keeps_no_store_open(
    machine: Machine, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    await shell.write("/a", b"bytes")
    await shell.sync()
    shell.change("/a", atime_ns=1)
    with index_full(shell):
        await shell.read("/a")
        machine.close()
    assert "times of access" in caplog.text
    shell = machine.open()
    assert shell.inode("/a").atime_ns == 1
    assert await shell.read("/a") == b"bytes"


async def test_removing_goes_on_where_data_finds_no_room(shell: Shell) -> None:
    for number in range(5):
        await shell.write(f"/{number}", os.urandom(10_000))
    await shell.sync()
    await shell.write("/more", b"more" * 1000)
    with no_room_for_data():
        with refused(errno.ENOSPC):
            await shell.sync()
        assert shell.is_staged("/more")
        for number in range(5):
            shell.unlink(f"/{number}")
        await shell.collect()
    await shell.sync()
    assert await shell.read("/more") == b"more" * 1000


def half_garbage(number: int) -> bytes:
    return random.Random(number).randbytes(300 * KIB)


async def shell_with_segments_of_two_files(machine: Machine) -> Shell:
    small = replace(profile(), store=Store(segment_bytes=MIB, block_bytes=300 * KIB, level=1))
    shell = machine.open(small)
    for number in range(24):
        await shell.write(f"/{number}", half_garbage(number))
        await shell.seal(f"/{number}")
    return shell


@contextmanager
def disk_of(shell: Shell, free: int) -> Iterator[None]:
    """The store lies on a disk of 64 MiB that has so much room now, and more when it shrinks."""
    full = shell.segment_bytes() + free

    def statvfs(path: Path) -> Disk:
        return Disk(64 * MIB, 1, full - shell.segment_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.os, "statvfs", statvfs)
        yield


async def test_gc_on_a_full_disk_begins_with_what_takes_least(machine: Machine) -> None:
    """Room for one copy at most; what one segment frees, the next takes."""
    shell = await shell_with_segments_of_two_files(machine)
    kept = [number for number in range(12) if number % 3] + [23]
    for number in set(range(24)) - set(kept):
        shell.unlink(f"/{number}")
    before = shell.segment_bytes()
    with disk_of(shell, free=2 * MIB):
        await shell.collect()
        assert os.statvfs(machine.store).f_bavail > before // 2
    for number in kept:
        assert await shell.read(f"/{number}") == half_garbage(number)
    assert not miscounts(shell.volume.index)


async def test_gc_that_finds_no_room_leaves_the_index_its_own(machine: Machine) -> None:
    shell = await shell_with_segments_of_two_files(machine)
    for number in range(0, 24, 3):
        shell.unlink(f"/{number}")
    before = shell.segment_bytes()
    with disk_of(shell, free=MIB), refused(errno.ENOSPC):
        await shell.collect()
    assert shell.segment_bytes() <= before
    await shell.collect()
    assert shell.segment_bytes() < before
    assert not miscounts(shell.volume.index)


async def test_content_that_is_known_is_sealed_even_without_room(shell: Shell) -> None:
    await shell.write("/a", b"known" * 10_000)
    await shell.sync()
    await shell.write("/b", b"known" * 10_000)
    with no_room_for_data():
        await shell.sync()
    assert shell.inode("/a").content == shell.inode("/b").content


async def test_a_volume_runs_on_while_its_disk_is_full(machine: Machine) -> None:
    shell = machine.open(profile(rest_s=0.0))
    async with running(shell.volume):
        with no_room_for_data(), index_full(shell):
            for _ in range(3):
                shell.volume._tidy_index()
                await shell.volume._seal_what_rests()
        await shell.write("/a", b"after")
        await shell.fsync("/a")
    assert await shell.read("/a") == b"after"
