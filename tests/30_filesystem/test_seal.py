"""Sealing: from staged files to contents made of chunks."""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import trio

from agentfs.chunks import cut, params_for_size
from agentfs.chunks.digest import ContentHasher
from agentfs.filesystem import seal
from agentfs.policy.sealing import due
from fakes.recount import miscounts
from fakes.relay import FakeRelay
from fakes.volumes import MIB, Machine, Shell, profile, running


def text(seed: int, size: int) -> bytes:
    """Bytes that compress somewhat and repeat nowhere."""
    rng = random.Random(seed)
    return rng.randbytes(size // 2).hex().encode()[:size].ljust(size, b".")


def during_the_seal(
    monkeypatch: pytest.MonkeyPatch, step: str, action: Callable[[], None]
) -> list[str]:
    """Do *action* on the event loop's thread, once, when the sealing thread gets to *step*."""
    original: Any = getattr(seal, step)
    done: list[str] = []

    def interrupted(*arguments: Any) -> Any:
        if not done:
            done.append(step)
            trio.from_thread.run_sync(action)
        return original(*arguments)

    monkeypatch.setattr(seal, step, interrupted)
    return done


async def test_a_sealed_file_reads_as_it_was_written_and_is_no_longer_staged(
    shell: Shell, machine: Machine
) -> None:
    data = text(1, 300_000)
    await shell.write("/a", data)
    assert await shell.read("/a") == data
    await shell.seal("/a")
    assert not shell.is_staged("/a")
    assert not machine.staged_names()
    assert await shell.read("/a") == data
    assert await shell.read("/a", 299_990, 100) == data[-10:]
    assert await shell.read("/a", 300_000, 100) == b""


async def test_the_same_bytes_sealed_twice_are_one_content(shell: Shell) -> None:
    data = text(1, 100_000)
    await shell.write("/a", data)
    await shell.seal("/a")
    stored = shell.segment_bytes()
    await shell.write("/b", data)
    await shell.seal("/b")
    assert shell.inode("/a").content == shell.inode("/b").content
    assert shell.segment_bytes() == stored
    assert not miscounts(shell.volume.index)


async def test_duplicates_sealed_together_are_stored_once(shell: Shell) -> None:
    data = text(1, 100_000)
    for number in range(20):
        await shell.write(f"/{number}", data)
    await shell.sync()
    assert len({shell.inode(f"/{number}").content for number in range(20)}) == 1
    (refs,) = shell.volume.index.execute("SELECT refs FROM content").fetchone()
    assert refs == 20
    assert shell.segment_bytes() < len(data)
    assert not miscounts(shell.volume.index)


async def test_a_file_of_equal_pages_takes_one_chunk_many_times(shell: Shell) -> None:
    await shell.write("/a", bytes(range(256)) * 16 * 1024)
    await shell.seal("/a")
    chunks = [chunk for chunk, _ in shell.recipe("/a")]
    assert len(chunks) > 5 * len(set(chunks))
    assert not miscounts(shell.volume.index)


async def test_an_empty_file_has_no_content(shell: Shell) -> None:
    await shell.write("/a", b"something")
    await shell.truncate("/a", 0)
    await shell.seal("/a")
    assert shell.inode("/a").content is None
    assert await shell.read("/a") == b""
    assert not miscounts(shell.volume.index)


async def test_a_file_written_while_it_is_sealed_is_sealed_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.write("/a", b"first")
    handle = shell.open("/a")
    file = shell.file("/a")

    def write() -> None:
        assert file.staged is not None
        os.pwrite(file.staged.descriptor(), b"later", 0)
        file.touch(1)

    interrupted = during_the_seal(monkeypatch, "digest_of", write)
    await shell.seal("/a")
    assert interrupted
    assert file.is_dirty
    assert shell.is_staged("/a")
    shell.close(handle)
    await shell.seal("/a")
    assert not shell.is_staged("/a")
    assert await shell.read("/a") == b"later"
    assert not miscounts(shell.volume.index)


async def test_a_file_unlinked_while_it_is_sealed_leaves_nothing(
    shell: Shell, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.write("/a", text(1, 50_000))
    await shell.write("/b", text(2, 50_000))
    files = [shell.file("/a"), shell.file("/b")]
    interrupted = during_the_seal(monkeypatch, "_digest", lambda: shell.unlink("/a"))
    await shell.volume.sealer.seal(files, wait=True)
    assert interrupted
    assert not shell.exists("/a")
    assert not machine.staged_names()
    assert await shell.read("/b") == text(2, 50_000)
    assert not miscounts(shell.volume.index)


async def test_a_file_unlinked_before_it_is_read_is_passed_over(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.write("/a", b"gone")
    await shell.write("/b", b"stays")
    files = [shell.file("/b"), shell.file("/a")]
    interrupted = during_the_seal(monkeypatch, "_extents", lambda: shell.unlink("/a"))
    await shell.volume.sealer.seal(files, wait=True)
    assert interrupted
    assert await shell.read("/b") == b"stays"
    assert not miscounts(shell.volume.index)


@pytest.mark.parametrize("size", [40_000, seal.WINDOW_BYTES + 3 * MIB])
@pytest.mark.parametrize("left", [0, 5000, 3])
@pytest.mark.parametrize("is_sparse", [False, True])
async def test_a_file_cut_short_while_it_is_sealed_is_whole_in_itself(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, size: int, left: int, is_sparse: bool
) -> None:
    await shell.write("/a", text(1, size))
    if is_sparse:
        await shell.write("/a", b"end", 2 * size)
    handle = shell.open("/a")
    file = shell.file("/a")
    original = seal._extents

    def cut_after_looking(fd: int, size: int) -> list[tuple[int, int]]:
        extents = original(fd, size)
        if not file.version & 1 << 40:
            file.version |= 1 << 40
            os.ftruncate(fd_of(shell, "/a"), left)
        return extents

    monkeypatch.setattr(seal, "_extents", cut_after_looking)
    await shell.seal("/a")
    assert not miscounts(shell.volume.index)
    content = shell.inode("/a").content
    if content is not None:
        copy = shell.volume.staging.create(10**6)
        await shell.volume.files._contents.copy_to(content, copy.descriptor())
        found = os.pread(copy.descriptor(), 2 * size, 0)
        shell.volume.staging.discard(copy)
        assert found == text(1, size)[:left]
    shell.close(handle)


def fd_of(shell: Shell, path: str) -> int:
    staged = shell.file(path).staged
    assert staged is not None
    return staged.descriptor()


async def test_a_large_file_is_cut_as_if_it_was_read_at_once(shell: Shell) -> None:
    size = 2 * seal.WINDOW_BYTES + 12_345
    data = text(1, size)
    await shell.write("/a", data)
    await shell.seal("/a")
    lengths = memoryview(cut(data, params_for_size(size))).cast("I").tolist()
    assert [length for _, length in shell.recipe("/a")] == lengths
    handle = shell.open("/a")
    await shell.volume.files.write(handle, 0, data[:1])  # makes, and checks, the whole copy
    shell.close(handle)
    assert await shell.read("/a") == data


async def test_a_large_and_a_small_window_name_the_same_bytes_alike(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = text(1, 3 * MIB)
    await shell.write("/whole", data)
    await shell.seal("/whole")
    monkeypatch.setattr(seal, "WINDOW_BYTES", MIB)
    await shell.write("/windows", data)
    await shell.write("/windows", b"", 0)
    await shell.seal("/windows")
    assert shell.inode("/whole").content == shell.inode("/windows").content


def hole_bytes(recipe: list[tuple[int | None, int]]) -> int:
    return sum(length for chunk, length in recipe if chunk is None)


@pytest.mark.parametrize("window", [seal.WINDOW_BYTES, MIB])
async def test_holes_stay_holes(shell: Shell, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(seal, "WINDOW_BYTES", window)
    page = text(1, 4096)
    for place in (1 * MIB, 3 * MIB):
        await shell.write("/a", page, place)
    await shell.truncate("/a", 5 * MIB)
    await shell.seal("/a")
    assert hole_bytes(shell.recipe("/a")) == 5 * MIB - 2 * 4096
    assert shell.inode("/a").holes == 5 * MIB - 2 * 4096
    expected = bytes(MIB) + page + bytes(2 * MIB - 4096) + page + bytes(2 * MIB - 4096)
    assert await shell.read("/a") == expected
    await shell.write("/a", b"", 0)
    handle = shell.open("/a")
    await shell.volume.files.write(handle, 4 * MIB, b"x")
    assert fd_of(shell, "/a")
    assert os.fstat(fd_of(shell, "/a")).st_blocks * 512 <= 4 * 4096, "the copy has the holes too"
    shell.close(handle)
    assert await shell.read("/a") == expected[: 4 * MIB] + b"x" + expected[4 * MIB + 1 :]


async def test_a_terabyte_of_hole_is_sealed_without_reading_it(shell: Shell) -> None:
    await shell.write("/a", b"start")
    await shell.truncate("/a", 1 << 40)
    await shell.sync()
    assert not shell.is_staged("/a")
    assert await shell.read("/a", 0, 10) == b"start" + bytes(5)
    assert await shell.read("/a", (1 << 40) - 7, 100) == bytes(7)
    assert not miscounts(shell.volume.index)


async def test_sparse_and_dense_twins_read_alike_and_share_chunks(shell: Shell) -> None:
    page = text(1, 8 * MIB)
    await shell.write("/sparse", page)
    await shell.truncate("/sparse", 12 * MIB)
    await shell.seal("/sparse")
    stored = shell.segment_bytes()
    await shell.write("/dense", page + bytes(4 * MIB))
    await shell.seal("/dense")
    assert shell.inode("/sparse").content != shell.inode("/dense").content
    assert await shell.read("/sparse") == await shell.read("/dense")
    assert shell.segment_bytes() - stored < 2 * MIB


async def test_a_changed_byte_costs_a_few_chunks_not_the_file(shell: Shell) -> None:
    data = bytearray(text(1, 4 * MIB))
    await shell.write("/a", bytes(data))
    await shell.seal("/a")
    stored = shell.segment_bytes()
    await shell.write("/a", b"!", 2 * MIB)
    await shell.seal("/a")
    assert shell.segment_bytes() - stored < MIB


async def test_what_is_chunked_does_not_depend_on_who_else_is_sealed(
    machine: Machine,
) -> None:
    shell = machine.open()
    files = {f"/{number}": text(number, 20_000 + 777 * number) for number in range(30)}
    for path, data in files.items():
        await shell.write(path, data)
    await shell.sync()
    together = {path: [length for _, length in shell.recipe(path)] for path in files}
    for path in files:
        shell.unlink(path)
    await shell.collect()
    for path, data in files.items():
        await shell.write(path, data)
        await shell.seal(path)
    assert {path: [length for _, length in shell.recipe(path)] for path in files} == together


async def test_sealing_goes_on_while_names_change(shell: Shell) -> None:
    shell.mkdir("/d")
    contents = {f"/d/{number}": text(number, 30_000) for number in range(60)}
    for path, data in contents.items():
        await shell.write(path, data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.sync)
        for number in range(60):
            shell.rename(f"/d/{number}", f"/d/moved {number}")
            await trio.sleep(0)
    await shell.sync()
    for number in range(60):
        assert await shell.read(f"/d/moved {number}") == contents[f"/d/{number}"]
    assert not miscounts(shell.volume.index)


async def test_attributes_set_while_staged_are_those_of_the_sealed_file(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"bytes")
    shell.change("/a", mode=0o600, uid=7, gid=8, atime_ns=11, mtime_ns=22)
    changed_ns = shell.inode("/a").ctime_ns
    await machine.unmount()
    inode = machine.open().inode("/a")
    assert inode.mode == stat.S_IFREG | 0o600
    assert (inode.uid, inode.gid, inode.size) == (7, 8, 5)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (11, 22, changed_ns)


async def test_a_write_sets_mtime_and_ctime_and_they_survive(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/a", b"1")
    shell.change("/a", mtime_ns=5)
    await shell.write("/a", b"2")
    mtime_ns, ctime_ns = shell.inode("/a").mtime_ns, shell.inode("/a").ctime_ns
    assert mtime_ns == ctime_ns > 5
    await machine.unmount()
    inode = machine.open().inode("/a")
    assert (inode.mtime_ns, inode.ctime_ns) == (mtime_ns, ctime_ns)


async def test_closed_files_are_sealed_when_they_have_rested(machine: Machine) -> None:
    shell = machine.open(profile(rest_s=0.0))
    async with running(shell.volume):
        await shell.write("/a", b"rests")
        with trio.fail_after(20):
            while shell.is_staged("/a"):
                await trio.sleep(0.05)
        assert await shell.read("/a") == b"rests"


@dataclass
class Candidate:
    """A file as the policy sees it, at second 100."""

    changed_at: float
    dirty_since: float
    writers: int = 0
    was_sealed: bool = False
    is_dirty: bool = True
    patience_s: float = 0.0
    name: tuple[int, bytes] = (1, b"file")


def due_now(*files: Candidate, rest_s: float = 5.0) -> list[Candidate]:
    return due(files, 100.0, rest_s=rest_s, open_rest_s=30.0)


def test_a_new_file_is_due_when_it_has_rested_closed() -> None:
    rested = Candidate(changed_at=95, dirty_since=90)
    assert due_now(rested) == [rested]
    assert not due_now(Candidate(changed_at=96, dirty_since=90))
    assert not due_now(replace(rested, writers=1))
    assert not due_now(replace(rested, is_dirty=False))


def test_what_was_sealed_before_waits_until_it_is_dirty_for_long() -> None:
    conversation = Candidate(changed_at=80, dirty_since=71, was_sealed=True)
    assert not due_now(conversation)
    aged = replace(conversation, dirty_since=70)
    assert due_now(aged) == [aged]
    assert not due_now(replace(aged, patience_s=31.0))
    assert due_now(conversation, rest_s=0) == [conversation], "tmpfs is full"


def test_what_grows_is_sealed_together() -> None:
    """Each seal by itself would write the same pages of the index again."""
    aged = Candidate(changed_at=99, dirty_since=70, was_sealed=True)
    others = [Candidate(changed_at=99, dirty_since=at, was_sealed=True) for at in (80, 90, 99)]
    assert due_now(*others, aged) == [aged, *others]
    new, open_ = Candidate(changed_at=99, dirty_since=99), replace(others[0], writers=1)
    assert due_now(aged, new, open_) == [aged]


async def test_a_history_replaced_again_and_again_is_as_old_as_its_first_change(
    machine: Machine,
) -> None:
    """Or one that is replaced every few seconds would never be sealed."""
    shell = machine.open()
    await shell.write("/a", b"sealed")
    await shell.seal("/a")
    await shell.replace("/a", b"first")
    since = shell.file("/a").dirty_since
    await shell.replace("/a", b"second")
    assert shell.file("/a").dirty_since == since
    assert shell.file("/a").was_sealed


async def test_what_the_kernel_may_be_writing_is_sealed_each_half_minute(machine: Machine) -> None:
    """Not before it is finished, in the chunks of a smaller file; nor again and again."""
    shell = machine.open(profile(budget_bytes=10 * MIB), relay=FakeRelay())
    await shell.write("/a", b"first")
    await shell.seal("/a")
    await shell.volume.files.prepare(shell.inode("/a"), os.O_WRONLY)
    shell.file("/a").dirty_since = 0.0  # it is long ago
    shell.open("/a", os.O_WRONLY)
    file = shell.file("/a")

    def is_due_after(seconds: float) -> bool:
        return bool(due([file], time.monotonic() + seconds, rest_s=0.0, open_rest_s=30.0))

    def pass_(seconds: float) -> None:
        file.dirty_since -= seconds
        file.unchanged_since -= seconds
        file.changed_at -= seconds

    assert file.is_dirty, "who knows"
    assert not is_due_after(25.0)
    rested_s = 31.0
    for rests_s in (31.0, 63.0, 127.0, 255.0, 480.0, 480.0):
        assert is_due_after(rested_s)
        pass_(rested_s)
        await shell.seal("/a")
        assert not is_due_after(rests_s - 5.0), "it was the same"
        rested_s = rests_s + 1.0
    assert is_due_after(rested_s)
    assert file.staged is not None
    with open(file.staged.path, "ab") as copy:
        copy.write(b" and more")
    assert not is_due_after(300.0)
    shell.volume.files.look_at_growth()
    assert not is_due_after(25.0)
    assert is_due_after(31.0), "it has changed"
    pass_(31.0)
    await shell.seal("/a")
    assert not is_due_after(25.0)
    assert is_due_after(31.0), "so it may again"


async def test_who_opens_a_file_that_another_holds_open_is_not_waited_for_as_long(
    machine: Machine,
) -> None:
    shell = machine.open(profile(budget_bytes=10 * MIB), relay=FakeRelay())
    await shell.write("/a", b"first")
    await shell.seal("/a")
    await shell.volume.files.prepare(shell.inode("/a"), os.O_WRONLY)
    shell.open("/a", os.O_WRONLY)
    file = shell.file("/a")
    for _ in range(3):
        await shell.seal("/a")
    assert file.patience_s < 1.0, "that is no reason to wait"
    file.unchanged_since -= 200.0
    assert file.patience_s > 199.0
    other = shell.open("/a", os.O_WRONLY)
    assert file.patience_s == 0.0
    file.dirty_since -= 20.0
    since = file.dirty_since
    shell.close(other)
    assert file.dirty_since == since, "it may have been written at once"


async def test_a_full_tmpfs_budget_has_closed_files_sealed_without_rest(machine: Machine) -> None:
    shell = machine.open(profile(budget_bytes=100_000))
    async with running(shell.volume):
        await shell.write("/a", text(1, 90_000))
        with trio.fail_after(20):
            while shell.is_staged("/a"):
                await trio.sleep(0.05)


async def test_a_file_that_is_open_and_sealed_stays_staged_until_it_is_closed(
    shell: Shell,
) -> None:
    handle = shell.open("/a", os.O_RDWR | os.O_CREAT)
    await shell.volume.files.write(handle, 0, b"open")
    await shell.seal("/a")
    assert shell.is_staged("/a")
    assert not shell.file("/a").is_dirty
    shell.close(handle)
    assert not shell.is_staged("/a")
    assert await shell.read("/a") == b"open"


def test_the_digest_of_windows_is_the_digest_of_the_whole() -> None:
    data = text(1, 100_000)
    whole, parts = ContentHasher(sparse=False), ContentHasher(sparse=False)
    whole.data(data)
    for start, end in pairwise([0, 1, 5000, 99_999, 100_000]):
        parts.data(data[start:end])
    assert whole.digest() == parts.digest()
