"""What every filesystem does with names and attributes: agentfs', and the model it is held to.

A suite inherits the class and brings the fixture `shell`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agentfs.filesystem.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE
from fakes.model import Model
from fakes.volumes import AGENT, Shell

AnyShell = Shell | Model

TYPES = {
    "regular": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
}


def errno_of(error: OSError) -> int | None:
    """The errno, also of an error whose class alone says it."""
    if error.errno is None and isinstance(error, FileExistsError):
        return errno.EEXIST
    return error.errno


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what counts
        yield
    assert errno.errorcode[errno_of(caught.value) or 0] == errno.errorcode[number]


class NamespaceContract:
    """The tests. None of them needs permission checks, which are the kernel's."""

    @pytest.mark.parametrize("kind", TYPES)
    def test_every_type_of_file_can_be_made(self, shell: AnyShell, kind: str) -> None:
        rdev = os.makedev(7, 300) if "device" in kind else None
        shell.mknod("/a", TYPES[kind] | 0o640, rdev)
        attributes = shell.attributes("/a")
        assert (attributes.mode, attributes.nlink) == (TYPES[kind] | 0o640, 1)
        assert (attributes.size, attributes.rdev) == (0, rdev)

    def test_a_symbolic_link_says_where_it_points_and_how_long_that_is(
        self, shell: AnyShell
    ) -> None:
        shell.symlink(b"../some/\xff\xfewhere", "/link")
        assert shell.attributes("/link").target == b"../some/\xff\xfewhere"
        assert shell.attributes("/link").size == 15

    @pytest.mark.parametrize("make", ["mkdir", "mknod", "symlink", "link"])
    def test_a_name_that_is_taken_is_refused(self, shell: AnyShell, make: str) -> None:
        shell.mknod("/taken", stat.S_IFREG | 0o644)
        shell.mknod("/other", stat.S_IFREG | 0o644)
        actions: dict[str, Callable[[], object]] = {
            "mkdir": lambda: shell.mkdir("/taken"),
            "mknod": lambda: shell.mknod("/taken", stat.S_IFREG),
            "symlink": lambda: shell.symlink(b"x", "/taken"),
            "link": lambda: shell.link("/other", "/taken"),
        }
        with refused(errno.EEXIST):
            actions[make]()
        assert shell.names() == [b"other", b"taken"]
        assert shell.attributes("/other").nlink == 1
        assert shell.attributes("").nlink == 2

    def test_nothing_is_made_in_a_directory_that_is_missing(self, shell: AnyShell) -> None:
        with refused(errno.ENOENT):
            shell.mkdir("/missing/a")
        shell.mknod("/file", stat.S_IFREG)
        with refused(errno.ENOTDIR):
            shell.mkdir("/file/a")

    def test_a_directory_counts_its_subdirectories(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.mkdir("/d/one")
        shell.mkdir("/d/two")
        shell.mknod("/d/file", stat.S_IFREG)
        assert shell.attributes("/d").nlink == 4
        shell.rmdir("/d/one")
        assert shell.attributes("/d").nlink == 3
        assert shell.attributes("").nlink == 3

    def test_a_directory_with_an_entry_cannot_be_removed(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.mknod("/d/file", stat.S_IFREG)
        with refused(errno.ENOTEMPTY):
            shell.rmdir("/d")
        shell.unlink("/d/file")
        shell.rmdir("/d")
        assert shell.names() == []

    def test_unlink_is_for_files_and_rmdir_for_directories(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.mknod("/f", stat.S_IFREG)
        with refused(errno.EISDIR):
            shell.unlink("/d")
        with refused(errno.ENOTDIR):
            shell.rmdir("/f")
        with refused(errno.ENOENT):
            shell.unlink("/missing")

    async def test_hard_links_are_one_file(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        await shell.write("/a", b"one")
        shell.link("/a", "/d/b")
        await shell.append("/d/b", b" and two")
        assert await shell.read("/a") == b"one and two"
        assert shell.is_same("/a", "/d/b")
        assert shell.attributes("/a").nlink == 2
        shell.unlink("/a")
        assert shell.attributes("/d/b").nlink == 1
        assert await shell.read("/d/b") == b"one and two"

    def test_directories_have_one_name(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        with refused(errno.EPERM):
            shell.link("/d", "/e")

    # Set-gid directories

    def test_in_a_setgid_directory_files_have_its_group_and_directories_the_bit_too(
        self, shell: AnyShell
    ) -> None:
        shell.mkdir("/d")
        shell.change("/d", gid=77)
        shell.change("/d", mode=0o2775)
        shell.caller = AGENT
        shell.mkdir("/d/sub", 0o755)
        shell.mknod("/d/file", stat.S_IFREG | 0o644)
        shell.symlink(b"x", "/d/link")
        for name in ("sub", "file", "link"):
            assert shell.attributes(f"/d/{name}").gid == 77, name
            assert shell.attributes(f"/d/{name}").uid == AGENT.uid
        assert shell.attributes("/d/sub").mode == stat.S_IFDIR | 0o2755
        assert shell.attributes("/d/file").mode == stat.S_IFREG | 0o644

    def test_elsewhere_files_have_the_group_of_who_makes_them(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.change("/d", gid=77)
        shell.caller = AGENT
        shell.mkdir("/d/sub")
        assert shell.attributes("/d/sub").gid == AGENT.gid

    def test_a_new_owner_takes_set_id_bits_and_capabilities_away(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG | 0o755)
        shell.change("/a", mode=0o6755)
        shell.set_xattr("/a", b"security.capability", b"all of them")
        shell.change("/a", uid=5)
        assert shell.attributes("/a").mode == stat.S_IFREG | 0o755
        assert shell.xattrs("/a") == {}

    def test_a_new_owner_leaves_the_bits_of_a_directory(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.change("/d", mode=0o2775)
        shell.change("/d", uid=5)
        assert shell.attributes("/d").mode == stat.S_IFDIR | 0o2775

    def test_set_gid_without_group_execution_marks_locking_and_stays(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG | 0o644)
        shell.change("/a", mode=0o2644)
        shell.change("/a", gid=5)
        assert shell.attributes("/a").mode == stat.S_IFREG | 0o2644

    # Rename

    async def test_rename_replaces_a_file(self, shell: AnyShell) -> None:
        await shell.write("/a", b"new")
        await shell.write("/b", b"old")
        shell.rename("/a", "/b")
        assert shell.names() == [b"b"]
        assert await shell.read("/b") == b"new"

    def test_rename_to_itself_does_nothing(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG)
        shell.rename("/a", "/a")
        assert shell.names() == [b"a"]

    def test_rename_to_another_name_of_the_same_file_leaves_both(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG)
        shell.link("/a", "/b")
        shell.rename("/a", "/b")
        assert shell.names() == [b"a", b"b"]
        assert shell.attributes("/a").nlink == 2

    def test_rename_moves_the_link_count_of_a_directory(self, shell: AnyShell) -> None:
        shell.mkdir("/from")
        shell.mkdir("/to")
        shell.mkdir("/from/d")
        shell.rename("/from/d", "/to/d")
        assert (shell.attributes("/from").nlink, shell.attributes("/to").nlink) == (2, 3)
        assert shell.attributes("").nlink == 4

    def test_rename_over_an_empty_directory_replaces_it(self, shell: AnyShell) -> None:
        shell.mkdir("/from")
        shell.mkdir("/to")
        shell.mkdir("/from/d")
        shell.mknod("/from/d/file", stat.S_IFREG)
        shell.mkdir("/to/d")
        shell.rename("/from/d", "/to/d")
        assert shell.names("/to/d") == [b"file"]
        assert (shell.attributes("/from").nlink, shell.attributes("/to").nlink) == (2, 3)

    def test_rename_over_an_empty_directory_beside_it(self, shell: AnyShell) -> None:
        shell.mkdir("/a")
        shell.mkdir("/b")
        shell.rename("/a", "/b")
        assert shell.names() == [b"b"]
        assert shell.attributes("").nlink == 3

    def test_rename_over_what_cannot_be_replaced_is_refused(self, shell: AnyShell) -> None:
        shell.mkdir("/d")
        shell.mkdir("/full")
        shell.mknod("/full/file", stat.S_IFREG)
        shell.mknod("/f", stat.S_IFREG)
        for old, new, number in (
            ("/d", "/full", errno.ENOTEMPTY),
            ("/f", "/d", errno.EISDIR),
            ("/d", "/f", errno.ENOTDIR),
            ("/d", "/d/sub", errno.EINVAL),
            ("/full/file", "/full", errno.ENOTEMPTY),
            ("/missing", "/x", errno.ENOENT),
        ):
            with refused(number):
                shell.rename(old, new)
        assert shell.names() == [b"d", b"f", b"full"]
        assert shell.attributes("").nlink == 4

    def test_rename_noreplace_replaces_nothing(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG | 0o600)
        shell.mknod("/b", stat.S_IFREG | 0o644)
        with refused(errno.EEXIST):
            shell.rename("/a", "/b", RENAME_NOREPLACE)
        assert shell.attributes("/b").mode == stat.S_IFREG | 0o644
        shell.rename("/a", "/c", RENAME_NOREPLACE)
        assert shell.names() == [b"b", b"c"]

    async def test_exchange_swaps_a_file_and_a_directory(self, shell: AnyShell) -> None:
        shell.mkdir("/from")
        shell.mkdir("/to")
        shell.mkdir("/from/x")
        shell.mknod("/from/x/below", stat.S_IFREG)
        await shell.write("/to/y", b"bytes")
        shell.rename("/from/x", "/to/y", RENAME_EXCHANGE)
        assert await shell.read("/from/x") == b"bytes"
        assert shell.names("/to/y") == [b"below"]
        assert (shell.attributes("/from").nlink, shell.attributes("/to").nlink) == (2, 3)

    def test_exchange_in_one_directory(self, shell: AnyShell) -> None:
        shell.mkdir("/a")
        shell.mknod("/b", stat.S_IFREG)
        shell.rename("/a", "/b", RENAME_EXCHANGE)
        assert stat.S_ISDIR(shell.attributes("/b").mode)
        assert stat.S_ISREG(shell.attributes("/a").mode)
        assert shell.attributes("").nlink == 3

    def test_exchange_takes_two(self, shell: AnyShell) -> None:
        shell.mkdir("/a")
        with refused(errno.ENOENT):
            shell.rename("/a", "/missing", RENAME_EXCHANGE)
        assert shell.names() == [b"a"]

    # Extended attributes

    @pytest.mark.parametrize("name", [b"user.kind", b"security.capability", b"trusted.x"])
    def test_extended_attributes_are_kept(self, shell: AnyShell, name: bytes) -> None:
        shell.mknod("/a", stat.S_IFREG)
        shell.set_xattr("/a", name, b"\0 any \xff bytes")
        shell.set_xattr("/a", b"user.empty", b"")
        assert shell.xattrs("/a") == {name: b"\0 any \xff bytes", b"user.empty": b""}
        shell.set_xattr("/a", name, b"new")
        assert shell.get_xattr("/a", name) == b"new"
        shell.remove_xattr("/a", name)
        assert shell.xattrs("/a") == {b"user.empty": b""}

    def test_missing_and_foreign_attributes_are_refused(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG)
        with refused(errno.ENODATA):
            shell.get_xattr("/a", b"user.none")
        with refused(errno.ENODATA):
            shell.remove_xattr("/a", b"user.none")
        with refused(errno.EOPNOTSUPP):
            shell.set_xattr("/a", b"system.other", b"")

    def test_attributes_go_with_the_file(self, shell: AnyShell) -> None:
        shell.mknod("/a", stat.S_IFREG)
        shell.set_xattr("/a", b"user.kind", b"prompt")
        shell.unlink("/a")
        shell.mknod("/a", stat.S_IFREG)
        assert shell.xattrs("/a") == {}

    # Bytes

    async def test_what_lies_between_the_end_and_a_write_reads_as_zeros(
        self, shell: AnyShell
    ) -> None:
        await shell.write("/a", b"start")
        await shell.write("/a", b"end", 10_000)
        assert await shell.read("/a") == b"start" + bytes(9995) + b"end"

    async def test_truncation_cuts_and_extends_with_zeros(self, shell: AnyShell) -> None:
        await shell.write("/a", b"0123456789")
        await shell.truncate("/a", 4)
        await shell.truncate("/a", 8)
        assert await shell.read("/a") == b"0123" + bytes(4)

    async def test_an_unlinked_file_lives_while_it_is_open(self, shell: AnyShell) -> None:
        await shell.write("/a", b"bytes")
        handle = shell.open("/a")
        shell.unlink("/a")
        await shell.pwrite(handle, b"!", 5)  # type: ignore[arg-type]
        assert await shell.pread(handle, 10, 0) == b"bytes!"  # type: ignore[arg-type]
        assert shell.names() == []
        shell.close(handle)  # type: ignore[arg-type]

    async def test_a_replaced_file_lives_while_it_is_open(self, shell: AnyShell) -> None:
        await shell.write("/a", b"old")
        handle = shell.open("/a")
        await shell.replace("/a", b"new")
        assert await shell.pread(handle, 10, 0) == b"old"  # type: ignore[arg-type]
        assert await shell.read("/a") == b"new"
        shell.close(handle)  # type: ignore[arg-type]
