"""What is in files, through the kernel."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
GIB = 1 << 30
NOBODY = 65534


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; it must have ended well."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return out


def test_a_file_is_read_back_at_any_place(mnt: Path, mounted: Any) -> None:
    data = b"".join(b"%07d\n" % number for number in range(400_000))
    (mnt / "a").write_bytes(data)
    for _ in ("staged", "sealed"):
        with (mnt / "a").open("rb") as file:
            for place in (0, 1, 4095, 131_071, 131_073, len(data) - 3, len(data), len(data) + 5):
                file.seek(place)
                assert file.read(300_000) == data[place : place + 300_000]
        mounted.remount()


def test_an_unlinked_file_lives_while_it_is_open(mnt: Path, mounted: Any) -> None:
    (mnt / "a").write_bytes(b"sealed" * 1000)
    mounted.agentfs("sync", mnt)
    with (mnt / "a").open("r+b") as file:
        (mnt / "a").unlink()
        assert os.listdir(mnt) == []
        assert file.read() == b"sealed" * 1000
        file.write(b"more")
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o600)
        file.seek(0)
        assert file.read() == b"sealed" * 1000 + b"more"
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 6004)
        os.ftruncate(file.fileno(), 5)
        file.seek(0)
        assert file.read() == b"seale"
    assert mounted.stats()["files"] == 0


def test_a_replaced_file_lives_while_it_is_open(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"old")
    with (mnt / "a").open("rb") as file:
        (mnt / "b").write_bytes(b"new")
        os.rename(mnt / "b", mnt / "a")
        assert file.read() == b"old"
    assert (mnt / "a").read_bytes() == b"new"


def test_holes_take_no_blocks_and_read_as_zeros(mnt: Path, mounted: Any) -> None:
    with (mnt / "a").open("wb") as file:
        file.seek(50 * MIB)
        file.write(b"x" * 4096)
        file.truncate(80 * MIB)
    for _ in ("staged", "sealed"):
        status = (mnt / "a").stat()
        assert status.st_size == 80 * MIB
        assert 8 <= status.st_blocks <= 80 * MIB // 512 // 8, "some huge pages at most"
        with (mnt / "a").open("rb") as file:
            file.seek(50 * MIB - 5)
            assert file.read(4106) == bytes(5) + b"x" * 4096 + bytes(5)
        mounted.remount()
    assert (mnt / "a").stat().st_blocks == 8
    with (mnt / "a").open("r+b") as file:
        file.seek(10)
        file.write(b"y")
    assert (mnt / "a").stat().st_blocks <= 80 * MIB // 512 // 8


def test_a_dense_file_takes_the_blocks_of_its_bytes(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"z" * 100_000)
    assert (mnt / "a").stat().st_blocks * 512 >= 100_000


@pytest.mark.parametrize("is_sealed", [False, True])
def test_truncation_both_ways(mnt: Path, mounted: Any, is_sealed: bool) -> None:
    data = os.urandom(300_000)
    for name, size in (("cut", 123_457), ("same", 300_000), ("extended", 500_001), ("none", 0)):
        (mnt / name).write_bytes(data)
        if is_sealed:
            mounted.agentfs("sync", mnt)
        os.truncate(mnt / name, size)
        expected = data[:size].ljust(size, b"\0")
        assert (mnt / name).read_bytes() == expected, name
        with (mnt / name).open("r+b") as file:
            os.ftruncate(file.fileno(), size + 10)
            assert os.fstat(file.fileno()).st_size == size + 10
        assert (mnt / name).read_bytes() == expected + bytes(10), name
    mounted.remount()
    assert (mnt / "cut").read_bytes() == data[:123_457] + bytes(10)


def test_what_was_cut_off_does_not_come_back(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"secret" * 10_000)
    os.truncate(mnt / "a", 5)
    os.truncate(mnt / "a", 60_000)
    assert (mnt / "a").read_bytes() == b"secre" + bytes(59_995)


def test_appends_from_several_processes_interleave_but_lose_nothing(
    mnt: Path, script: Any, mounted: Any
) -> None:
    code = """
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(200):
    line = f"{sys.argv[2]} {number} " + "x" * (number * 7 % 500) + "\\n"
    assert os.write(fd, line.encode()) == len(line)
"""
    writers = [script(code, mnt / "log", name) for name in "abcd"]
    for writer in writers:
        finish(writer)
    mounted.remount()
    lines = (mnt / "log").read_text().splitlines()
    assert len(lines) == 800
    for name in "abcd":
        mine = [int(line.split()[1]) for line in lines if line.startswith(name)]
        assert mine == list(range(200))
    assert all(
        len(line.split()[2]) == int(line.split()[1]) * 7 % 500
        for line in lines
        if int(line.split()[1]) * 7 % 500
    )


def test_processes_share_a_writable_mapping(mnt: Path, script: Any, mounted: Any) -> None:
    (mnt / "a").write_bytes(bytes(64 * 1024))
    code = """
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 65536)
memory[100:105] = b"child"
sys.stdin.readline()
assert memory[200:206] == b"parent"
memory[65530:65536] = b"at end"
memory.flush()
print("done")
"""
    with (mnt / "a").open("r+b") as file, mmap.mmap(file.fileno(), 65536) as memory:
        child = script(code, mnt / "a")
        memory[200:206] = b"parent"
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        assert finish(child) == "done\n"
        assert memory[100:105] == b"child"
        assert memory[65530:] == b"at end"
    mounted.remount()
    data = (mnt / "a").read_bytes()
    assert (data[100:105], data[200:206], data[65530:]) == (b"child", b"parent", b"at end")


def test_a_mapping_that_is_only_unmapped_is_kept(mnt: Path, mounted: Any) -> None:
    (mnt / "a").write_bytes(bytes(3 * MIB))
    with (mnt / "a").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 3 * MIB)
        for place in range(0, 3 * MIB, 4096):
            memory[place : place + 4] = place.to_bytes(4, "little")
        memory.close()
    mounted.remount()
    data = (mnt / "a").read_bytes()
    assert all(
        data[place : place + 4] == place.to_bytes(4, "little") for place in range(0, 3 * MIB, 4096)
    )


def test_a_mapping_sees_what_is_written_and_a_read_what_is_mapped(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"." * 8192)
    with (mnt / "a").open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 8192) as memory:
        assert memory[:4] == b"...."
        file.write(b"written")
        assert memory[:7] == b"written"
        memory[5000:5006] = b"mapped"
        assert os.pread(file.fileno(), 6, 5000) == b"mapped"


def test_a_private_mapping_runs_a_program_from_the_mount(mnt: Path) -> None:
    (mnt / "true").write_bytes(Path("/bin/true").read_bytes())
    (mnt / "true").chmod(0o755)
    assert subprocess.run([mnt / "true"], check=False).returncode == 0


@pytest.mark.timeout(180)
def test_a_file_over_four_gibibytes(mnt: Path, mounted: Any) -> None:
    tail = os.urandom(5 * MIB)
    with (mnt / "a").open("wb") as file:
        file.write(b"start")
        file.seek(5 * GIB)
        file.write(tail)
    mounted.remount()
    assert (mnt / "a").stat().st_size == 5 * GIB + 5 * MIB
    assert (mnt / "a").stat().st_blocks * 512 < 8 * MIB
    with (mnt / "a").open("r+b") as file:
        assert file.read(8) == b"start" + bytes(3)
        file.seek(4 * GIB - 2)
        assert file.read(4) == bytes(4)
        file.seek(5 * GIB - 2)
        assert file.read() == bytes(2) + tail
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    mounted.remount()
    with (mnt / "a").open("rb") as file:
        file.seek(5 * GIB)
        assert file.read() == tail[:-1] + b"!"


def test_a_write_by_the_unprivileged_drops_set_id_bits(
    mnt: Path, as_root: None, open_to_all: None, script: Any, mounted: Any
) -> None:
    code = """
with open(sys.argv[1], "r+b") as file:
    if sys.argv[2] == "write":
        file.write(b"changed")
    else:
        file.truncate(3)
"""
    for how in ("write", "truncate"):
        for uid, expected in ((NOBODY, 0o777), (None, 0o6777)):
            path = mnt / f"{how} {uid}"
            path.write_bytes(b"bytes that are there")
            path.chmod(0o6777)
            finish(script(code, path, how, uid=uid))
            assert stat.S_IMODE(path.stat().st_mode) == expected, (how, uid)
            mounted.remount()
            assert stat.S_IMODE(path.stat().st_mode) == expected, (how, uid)


def test_permissions_are_checked(mnt: Path, as_root: None, open_to_all: None, script: Any) -> None:
    (mnt / "secret").write_bytes(b"root's")
    (mnt / "secret").chmod(0o600)
    (mnt / "open").mkdir()
    (mnt / "open").chmod(0o777)
    code = """
try:
    open(sys.argv[1])
except PermissionError:
    print("refused")
open(sys.argv[2], "w").write("mine")
print(os.stat(sys.argv[2]).st_uid)
"""
    child = script(code, mnt / "secret", mnt / "open" / "file", uid=NOBODY)
    assert finish(child).split() == ["refused", str(NOBODY)]


def test_exclusive_creation_is_exclusive(mnt: Path, script: Any) -> None:
    code = """
won = 0
for number in range(100):
    try:
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        won += 1
    except FileExistsError:
        pass
print(won)
"""
    racers = [script(code, mnt) for _ in range(3)]
    assert sum(int(finish(racer)) for racer in racers) == 100


def test_locks_are_kept_between_processes(mnt: Path, script: Any) -> None:
    (mnt / "db").touch()
    code = """
import fcntl
fd = os.open(sys.argv[1], os.O_RDWR)
for how in (fcntl.flock, fcntl.lockf):
    try:
        how(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("got it")
    except BlockingIOError:
        print("taken")
"""
    with (mnt / "db").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert finish(script(code, mnt / "db")).split() == ["taken", "taken"]
    assert finish(script(code, mnt / "db")).split() == ["got", "it", "got", "it"]


def test_direct_io_reads_what_was_written(mnt: Path) -> None:
    fd = os.open(mnt / "a", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    block = mmap.mmap(-1, 65536)
    block.write(hashlib.sha512(b"seed").digest() * 1024)
    try:
        assert os.pwrite(fd, block, 0) == 65536
        into = mmap.mmap(-1, 65536)
        assert os.preadv(fd, [into], 0) == 65536
        assert into[:] == block[:]
    finally:
        os.close(fd)


def test_copying_within_the_mount_copies(mnt: Path) -> None:
    data = os.urandom(3 * MIB)
    (mnt / "a").write_bytes(data)
    subprocess.run(["cp", "--sparse=always", mnt / "a", mnt / "b"], check=True)
    assert (mnt / "b").read_bytes() == data
    with (mnt / "a").open("rb") as source, (mnt / "c").open("wb") as target:
        copied = 0
        while copied < len(data):
            copied += os.copy_file_range(source.fileno(), target.fileno(), len(data) - copied)
    assert (mnt / "c").read_bytes() == data


def test_fsync_of_files_and_directories_succeeds(mnt: Path) -> None:
    (mnt / "d").mkdir()
    with (mnt / "d" / "a").open("wb") as file:
        file.write(b"bytes")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    fd = os.open(mnt / "d", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
