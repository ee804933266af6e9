"""Files that are written again and again: kept open, so that the relay may let in who writes."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentfs.filesystem import passthrough
from agentfs.filesystem.livefile import LiveFile
from agentfs.filesystem.passthrough import PassthroughFiles
from fakes.relay import FakeRelay
from fakes.volumes import MIB, Machine, Shell, profile, quiet

CONVERSATION = "/talk"


class Talk:
    """A volume in relay mode, whose kernel writes the staged copy by itself."""

    def __init__(self, shell: Shell, relay: FakeRelay) -> None:
        files = shell.volume.files
        assert isinstance(files, PassthroughFiles)
        self.shell, self.relay, self.files = shell, relay, files
        self.text = b""

    @property
    def file(self) -> LiveFile:
        return self.shell.file(CONVERSATION)

    @property
    def is_let_in(self) -> bool:
        """Whether a program may write without our being asked."""
        file = self.shell.volume.table.live(self.shell.inode(CONVERSATION).id)
        return file is not None and self.relay.opens_writes.get(file.nodeid, False)

    def write(self, data: bytes) -> None:
        staged = self.file.staged
        assert staged is not None
        with open(staged.path, "ab") as copy:
            copy.write(data)
        self.text += data

    async def ask(self, data: bytes) -> None:
        """Open by asking us, append, close."""
        await self.files.prepare(self.shell.inode(CONVERSATION), os.O_WRONLY | os.O_APPEND)
        handle = self.shell.open(CONVERSATION, os.O_WRONLY | os.O_APPEND)
        self.relay.open_files[self.file.nodeid] += 1
        self.write(data)
        self.relay.closed(handle.file.nodeid)
        self.shell.close(handle)

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """A program that the relay lets in has it open for writing."""
        nodeid = self.file.nodeid
        self.relay.opened(nodeid, writes=True)
        yield
        self.relay.closed(nodeid, writes=True)

    async def append(self, data: bytes) -> None:
        if not self.is_let_in:
            await self.ask(data)
            return
        nodeid = self.file.nodeid
        with self.let_in():
            self.write(data)
        self.files.closed(nodeid)

    async def begin(self, times: int = 3) -> None:
        await self.shell.write(CONVERSATION, b"")
        for number in range(times):
            await self.append(b"turn %d\n" % number)

    async def text_of(self, path: str = CONVERSATION) -> bytes:
        """What is stored of it, once it is sealed."""
        inode = self.shell.inode(path)
        assert inode.content is not None
        return await self.files._contents.read(inode.content, 0, inode.size)


@pytest.fixture
def talk(machine: Machine) -> Talk:
    relay = FakeRelay()
    return Talk(machine.open(profile(budget_bytes=10 * MIB), relay=relay), relay)


async def test_what_is_written_thrice_in_a_row_is_kept_open(talk: Talk) -> None:
    await talk.begin(2)
    assert not talk.is_let_in
    await talk.append(b"third\n")
    assert talk.is_let_in
    await talk.append(b"without us\n")
    assert talk.file.writers == 1
    assert talk.file.handles == 0
    assert talk.file.inode.size == len(talk.text)
    await talk.shell.sync()
    assert not talk.is_let_in
    assert await talk.text_of() == talk.text


async def test_what_is_written_now_and_then_is_not(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passthrough, "_KEPT_S", 0.0)
    await talk.begin(5)
    assert not talk.is_let_in
    assert talk.file.writers == 0


@pytest.mark.parametrize("is_told", [True, False])
async def test_what_was_looked_at_while_it_was_written_is_stored(talk: Talk, is_told: bool) -> None:
    await talk.begin()
    await talk.shell.seal(CONVERSATION)
    with talk.let_in():
        talk.write(b"more")
        talk.file.refresh()  # as a stat does, and all is known but that it changed
    if is_told:
        talk.files.closed(talk.file.nodeid)
    await talk.shell.sync()
    assert await talk.text_of() == talk.text


async def test_what_the_kernel_forgets_before_we_are_told_is_stored(talk: Talk) -> None:
    await talk.begin()
    await talk.shell.seal(CONVERSATION)
    with talk.let_in():
        talk.write(b"more")
    talk.shell.volume.table.forget(talk.file.inode.id, 1)
    assert talk.file.writers == 0
    await talk.shell.sync()
    assert await talk.text_of() == talk.text


async def test_after_a_while_it_is_closed(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    await talk.begin()
    await talk.files.tidy()
    assert talk.is_let_in
    monkeypatch.setattr(passthrough, "_KEPT_S", -1.0)
    await talk.files.tidy()
    assert not talk.is_let_in
    assert talk.file.writers == 0
    assert talk.file.is_dirty


async def test_who_writes_when_it_is_closed_goes_on(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk.begin()
    await talk.shell.seal(CONVERSATION)
    with talk.let_in():
        talk.files.close_kept()
        assert not talk.is_let_in
        assert talk.file.writers == 1
        await talk.shell.sync()
        talk.write(b"afterwards")
        assert talk.shell.is_staged(CONVERSATION), "its bytes are to go there"
    talk.files.closed(talk.file.nodeid)
    assert talk.file.writers == 0
    await talk.shell.sync()
    assert await talk.text_of() == talk.text


async def test_a_reader_that_stays_does_not_keep_it_open(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk.begin()
    talk.relay.opened(talk.file.nodeid)
    with talk.let_in():
        talk.write(b"more")
    monkeypatch.setattr(passthrough, "_KEPT_S", -1.0)
    await talk.files.tidy()
    assert talk.file.writers == 0
    await talk.shell.sync()
    assert await talk.text_of() == talk.text


async def test_a_file_that_loses_its_name_is_gone(talk: Talk) -> None:
    await talk.begin()
    number = talk.file.inode.id
    talk.shell.unlink(CONVERSATION)
    talk.shell.volume.table.forget(number, 1)
    assert talk.shell.volume.table.live(number) is None
    assert talk.relay.registered == {}
    talk.files.close_kept()
    await talk.files.tidy()


async def test_a_file_that_loses_its_name_while_a_program_writes_it_stays(talk: Talk) -> None:
    await talk.begin()
    nodeid, number = talk.file.nodeid, talk.file.inode.id
    staged = talk.file.staged
    with talk.let_in():
        talk.shell.unlink(CONVERSATION)
        await talk.files.tidy()
        assert staged is not None
        assert os.path.exists(staged.path)
    talk.files.closed(nodeid)
    talk.shell.volume.table.forget(number, 1)
    assert talk.shell.volume.table.live(number) is None


async def test_a_clone_of_what_nobody_writes_waits_for_no_seal(talk: Talk) -> None:
    await talk.begin()
    await talk.shell.clone(CONVERSATION, "/fork")
    assert not talk.is_let_in
    assert talk.shell.inode("/fork").content is None, "it shares the staged copy"
    before = talk.text
    await talk.append(b"of one")
    await talk.shell.sync()
    assert await talk.text_of("/fork") == before
    assert await talk.text_of() == talk.text == before + b"of one"


async def test_set_id_bits_are_taken_away_by_who_writes(talk: Talk) -> None:
    await talk.begin()
    talk.shell.change(CONVERSATION, mode=stat.S_IFREG | stat.S_ISUID | 0o755)
    assert not talk.is_let_in
    talk.shell.change(CONVERSATION, mode=stat.S_IFREG | 0o644)
    assert talk.is_let_in


@pytest.mark.parametrize(("fact", "value"), [("is_safe_unasked", False), ("makes_wait", True)])
async def test_when_room_is_short_nobody_is_let_in(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, fact: str, value: bool
) -> None:
    await talk.begin()
    monkeypatch.setattr(type(talk.shell.volume.staging), fact, value)
    await talk.files.tidy()
    assert not talk.is_let_in
    assert talk.file.writers == 0


async def test_so_many_are_kept_open_and_no_more(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passthrough, "_KEPT_MAX", 0)
    await talk.begin(5)
    assert not talk.is_let_in


async def test_reads_are_granted_until_it_is_written(talk: Talk) -> None:
    await talk.begin()
    granted = []
    attach = talk.relay.attach

    def noting(nodeid: int, backing_id: int, fd: int, **options: int) -> None:
        granted.append(options["fresh_until_ns"] > time.time_ns())
        attach(nodeid, backing_id, fd, **options)

    talk.relay.attach = noting  # type: ignore[method-assign]
    await talk.files.prepare(talk.shell.inode(CONVERSATION), os.O_RDONLY)
    assert granted[-1], "its time of access is later than all that was written"
    with talk.let_in():
        talk.shell.change(CONVERSATION, mode=stat.S_IFREG | 0o600)
        assert not granted[-1], "each write makes it older than what was written"


async def test_what_is_kept_open_is_stored_when_the_mount_ends(
    machine: Machine, talk: Talk
) -> None:
    await talk.begin()
    with talk.let_in():
        talk.write(b"the last")
    await machine.unmount()
    again = machine.open()
    assert await again.read(CONVERSATION) == talk.text
    await again.volume.sync(quiet)
