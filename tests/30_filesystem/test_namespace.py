"""Names and attributes: the contract, and what only agentfs' own namespace has."""

from __future__ import annotations

import errno
import os
import stat
import time

import pytest

from agentfs.filesystem.directory import DirectoryStream
from agentfs.filesystem.files import needs_atime
from agentfs.model import Inode
from contracts.namespace import NamespaceContract, refused
from fakes.model import Model
from fakes.recount import miscounts
from fakes.volumes import Shell

DAY_NS = 24 * 3600 * 10**9


class TestVolume(NamespaceContract):
    """agentfs."""


class TestModel(NamespaceContract):
    """The model, so that comparing with it means something."""

    @pytest.fixture
    def shell(self) -> Model:
        return Model()


def test_a_name_of_255_bytes_is_the_longest(shell: Shell) -> None:
    longest = "n" * 255
    shell.mkdir(f"/{longest}")
    assert shell.names() == [longest.encode()]
    for action in (
        lambda: shell.mkdir(f"/{longest}n"),
        lambda: shell.rename(f"/{longest}", f"/{longest}n"),
        lambda: shell.inode(f"/{longest}n"),
    ):
        with refused(errno.ENAMETOOLONG):
            action()


def test_a_change_stamps_the_directories_it_is_in(shell: Shell) -> None:
    shell.mkdir("/from")
    shell.mkdir("/to")
    shell.mknod("/from/a", stat.S_IFREG)
    for path in ("/from", "/to"):
        shell.change(path, mtime_ns=1, ctime_ns=1)
    before = time.time_ns()
    shell.rename("/from/a", "/to/a")
    for path in ("/from", "/to"):
        inode = shell.inode(path)
        assert before <= inode.mtime_ns == inode.ctime_ns
    assert shell.inode("/to/a").ctime_ns >= before


def test_a_change_that_is_refused_stamps_nothing(shell: Shell) -> None:
    shell.mkdir("/d")
    shell.mknod("/d/a", stat.S_IFREG)
    shell.change("/d", mtime_ns=1)
    with pytest.raises(FileExistsError):
        shell.mknod("/d/a", stat.S_IFREG)
    with refused(errno.ENOTEMPTY):
        shell.rmdir("/d")
    assert shell.inode("/d").mtime_ns == 1


def test_numbers_are_not_given_twice_in_one_mount(shell: Shell) -> None:
    seen = set()
    for _ in range(20):
        seen.add(shell.mknod("/a", stat.S_IFREG).id)
        shell.unlink("/a")
    assert len(seen) == 20


def test_an_unlinked_file_the_kernel_still_knows_has_attributes(shell: Shell) -> None:
    inode = shell.mknod("/a", stat.S_IFREG | 0o644)
    shell.volume.table.looked_up(inode.id)
    shell.unlink("/a")
    assert shell.volume.table.get(inode.id).nlink == 0
    shell.volume.table.forget(inode.id, 1)
    with refused(errno.ESTALE):
        shell.volume.table.get(inode.id)


def test_an_unlinked_file_without_a_row_takes_no_attributes(shell: Shell) -> None:
    """As through /proc/self/fd: another file may have its number after the next mount."""
    inode = shell.mknod("/a", stat.S_IFREG | 0o644)
    shell.volume.table.looked_up(inode.id)
    shell.unlink("/a")
    with refused(errno.ENOENT):
        shell.volume.namespace.set_xattr(inode.id, b"user.left", b"behind")
    shell.volume.table.forget(inode.id, 1)
    assert not miscounts(shell.volume.index)


def test_names_of_an_unlinked_file_cannot_be_made(shell: Shell) -> None:
    handle = shell.open("/a", os.O_RDWR | os.O_CREAT)
    shell.unlink("/a")
    with refused(errno.ENOENT):
        shell.volume.namespace.link(handle.file.inode.id, 1, b"again")
    shell.close(handle)


def test_many_unlinked_files_leave_no_rows(shell: Shell) -> None:
    for number in range(600):
        shell.mknod(f"/{number}", stat.S_IFREG)
    for number in range(600):
        shell.unlink(f"/{number}")
    shell.volume.table.reap()
    (left,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert left == 1


# Reading directories


def fill(shell: Shell, count: int) -> list[bytes]:
    names = [b"%04d" % number for number in range(count)]
    for name in names:
        shell.mknod(f"/{name.decode()}", stat.S_IFREG)
    return names


def take(stream: DirectoryStream, position: int, count: int) -> tuple[list[bytes], int]:
    """As a reply that holds *count* entries: (names, position after them)."""
    names: list[bytes] = []
    for after, name, _ in stream.entries(position):
        if len(names) == count:
            break
        names.append(name)
        position = after
    return names, position


@pytest.mark.parametrize("count", [1, 2, 7, 31, 32, 33, 1000])
def test_a_directory_read_in_pieces_gives_each_entry_once(shell: Shell, count: int) -> None:
    names = fill(shell, 100)
    stream = DirectoryStream(shell.volume.namespace, 1)
    found, position = [], 0
    while piece := take(stream, position, count):
        if not piece[0]:
            break
        found += piece[0]
        position = piece[1]
    assert found == [b".", b"..", *names]


def test_entries_that_stay_are_read_once_while_others_come_and_go(shell: Shell) -> None:
    names = fill(shell, 200)
    stream = DirectoryStream(shell.volume.namespace, 1)
    found, position, step = [], 0, 0
    while True:
        piece, position = take(stream, position, 9)
        if not piece:
            break
        found += piece
        for number in range(step * 7 + 3, step * 7 + 5):
            if number % 5 and shell.exists(f"/{number:04d}"):
                shell.unlink(f"/{number:04d}")
        shell.mknod(f"/{step:04d}+", stat.S_IFREG)
        shell.mknod(f"/9{step:04d}", stat.S_IFREG)
        step += 1
    stayed = [name for name in names if not int(name) % 5]
    assert [name for name in found if name in stayed] == stayed
    assert len(found) == len(set(found))


def test_a_position_told_earlier_leads_back_to_where_it_was(shell: Shell) -> None:
    names = fill(shell, 100)
    stream = DirectoryStream(shell.volume.namespace, 1)
    _, told = take(stream, 0, 40)
    after_told, _ = take(stream, told, 20)
    for name in names[:30]:
        shell.unlink(f"/{name.decode()}")
    take(stream, told, 50)
    assert take(stream, told, 20)[0] == after_told


def test_a_rewound_stream_sees_what_there_is_now(shell: Shell) -> None:
    fill(shell, 10)
    stream = DirectoryStream(shell.volume.namespace, 1)
    take(stream, 0, 100)
    shell.unlink("/0000")
    shell.mknod("/new", stat.S_IFREG)
    names, _ = take(stream, 0, 100)
    assert names == [b".", b"..", *(b"%04d" % number for number in range(1, 10)), b"new"]


# relatime


@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns", "ctime_ns", "expected"),
    [
        (5 * DAY_NS, 1, 1, False),
        (5 * DAY_NS, 5 * DAY_NS, 1, True),
        (5 * DAY_NS, 1, 5 * DAY_NS + 1, True),
        (4 * DAY_NS, 1, 1, True),
    ],
)
def test_a_read_is_recorded_after_a_change_or_once_a_day(
    atime_ns: int, mtime_ns: int, ctime_ns: int, expected: bool
) -> None:
    inode = Inode(2, stat.S_IFREG, 0, 0, 1, 0, atime_ns, mtime_ns, ctime_ns)
    assert needs_atime(inode, 5 * DAY_NS + 10) is expected


async def test_reading_moves_atime_unless_the_file_was_opened_without(shell: Shell) -> None:
    await shell.write("/a", b"bytes")
    shell.change("/a", atime_ns=1)
    handle = shell.open("/a", os.O_RDONLY | os.O_NOATIME)
    await shell.pread(handle, 5, 0)
    shell.close(handle)
    assert shell.inode("/a").atime_ns == 1
    await shell.read("/a")
    assert shell.inode("/a").atime_ns > 1


async def test_times_of_access_are_written_together_and_seen_at_once(shell: Shell) -> None:
    paths = [f"/{number:03d}" for number in range(20)]
    for path in paths:
        await shell.write(path, b"bytes")
    await shell.volume.sync(lambda done, total: None)
    for path in paths:
        shell.change(path, atime_ns=1)
    index = shell.volume.index
    before = index.changes
    for path in paths:
        await shell.read(path)
    seen = [shell.times(path) for path in paths]
    assert min(seen)[0] > 1
    assert index.changes == before
    shell.volume.table.record_reads()
    assert index.changes == before + len(paths)
    assert [shell.times(path) for path in paths] == seen
    rows = index.execute("SELECT atime FROM inode WHERE mode & 61440 = 32768 ORDER BY id")
    assert [row[0] for row in rows] == [atime_ns for atime_ns, _ in seen]
    assert not list(shell.volume.table.files()), "nothing is open, so nothing is kept"


async def test_a_file_that_was_read_and_removed_is_gone(shell: Shell) -> None:
    await shell.write("/a", b"bytes")
    shell.change("/a", atime_ns=1)
    await shell.read("/a")
    number = shell.inode("/a").id
    shell.unlink("/a")
    shell.volume.table.record_reads()
    shell.volume.table.reap()
    assert shell.volume.index.inodes.get(number) is None


async def test_writing_by_the_unprivileged_drops_set_id_bits(shell: Shell) -> None:
    for uid, expected in ((0, 0o6755), (1000, 0o755)):
        await shell.write("/a", b"bytes")
        shell.change("/a", mode=0o6755)
        inode = shell.inode("/a")
        handle = shell.volume.files.open(inode, os.O_WRONLY, is_privileged=uid == 0)
        await shell.pwrite(handle, b"more", 0)
        shell.close(handle)
        assert stat.S_IMODE(shell.inode("/a").mode) == expected


async def test_what_is_remembered_of_a_directory_is_what_its_rows_say(shell: Shell) -> None:
    def is_remembered() -> bool:
        place = (shell.inode("/d").id, b"", 100)
        kept = shell.volume.namespace.kept_rows_after(*place)
        assert kept is None or kept == shell.volume.namespace.rows_after(*place)
        return kept is not None

    shell.mkdir("/d")
    for number in range(5):
        await shell.write(f"/d/{number}", b"x" * number)
    assert is_remembered()
    shell.change("/d/1", mode=0o600, uid=5)
    shell.link("/d/2", "/d/again")
    shell.rename("/d/3", "/d/0")
    shell.unlink("/d/4")
    shell.mkdir("/d/below")
    for _ in range(2):
        is_remembered()
        for name in shell.names("/d"):
            shell.volume.index.inodes.get(shell.inode(f"/d/{os.fsdecode(name)}").id)
        assert is_remembered()
        await shell.sync()
    shell.volume.index.inodes.kept.clear()
    assert not is_remembered()
    assert shell.names("/d") == [b"0", b"1", b"2", b"again", b"below"]
