"""fallocate, copy_file_range, SEEK_HOLE and O_TMPFILE, which pyfuse3 does not carry."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    checked(libc.fallocate(fd, mode, offset, length))


def name(fd: int, path: Path) -> None:
    """Give an open file a name, as open(2) says for O_TMPFILE."""
    old = f"/proc/self/fd/{fd}".encode()
    checked(libc.linkat(AT_FDCWD, old, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW))


def fails(number: int) -> Any:
    return pytest.raises(OSError, match=rf"Errno {number}\b")


@pytest.fixture
def fd(mnt: Path) -> Iterator[int]:
    """A file of 20,000 bytes, open for reading and writing."""
    number = os.open(mnt / "a", os.O_RDWR | os.O_CREAT)
    os.write(number, b"x" * 20_000)
    yield number
    os.close(number)


@pytest.mark.parametrize("how", [COLLAPSE_RANGE, INSERT_RANGE])
def test_ranges_cannot_be_taken_out_or_put_in(fd: int, how: int) -> None:
    with fails(errno.EOPNOTSUPP):
        fallocate(fd, how, 0, 4096)


def test_allocating_makes_room_and_longer(mnt: Path, fd: int, mode: str) -> None:
    fallocate(fd, 0, 0, 100_000)
    assert os.fstat(fd).st_size == (mnt / "a").stat().st_size == 100_000
    assert os.fstat(fd).st_blocks * 512 >= 100_000
    fallocate(fd, KEEP_SIZE, 0, MIB)
    assert os.fstat(fd).st_size == 100_000
    if mode == "relay":
        assert os.fstat(fd).st_blocks * 512 >= MIB
    assert (mnt / "a").read_bytes() == b"x" * 20_000 + bytes(80_000)


def test_a_hole_is_zeros_and_takes_no_room(mnt: Path, fd: int) -> None:
    os.pwrite(fd, b"y" * MIB, 0)
    before = os.fstat(fd).st_blocks
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, MIB // 2)
    assert os.fstat(fd).st_blocks == before - MIB // 2 // 512
    expected = b"y" * 4096 + bytes(MIB // 2) + b"y" * (MIB // 2 - 4096)
    assert (mnt / "a").read_bytes() == expected
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
    assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096 + MIB // 2
    assert os.lseek(fd, 5 * 4096, os.SEEK_HOLE) == 5 * 4096
    assert os.lseek(fd, MIB - 1, os.SEEK_HOLE) == MIB
    with fails(errno.ENXIO):
        os.lseek(fd, MIB, os.SEEK_DATA)


def test_zeroed_ranges_are_zeros_that_have_room(mnt: Path, fd: int) -> None:
    fallocate(fd, ZERO_RANGE, 100, 4096)
    assert (mnt / "a").read_bytes() == b"x" * 100 + bytes(4096) + b"x" * (20_000 - 4196)
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, 19_000, MIB)
    assert os.fstat(fd).st_size == 20_000
    fallocate(fd, ZERO_RANGE, 19_000, MIB)
    assert os.fstat(fd).st_size == 19_000 + MIB
    assert os.fstat(fd).st_blocks * 512 >= 19_000 + MIB
    assert (mnt / "a").read_bytes()[4196:] == b"x" * (19_000 - 4196) + bytes(MIB)


@pytest.mark.parametrize("size", [MIB, 8 * 4096], ids=["with an image", "without"])
def test_holes_are_found_in_sealed_files_too(mnt: Path, mounted: Any, size: int) -> None:
    with (mnt / "a").open("wb") as file:
        file.write(b"a" * size)
        file.flush()
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 4096, size // 2 - 4096)
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, size // 2 + 4096, size)
    mounted.remount()
    with (mnt / "a").open("rb") as file:
        fd = file.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
        assert os.lseek(fd, 5000, os.SEEK_DATA) == size // 2
        assert os.lseek(fd, size // 2, os.SEEK_HOLE) == size // 2 + 4096
        assert os.lseek(fd, size - 1, os.SEEK_HOLE) == size - 1
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                os.lseek(fd, size, whence)
        with fails(errno.ENXIO):
            os.lseek(fd, size // 2 + 4096, os.SEEK_DATA)


def test_more_than_there_is_cannot_be_allocated(
    mount_store: Any, tmp_path: Path, mode: str
) -> None:
    if mode == "plain":
        pytest.skip("the file moves to disk, which has the room")
    (tmp_path / "little.toml").write_text("[hot]\nbytes = 16777216\n")
    mounted = mount_store("--profile", tmp_path / "little.toml")
    with (mounted.path / "a").open("wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        before = os.fstat(file.fileno())
        for how in (0, KEEP_SIZE, ZERO_RANGE):
            with fails(errno.ENOSPC):
                fallocate(file.fileno(), how, 0, 64 * MIB)
        after = os.fstat(file.fileno())
        assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
        assert (mounted.path / "a").read_bytes() == b"x" * 5000
        fallocate(file.fileno(), 0, 0, 8 * MIB)


def test_changes_move_times_and_drop_set_id_bits(mnt: Path, fd: int, as_root: None) -> None:
    os.fchmod(fd, 0o6777)
    os.utime(fd, ns=(1, 1))
    changed = os.fstat(fd).st_ctime_ns
    time.sleep(0.01)
    fallocate(fd, KEEP_SIZE, 0, 4096)
    status = os.fstat(fd)
    assert status.st_mtime_ns > 1
    assert status.st_ctime_ns > changed
    assert stat.S_IMODE(status.st_mode) == 0o6777, "root may"
    code = """
os.setgroups([]); os.setgid(1000); os.setuid(1000)
os.posix_fallocate(int(sys.argv[1]), 0, 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys\n" + code, str(fd)], pass_fds=[fd], check=False
    )
    assert done.returncode == 0
    assert stat.S_IMODE((mnt / "a").stat().st_mode) == 0o777


@pytest.fixture
def used(mounted: Any) -> Callable[[], int]:
    """How many bytes the tmpfs holds."""
    [tmpfs] = mounted.tmpfs()

    def bytes_used() -> int:
        room = os.statvfs(tmpfs)
        return (room.f_blocks - room.f_bfree) * room.f_frsize

    return bytes_used


def test_what_was_reserved_is_given_back_when_the_file_is_sealed(
    mnt: Path, mounted: Any, used: Callable[[], int]
) -> None:
    with (mnt / "a").open("wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        fallocate(file.fileno(), KEEP_SIZE, 0, 64 * MIB)
        assert used() >= 64 * MIB
    mounted.agentfs("sync", mnt)
    assert used() < MIB
    assert (mnt / "a").read_bytes() == b"x" * 5000


# Copies


def test_a_copy_is_the_same_and_stored_once(mnt: Path, mounted: Any) -> None:
    data = random.Random(1).randbytes(20 * MIB + 17)
    (mnt / "a").write_bytes(data)
    mounted.agentfs("sync", mnt)
    before = mounted.stats()
    subprocess.run(["cp", mnt / "a", mnt / "b"], check=True)
    mounted.agentfs("sync", mnt)
    after = mounted.stats()
    assert (mnt / "b").read_bytes() == data
    assert after["chunks"] == before["chunks"]
    assert after["segment_bytes"] == before["segment_bytes"]
    mounted.remount()
    assert (mnt / "b").read_bytes() == data


@pytest.mark.parametrize("size", [5000, 3 * MIB])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_part_is_copied_into_the_middle(
    mnt: Path, mounted: Any, size: int, is_sealed: bool
) -> None:
    part = size // 2
    data = random.Random(2).randbytes(size)
    (mnt / "a").write_bytes(data)
    (mnt / "b").write_bytes(b"." * size)
    if is_sealed:
        mounted.remount()
    with (mnt / "a").open("rb") as source, (mnt / "b").open("r+b") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), part, 7, 100)
        assert copied == part
        assert os.copy_file_range(source.fileno(), target.fileno(), size, size - 10, size) == 10
        assert os.copy_file_range(source.fileno(), target.fileno(), 10, size, 0) == 0
    expected = b"." * 100 + data[7 : 7 + part] + b"." * (size - part - 100) + data[-10:]
    assert (mnt / "b").read_bytes() == expected
    mounted.remount()
    assert (mnt / "b").read_bytes() == expected
    assert (mnt / "a").read_bytes() == data


def test_a_reader_of_content_that_has_been_replaced_copies_what_it_reads(
    mnt: Path, mounted: Any, mode: str
) -> None:
    data = random.Random(3).randbytes(MIB)
    for path in (mnt / "a", mnt / "twin"):
        path.write_bytes(data)
    mounted.remount()
    with (mnt / "a").open("rb") as source, (mnt / "twin").open("rb"):
        with (mnt / "a").open("r+b") as writer:
            writer.write(b"new")
        mounted.agentfs("sync", mnt)
        mounted.agentfs("gc", mounted.store)
        with (mnt / "b").open("wb") as target:
            assert os.copy_file_range(source.fileno(), target.fileno(), MIB) == MIB
        assert os.pread(source.fileno(), MIB, 0) == (mnt / "b").read_bytes()
    seen = data if mode == "relay" else b"new" + data[3:]
    assert (mnt / "b").read_bytes() == seen


def test_a_reader_of_a_file_that_left_a_clone_copies_what_it_reads(
    mnt: Path, mounted: Any, mode: str
) -> None:
    data = random.Random(6).randbytes(MIB)
    (mnt / "a").write_bytes(data)
    mounted.agentfs("clone", mnt / "a", mnt / "twin")  # shares the staged copy
    with (mnt / "a").open("rb") as source, (mnt / "b").open("wb") as target:
        with (mnt / "a").open("r+b") as writer:
            writer.write(b"new")
        assert os.copy_file_range(source.fileno(), target.fileno(), MIB) == MIB
        assert os.lseek(source.fileno(), 1000, os.SEEK_DATA) == 1000
        assert os.lseek(source.fileno(), 1000, os.SEEK_HOLE) == MIB
        with fails(errno.ENXIO):
            os.lseek(source.fileno(), MIB, os.SEEK_DATA)
    new = b"new" + data[3:]
    assert (mnt / "b").read_bytes() == (data if mode == "relay" else new)
    assert (mnt / "twin").read_bytes() == data
    assert (mnt / "a").read_bytes() == new


def test_a_change_of_a_clone_is_its_own(mnt: Path, mounted: Any) -> None:
    data = random.Random(7).randbytes(MIB)
    (mnt / "a").write_bytes(data)
    mounted.agentfs("clone", mnt / "a", mnt / "twin")
    with (mnt / "twin").open("r+b") as file:
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, MIB // 2)
    assert (mnt / "a").read_bytes() == data
    assert (mnt / "twin").read_bytes() == bytes(MIB // 2) + data[MIB // 2 :]


def test_holes_are_copied_as_holes(mnt: Path, mounted: Any) -> None:
    with (mnt / "a").open("wb") as file:
        file.write(b"a" * 4096)
        file.truncate(1 << 40)
    for _ in ("staged", "sealed"):
        with (mnt / "a").open("rb") as source, (mnt / "b").open("wb") as target:
            copied = 0
            while copied < 256 * MIB:
                copied += os.copy_file_range(source.fileno(), target.fileno(), 1 << 40)
            status = os.fstat(target.fileno())
            assert status.st_size == copied
            assert status.st_blocks * 512 < MIB
            target.seek(4 * 4096)
            target.write(b"b" * 8192)
            target.flush()
            os.copy_file_range(source.fileno(), target.fileno(), 4096, 8192, 4 * 4096)
        with (mnt / "b").open("rb") as file:
            assert file.read(6 * 4096 + 1) == b"a" * 4096 + bytes(4 * 4096) + b"b" * 4096 + bytes(1)
        mounted.remount()


# Files without a name


def test_a_file_without_a_name_is_named_later(mnt: Path, mounted: Any) -> None:
    (mnt / "d").mkdir()
    before = (mnt / "d").stat()
    fd = os.open(mnt / "d", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"bytes")
    status = os.fstat(fd)
    assert (status.st_nlink, status.st_size) == (0, 5)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert list((mnt / "d").iterdir()) == []
    assert (mnt / "d").stat().st_mtime_ns == before.st_mtime_ns
    name(fd, mnt / "d" / "named")
    name(fd, mnt / "twice")
    assert os.fstat(fd).st_nlink == 2
    os.write(fd, b" and more")
    os.close(fd)
    mounted.remount()
    assert (mnt / "d" / "named").read_bytes() == b"bytes and more"
    assert (mnt / "twice").stat().st_ino == (mnt / "d" / "named").stat().st_ino


def test_what_must_not_be_named_cannot_be(mnt: Path) -> None:
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o644)
    with fails(errno.ENOENT):
        name(fd, mnt / "named")
    os.close(fd)
    fd = os.open(mnt / "a", os.O_RDWR | os.O_CREAT)
    (mnt / "a").unlink()
    with fails(errno.ENOENT):
        name(fd, mnt / "named")
    os.close(fd)
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o644)
    name(fd, mnt / "named")
    (mnt / "named").unlink()
    with fails(errno.ENOENT):
        name(fd, mnt / "named")
    with fails(errno.EEXIST):
        (mnt / "there").touch()
        other = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o644)
        name(other, mnt / "there")
    os.close(other)
    os.close(fd)


def test_what_never_got_a_name_leaves_nothing(mnt: Path, mounted: Any) -> None:
    for _ in range(300):  # more than are removed at once
        fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"x" * 10_000)
        os.fsync(fd)
        os.close(fd)
    mounted.agentfs("sync", mnt)
    mounted.remount()
    figures = mounted.stats()
    assert (figures["files"], figures["staged_files"]) == (0, 0)


# Kills


def test_what_was_answered_survives_a_kill(mnt: Path, mounted: Any) -> None:
    data = random.Random(4).randbytes(3 * MIB)
    (mnt / "a").write_bytes(data)
    fds = [os.open(mnt / one, os.O_RDWR | os.O_CREAT) for one in "bcd"]
    with (mnt / "a").open("rb") as source:
        assert os.copy_file_range(source.fileno(), fds[0], len(data)) == len(data)
    fallocate(fds[1], 0, 0, MIB)
    os.write(fds[2], data)
    fallocate(fds[2], PUNCH_HOLE | KEEP_SIZE, 4096, MIB)
    unnamed = os.open(mnt, os.O_TMPFILE | os.O_RDWR)
    named = os.open(mnt, os.O_TMPFILE | os.O_RDWR)
    os.write(named, b"named")
    os.write(unnamed, b"unnamed")
    name(named, mnt / "e")
    times = {one: (mnt / one).stat().st_mtime_ns for one in "bcde"}
    mounted.kill()
    for fd in [*fds, unnamed, named]:
        os.close(fd)
    mounted.mount()
    assert sorted(os.listdir(mnt)) == ["a", "b", "c", "d", "e"]
    assert (mnt / "b").read_bytes() == data
    assert (mnt / "c").read_bytes() == bytes(MIB)
    assert (mnt / "d").read_bytes() == data[:4096] + bytes(MIB) + data[4096 + MIB :]
    assert (mnt / "e").read_bytes() == b"named"
    assert {one: (mnt / one).stat().st_mtime_ns for one in "bcde"} == times
    assert mounted.stats()["files"] == 5


OPERATIONS = {
    "copy": """
while True:
    copied = 0
    while copied < SIZE:
        copied += os.copy_file_range(a, b, SIZE - copied, copied, copied)
""",
    "allocate": """
while True:
    libc.fallocate(b, 0, 0, SIZE)
    os.ftruncate(b, 0)
""",
    "punch and zero": """
while True:
    libc.fallocate(a, 3, SIZE // 4, SIZE // 2)
    libc.fallocate(a, 16, SIZE // 4, SIZE // 2)
""",
    "name": """
number = 0
while True:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"whole")
    libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, b"named %d" % number, 0x400)
    os.close(fd)
    number += 1
""",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_in_the_middle_leaves_the_file_between_before_and_after(
    mnt: Path, mounted: Any, script: Any, operation: str
) -> None:
    size = 32 * MIB
    data = random.Random(5).randbytes(MIB) * 32
    (mnt / "a").write_bytes(data)
    (mnt / "b").touch()
    head = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]\n"
        f"SIZE = {size}\n"
        "os.chdir(sys.argv[1])\n"
        "a, b = os.open('a', os.O_RDWR), os.open('b', os.O_RDWR)\n"
        "print('ready', flush=True)\n"
    )
    for wait_s in (0.05, 0.123, 0.2):
        program = script(head + OPERATIONS[operation], mnt)
        assert program.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        mounted.kill()
        program.kill()
        program.communicate()
        mounted.mount()
        quarter = size // 4
        a, b = (mnt / "a").read_bytes(), (mnt / "b").read_bytes()
        assert len(a) == size
        assert a[:quarter] == data[:quarter]
        assert a[3 * quarter :] == data[3 * quarter :]
        middle = range(quarter, 3 * quarter, 4096)
        pages = [at for at in middle if a[at : at + 4096] != data[at : at + 4096]]
        assert not pages or operation == "punch and zero"
        assert all(a[at : at + 4096] == bytes(4096) for at in pages)
        assert b == (data if operation == "copy" else bytes(size))[: len(b)]
        for path in mnt.glob("named*"):
            assert path.read_bytes() == b"whole"
            path.unlink()
        mounted.agentfs("sync", mnt)
