"""Which files the relay may let programs read without us, where we serve the bytes."""

from __future__ import annotations

import os

import pytest

from agentfs.filesystem import grants
from agentfs.filesystem.files import Handle
from fakes.relay import FakeRelay
from fakes.volumes import Machine, Shell

GRANTED_MAX = 4


class Granting:
    """A volume in plain mode, and a relay that opens files for programs."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.relay = FakeRelay()
        self.files = shell.volume.files
        self.files.grants.begin(self.relay)

    def nodeid(self, path: str) -> int:
        return self.shell.inode(path).id

    def is_granted(self, path: str) -> bool:
        return self.relay.fresh_until_ns.get(self.nodeid(path), 0) > 0 and (
            self.nodeid(path) in self.relay.attached
        )

    def opened(self, path: str) -> int:
        """By a program that the relay lets in."""
        assert self.is_granted(path)
        nodeid = self.nodeid(path)
        self.relay.opened(nodeid)
        return nodeid

    def closed(self, nodeid: int) -> None:
        self.relay.closed(nodeid)
        if not self.relay.opens(nodeid):
            self.files.closed(nodeid)


@pytest.fixture
def granting(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Granting:
    monkeypatch.setattr(grants, "_GRANTED_MAX", GRANTED_MAX)
    return Granting(machine.open())


@pytest.fixture
async def prompt(granting: Granting) -> str:
    await granting.shell.write("/prompt", b"text")
    assert not granting.is_granted("/prompt"), "the first read is to be recorded"
    await granting.shell.read("/prompt")
    assert granting.is_granted("/prompt")
    return "/prompt"


async def test_a_change_ends_it_until_the_next_read(granting: Granting, prompt: str) -> None:
    shell = granting.shell
    changes = [
        lambda: shell.close(shell.open(prompt, os.O_WRONLY)),
        lambda: shell.change(prompt, mtime_ns=2**62),
        lambda: shell.rename(prompt, prompt + "2") or shell.rename(prompt + "2", prompt),
        lambda: shell.link(prompt, prompt + "2"),
        lambda: shell.set_xattr(prompt, b"user.note", b"x"),
        lambda: shell.remove_xattr(prompt, b"user.note"),
    ]
    for change in changes:
        assert granting.is_granted(prompt)
        change()
        assert not granting.is_granted(prompt)
        shell.change(prompt, mtime_ns=1, atime_ns=shell.inode(prompt).ctime_ns + 10**9)
        await shell.read(prompt)


async def test_a_truncation_by_who_opens_for_reading_ends_it(
    granting: Granting, prompt: str
) -> None:
    shell = granting.shell
    handle = shell.open(prompt, os.O_RDONLY | os.O_TRUNC)
    await shell.volume.files.truncate(handle.file, 0, is_privileged=True)
    assert not granting.is_granted(prompt)
    shell.close(handle)


async def test_who_wants_bytes_that_the_kernel_has_no_more_is_noticed_once(
    granting: Granting, prompt: str
) -> None:
    nodeid = granting.opened(prompt)
    file = granting.shell.volume.table.opened(nodeid)
    assert [granting.files.grants.is_read_anew(file) for _ in range(3)] == [True, False, False]
    assert not granting.is_granted(prompt)
    granting.closed(nodeid)
    assert nodeid not in granting.relay.attached


async def test_nobody_is_let_in_while_somebody_writes(granting: Granting, prompt: str) -> None:
    shell = granting.shell
    writer = shell.open(prompt, os.O_WRONLY)
    await shell.read(prompt)
    assert not granting.is_granted(prompt)
    shell.close(writer)
    await shell.read(prompt)
    assert granting.is_granted(prompt)


async def test_who_was_let_in_stays_known(granting: Granting, prompt: str) -> None:
    shell, table = granting.shell, granting.shell.volume.table
    nodeid = granting.opened(prompt)
    await shell.write(prompt, b"other")
    assert nodeid in granting.relay.attached
    assert table.is_open(nodeid)
    granting.closed(nodeid)
    assert nodeid not in granting.relay.attached
    assert not table.is_open(nodeid)


async def test_a_removed_file_goes_with_the_last_who_was_let_in(
    granting: Granting, prompt: str
) -> None:
    shell, table = granting.shell, granting.shell.volume.table
    nodeid = granting.opened(prompt)
    handle = Handle(table.opened(nodeid), is_writer=False, is_privileged=False)
    shell.unlink(prompt)
    table.forget(nodeid, 1 << 40)
    await shell.sync()
    assert await shell.pread(handle, 100, 0) == b"text"
    granting.closed(nodeid)
    assert nodeid not in granting.relay.attached
    table.reap()
    assert shell.volume.index.inodes.get(nodeid) is None


async def test_there_is_a_bound_and_who_was_let_in_is_not_put_out(granting: Granting) -> None:
    shell = granting.shell
    paths = [f"/{number}" for number in range(3 * GRANTED_MAX)]
    opened = []
    for path in paths:
        await shell.write(path, path.encode())
        await shell.read(path)
        opened.append(granting.opened(path))
    assert [path for path in paths if granting.is_granted(path)] == paths[-GRANTED_MAX:]
    assert all(shell.volume.table.is_open(nodeid) for nodeid in opened)
    for nodeid in opened:
        granting.closed(nodeid)
    assert len(granting.relay.attached) == GRANTED_MAX


async def test_what_is_granted_no_more_takes_no_memory(granting: Granting) -> None:
    shell, table = granting.shell, granting.shell.volume.table
    paths = [f"/{number}" for number in range(3 * GRANTED_MAX)]
    for path in paths:
        await shell.write(path, path.encode())
    await shell.sync()
    for path in paths:
        await shell.read(path)
    table.record_reads()
    for path in paths:
        await shell.read(path)
    assert sum(table.live(granting.nodeid(path)) is not None for path in paths) == GRANTED_MAX
    shell.rename(paths[-1], "/renamed")
    shell.change(paths[-2], mtime_ns=2**62)
    assert len(list(table.files())) == GRANTED_MAX - 2


async def test_a_file_that_the_kernel_forgets_is_let_go(granting: Granting, prompt: str) -> None:
    shell = granting.shell
    nodeid = granting.nodeid(prompt)
    await shell.sync()
    shell.volume.table.forget(nodeid, 1 << 40)
    assert nodeid not in granting.relay.attached
    assert shell.volume.table.live(nodeid) is None


async def test_when_the_mount_is_gone_nothing_is_open(
    machine: Machine, granting: Granting, prompt: str
) -> None:
    granting.opened(prompt)
    await machine.unmount()
    shell = machine.open()
    assert await shell.read(prompt) == b"text"
