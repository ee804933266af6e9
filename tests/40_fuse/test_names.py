"""Names and attributes through the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))


def test_every_type_of_file(mnt: Path, as_root: None, mounted: Any) -> None:
    (mnt / "dir").mkdir()
    (mnt / "file").touch()
    os.mkfifo(mnt / "fifo")
    os.symlink("file", mnt / "link")
    os.mknod(mnt / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(mnt / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(mnt / "sock"))
    for _ in ("before", "after a remount"):
        kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in mnt.iterdir()}
        assert kinds == {
            "dir": stat.S_IFDIR,
            "file": stat.S_IFREG,
            "fifo": stat.S_IFIFO,
            "link": stat.S_IFLNK,
            "char": stat.S_IFCHR,
            "block": stat.S_IFBLK,
            "sock": stat.S_IFSOCK,
        }
        assert (mnt / "char").stat().st_rdev == os.makedev(1, 3)
        assert (mnt / "block").stat().st_rdev == os.makedev(7, 300)
        assert os.readlink(mnt / "link") == "file"
        mounted.remount()


def test_a_fifo_carries_bytes(mnt: Path) -> None:
    os.mkfifo(mnt / "fifo")
    writer = threading.Thread(target=(mnt / "fifo").write_bytes, args=(b"through",))
    writer.start()
    assert (mnt / "fifo").read_bytes() == b"through"
    writer.join()


def test_hard_links_are_one_file(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"one")
    os.link(mnt / "a", mnt / "b")
    with (mnt / "b").open("ab") as file:
        file.write(b" and two")
    assert (mnt / "a").read_bytes() == b"one and two"
    assert (mnt / "a").stat().st_ino == (mnt / "b").stat().st_ino
    assert (mnt / "a").stat().st_nlink == 2
    (mnt / "a").unlink()
    assert (mnt / "b").stat().st_nlink == 1


def test_symbolic_links_lead_where_they_say(mnt: Path) -> None:
    (mnt / "d").mkdir()
    (mnt / "d" / "file").write_bytes(b"found")
    os.symlink("d", mnt / "short")
    os.symlink(mnt / "short" / "file", mnt / "long")
    os.symlink("x/" * 2000, mnt / "nowhere")
    assert (mnt / "long").read_bytes() == b"found"
    assert len(os.readlink(mnt / "nowhere")) == 4000
    assert not (mnt / "nowhere").exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_renameat2_noreplace_replaces_nothing(mnt: Path, kind: str) -> None:
    for name in ("a", "b"):
        (mnt / name).mkdir() if kind == "directory" else (mnt / name).write_text(name)
    with pytest.raises(FileExistsError):
        renameat2(mnt / "a", mnt / "b", RENAME_NOREPLACE)
    renameat2(mnt / "a", mnt / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(mnt)) == ["b", "c"]


def test_renameat2_exchange_swaps(mnt: Path, mounted: Any) -> None:
    (mnt / "a").write_bytes(b"was a")
    (mnt / "d").mkdir()
    (mnt / "d" / "below").write_bytes(b"below")
    renameat2(mnt / "a", mnt / "d", RENAME_EXCHANGE)
    for _ in ("before", "after a remount"):
        assert (mnt / "d").read_bytes() == b"was a"
        assert (mnt / "a" / "below").read_bytes() == b"below"
        mounted.remount()
    with pytest.raises(FileNotFoundError):
        renameat2(mnt / "a", mnt / "missing", RENAME_EXCHANGE)


def test_a_directory_cannot_be_moved_into_itself(mnt: Path) -> None:
    (mnt / "d" / "sub").mkdir(parents=True)
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(mnt / "d", mnt / "d" / "sub" / "d")


def test_a_moved_directory_knows_its_new_parent(mnt: Path) -> None:
    (mnt / "from" / "d").mkdir(parents=True)
    (mnt / "to").mkdir()
    (mnt / "to" / "here").touch()
    os.rename(mnt / "from" / "d", mnt / "to" / "d")
    inside = os.open(mnt / "to" / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=inside)
        assert "here" in os.listdir(above)
        os.close(above)
    finally:
        os.close(inside)
    assert (mnt / "from").stat().st_nlink == 2
    assert (mnt / "to").stat().st_nlink == 3


def test_names_may_have_any_bytes_but_slash_and_nul(mnt: Path, mounted: Any) -> None:
    every = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    names = {every, every[:127], b"\n", b" ", b"-rf", b"\xff" * 255, b"...", "ü🙂".encode()}
    names |= {bytes([byte]) for byte in every if byte != ord(".")}
    where = os.fsencode(mnt)
    for name in names:
        with open(where + b"/" + name, "wb") as file:
            file.write(name)
    mounted.remount()
    assert set(os.listdir(where)) == names
    for name in names:
        with open(where + b"/" + name, "rb") as file:
            assert file.read() == name
    for name in names:
        os.unlink(where + b"/" + name)
    assert os.listdir(where) == []


def test_a_name_of_256_bytes_is_too_long(mnt: Path) -> None:
    (mnt / ("n" * 255)).touch()
    for action in (Path.touch, Path.mkdir, Path.unlink, Path.stat):
        with pytest.raises(OSError, match="File name too long"):
            action(mnt / ("n" * 256))
    with pytest.raises(OSError, match="File name too long"):
        os.rename(mnt / ("n" * 255), mnt / ("n" * 256))


def test_times_are_kept_to_the_nanosecond(mnt: Path, mounted: Any) -> None:
    wanted = {
        "old": (1, 2),
        "negative": (-5_000_000_001, -1),
        "now": (1_795_000_000_123_456_789, 1_795_000_000_987_654_321),
        "late": (2**33 * 10**9 + 1, 2**33 * 10**9 + 2),
    }
    for name, times in wanted.items():
        (mnt / name).write_text(name)
        os.utime(mnt / name, ns=times)
    for _ in ("before", "after a remount"):
        for name, times in wanted.items():
            status = (mnt / name).stat()
            assert (status.st_atime_ns, status.st_mtime_ns) == times, name
        mounted.remount()


def test_times_of_links_and_directories_are_their_own(mnt: Path) -> None:
    (mnt / "d").mkdir()
    os.symlink("d", mnt / "link")
    os.utime(mnt / "link", ns=(3, 4), follow_symlinks=False)
    os.utime(mnt / "d", ns=(5, 6))
    assert (mnt / "link").lstat().st_mtime_ns == 4
    assert (mnt / "d").stat().st_mtime_ns == 6


def test_a_read_moves_atime_as_relatime_does(mnt: Path) -> None:
    file = mnt / "a"
    file.write_bytes(b"bytes")
    day_ns = 24 * 3600 * 10**9
    now = time.time_ns()

    def atime_after_reading(atime_ns: int, mtime_ns: int) -> int:
        os.utime(file, ns=(atime_ns, mtime_ns))
        file.read_bytes()
        return file.stat().st_atime_ns

    # ctime is now, so an atime in the future is the only one that needs no update
    assert atime_after_reading(now + day_ns, now) == now + day_ns
    assert atime_after_reading(5, 10) >= now
    assert atime_after_reading(now - 2 * day_ns, 10) >= now


def test_changes_stamp_what_they_change(mnt: Path) -> None:
    (mnt / "d").mkdir()
    (mnt / "d" / "a").write_bytes(b"1")
    os.utime(mnt / "d", ns=(1, 1))
    os.utime(mnt / "d" / "a", ns=(1, 1))
    before = time.time_ns() - 20_000_000  # the kernel's clock may lag a tick behind ours
    with (mnt / "d" / "a").open("ab") as file:
        file.write(b"2")
    assert (mnt / "d" / "a").stat().st_mtime_ns >= before
    assert (mnt / "d").stat().st_mtime_ns == 1
    (mnt / "d" / "b").touch()
    assert (mnt / "d").stat().st_mtime_ns >= before


@pytest.mark.parametrize("name", ["user.kind", "security.agent", "trusted.state"])
def test_extended_attributes(mnt: Path, mounted: Any, as_root: None, name: str) -> None:
    for kind in ("file", "directory"):
        path = mnt / kind
        path.mkdir() if kind == "directory" else path.touch()
        os.setxattr(path, name, b"\0\xff value")
        os.setxattr(path, "user.large", b"x" * 60_000)
        os.setxattr(path, "user.empty", b"")
        with pytest.raises(FileExistsError):
            os.setxattr(path, name, b"", os.XATTR_CREATE)
        with pytest.raises(OSError, match="No data"):
            os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
    mounted.remount()
    for kind in ("file", "directory"):
        path = mnt / kind
        assert set(os.listxattr(path)) == {name, "user.large", "user.empty"}
        assert os.getxattr(path, name) == b"\0\xff value"
        assert os.getxattr(path, "user.large") == b"x" * 60_000
        assert os.getxattr(path, "user.empty") == b""
        os.removexattr(path, name)
        with pytest.raises(OSError, match="No data"):
            os.getxattr(path, name)
        assert set(os.listxattr(path)) == {"user.large", "user.empty"}


def test_statfs_tells_of_the_disk_below_the_store(mnt: Path, mounted: Any) -> None:
    ours, below = os.statvfs(mnt), os.statvfs(mounted.store)
    assert (ours.f_frsize, ours.f_blocks) == (below.f_frsize, below.f_blocks)
    assert ours.f_namemax == 255
    assert 0 < ours.f_bavail <= ours.f_blocks
    assert shutil.disk_usage(mnt).total == shutil.disk_usage(mounted.store).total


def test_the_root_cannot_be_removed_or_moved(mnt: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        mnt.rmdir()
    (mnt / "a").touch()
    assert (mnt / "a").exists()


# Reading directories


class Dirent(ctypes.Structure):
    """What readdir(3) gives on 64-bit Linux."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Directory:
    """An open directory stream of the C library."""

    def __init__(self, path: Path) -> None:
        self._stream = libc.opendir(os.fsencode(path))
        assert self._stream, path

    def next(self) -> bytes | None:
        entry = libc.readdir(self._stream)
        return entry.contents.name if entry else None

    def rest(self) -> list[bytes]:
        return list(iter(self.next, None))

    def tell(self) -> int:
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


@pytest.fixture
def many(mnt: Path) -> Path:
    path = mnt / "many"
    path.mkdir()
    for number in range(1500):
        (path / f"{number:04d} with a name that is not short").touch()
    return path


@pytest.fixture
def stream(many: Path) -> Iterator[Directory]:
    directory = Directory(many)
    yield directory
    directory.close()


def test_a_large_directory_is_listed_whole(many: Path, stream: Directory) -> None:
    found = stream.rest()
    assert len(found) == len(set(found)) == 1502
    assert {b".", b".."} < set(found)


def test_no_entry_that_stays_is_missed_or_doubled_while_others_come_and_go(
    many: Path, stream: Directory
) -> None:
    found, step = [], 0
    while (name := stream.next()) is not None:
        found.append(name)
        step += 1
        if step % 3 == 0 and step < 900:
            (many / f"new {step}").touch()
            (many / f"{step:04d}+").touch()
            number = step * 7 % 1500
            if number % 5:
                (many / f"{number:04d} with a name that is not short").unlink(missing_ok=True)
    stayed = [b"%04d with a name that is not short" % number for number in range(0, 1500, 5)]
    counts = {name: found.count(name) for name in stayed}
    assert counts == dict.fromkeys(stayed, 1)
    assert len(found) == len(set(found))


def test_renaming_everything_while_it_is_listed_ends(many: Path, stream: Directory) -> None:
    count = 0
    while (name := stream.next()) is not None and count < 10_000:
        if not name.startswith(b".") and not name.endswith(b"moved"):
            os.rename(os.fsencode(many) + b"/" + name, os.fsencode(many) + b"/" + name + b"moved")
        count += 1
    assert count < 10_000
    assert len(os.listdir(many)) == 1500


def test_seekdir_leads_back_to_where_telldir_was(many: Path, stream: Directory) -> None:
    for _ in range(700):
        stream.next()
    told = stream.tell()
    rest = stream.rest()
    (many / rest[0].decode()).rename(many / "zzz")
    for number in range(0, 600, 2):
        (many / f"{number:04d} with a name that is not short").unlink()
    stream.seek(told)
    again = stream.rest()
    assert [name for name in again if name != b"zzz"] == rest[1:]


def test_rewinddir_shows_what_there_is_now(many: Path, stream: Directory) -> None:
    stream.rest()
    (many / "0000 with a name that is not short").unlink()
    (many / "new").touch()
    stream.rewind()
    found = stream.rest()
    assert b"new" in found
    assert b"0000 with a name that is not short" not in found
    assert len(found) == 1502


def test_a_tree_can_be_removed(many: Path, mnt: Path) -> None:
    shutil.rmtree(many)
    assert os.listdir(mnt) == []


def test_a_directory_removed_while_open_lists_nothing_and_takes_nothing(mnt: Path) -> None:
    (mnt / "d").mkdir()
    fd = os.open(mnt / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (mnt / "d").rmdir()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what counts
            os.mkdir("sub", dir_fd=fd)
        assert caught.value.errno == errno.ENOENT
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
