"""Access lists: rows and modes that cannot contradict each other."""

from __future__ import annotations

import errno
import itertools
import stat

import pytest

from agentfs.filesystem import acl
from agentfs.filesystem.namespace import Caller
from fakes.acl import ACCESS, DEFAULT, packed
from fakes.volumes import Machine, Shell

NAMED = "u::rwx u:4001:rw- g::r-x g:5000:-w- m::rwx o::r--"


@pytest.fixture
def shell(machine: Machine) -> Shell:
    return machine.open()


def row(shell: Shell, path: str, name: str = ACCESS) -> bytes | None:
    return shell.volume.index.xattrs.get(shell.inode(path).id, name.encode())


def test_a_list_is_told_with_what_the_mode_says() -> None:
    told = acl.with_mode(packed(NAMED), 0o100610)
    assert told == packed("u::rw- u:4001:rw- g::r-x g:5000:-w- m::--x o::---")
    without_mask = acl.with_mode(packed("u::rwx g::r-x o::r--"), 0o100610)
    assert without_mask == packed("u::rw- g::--x o::---")


def test_what_the_mode_says_is_in_no_row(shell: Shell) -> None:
    shell.mknod("/a", stat.S_IFREG | 0o600)
    shell.set_xattr("/a", ACCESS.encode(), packed(NAMED))
    assert shell.inode("/a").mode == stat.S_IFREG | 0o774
    kept = row(shell, "/a")
    assert kept == packed("u::--- u:4001:rw- g::r-x g:5000:-w- m::--- o::---")
    shell.change("/a", mode=0o640)
    assert row(shell, "/a") == kept
    expected = packed("u::rw- u:4001:rw- g::r-x g:5000:-w- m::r-- o::---")
    assert shell.get_xattr("/a", ACCESS.encode()) == expected


def test_a_list_that_says_no_more_than_a_mode_is_no_row(shell: Shell) -> None:
    shell.mknod("/a", stat.S_IFREG | 0o4600)
    for _ in range(2):
        shell.set_xattr("/a", ACCESS.encode(), packed("u::r-- g::-w- o::--x"))
        assert shell.inode("/a").mode == stat.S_IFREG | 0o4421
        assert row(shell, "/a") is None
        shell.set_xattr("/a", ACCESS.encode(), packed(NAMED))  # and the next one removes it


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_default_list_takes_the_place_of_the_umask(shell: Shell, umask: int) -> None:
    parent = shell.mkdir("/d").id
    shell.set_xattr("/d", DEFAULT.encode(), packed(NAMED))
    namespace, caller = shell.volume.namespace, Caller(1, 1, umask)
    assert namespace.create(parent, b"f", stat.S_IFREG | 0o664, caller).mode & 0o777 == 0o664
    assert namespace.create(parent, b"g", stat.S_IFREG | 0o777, caller).mode & 0o777 == 0o774
    assert row(shell, "/d/f", DEFAULT) is None
    namespace.create(parent, b"s", stat.S_IFDIR | 0o700, caller)
    assert row(shell, "/d/s", DEFAULT) == packed(NAMED)
    assert shell.inode("/d/s").mode & 0o777 == 0o700
    link = namespace.create(parent, b"l", stat.S_IFLNK | 0o777, caller, target=b"x")
    assert link.mode & 0o777 == 0o777
    assert shell.xattrs("/d/l") == {}
    nameless = namespace.create_unnamed(parent, stat.S_IFREG | 0o666, caller)
    namespace.link(nameless.id, parent, b"named")
    assert row(shell, "/d/named") == row(shell, "/d/f")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\2\0\0",
        packed(NAMED)[:-1],
        b"\3" + packed(NAMED)[1:],
        packed("u::rwx g::rwx"),
        packed("u::rwx u:1:rwx g::rwx o::rwx"),
        packed("u::rwx g::rwx m::rwx m::rwx o::rwx"),
        packed("u::rwx g::rwx o::rwx").replace(b"\7", b"\x0f"),
    ],
)
def test_what_is_no_list_is_refused_and_changes_nothing(shell: Shell, bad: bytes) -> None:
    shell.mkdir("/d")
    before = shell.inode("/d").mode
    for name in (ACCESS, DEFAULT):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            shell.set_xattr("/d", name.encode(), bad)
        assert caught.value.errno == errno.EINVAL
    assert (shell.inode("/d").mode, shell.xattrs("/d")) == (before, {})


def test_only_the_two_names_are_lists(shell: Shell) -> None:
    shell.mkdir("/d")
    for name in (f"{ACCESS}es", f"{DEFAULT}s", "system.posix_acl", ACCESS.upper()):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            shell.set_xattr("/d", name.encode(), packed(NAMED))
        assert caught.value.errno == errno.EOPNOTSUPP


def test_who_may_not_set_the_bit_loses_it(shell: Shell) -> None:
    shell.mknod("/a", stat.S_IFREG | 0o2770)
    namespace, inode = shell.volume.namespace, shell.inode("/a").id
    for keeps, mode in ((True, 0o2774), (False, 0o774)):
        namespace.set_xattr(inode, ACCESS.encode(), packed(NAMED), keeps_setgid=keeps)
        assert stat.S_IMODE(shell.inode("/a").mode) == mode


def test_every_mode_and_list_agree_after_each_other(shell: Shell) -> None:
    """Whichever was set last, the mode is what the list says, and no other entry has moved."""
    shell.mknod("/a", stat.S_IFREG)
    for mode, text in itertools.product(
        range(0, 0o1000, 0o037), (NAMED, "u::--x g::rwx m::r-x o::rw-")
    ):
        shell.set_xattr("/a", ACCESS.encode(), packed(text))
        shell.change("/a", mode=mode)
        told = shell.get_xattr("/a", ACCESS.encode())
        assert acl.mode_of(told, 0) == (mode, False)
        assert acl.without_mode(told) == acl.without_mode(packed(text))
