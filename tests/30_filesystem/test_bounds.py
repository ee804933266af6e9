"""What grows with files, handles and waiting programs has a bound, and room again when they go.

Where the disk is slow, it stands still until the test has looked: `Stop` is what waits for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from agentfs.filesystem import images, livefile, seal, staging
from agentfs.filesystem.files import Handle
from agentfs.filesystem.passthrough import PassthroughFiles
from agentfs.filesystem.seal import Sealer
from agentfs.index import connection
from agentfs.model import ROOT_INODE
from fakes.relay import FakeRelay
from fakes.volumes import KIB, MIB, Machine, Shell, profile, running

IMAGES = 16
FILES = 40
LIMIT_S = 20.0


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def relayed(machine: Machine, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A volume in relay mode that keeps few images."""
    monkeypatch.setattr(images, "_IMAGES_MAX", IMAGES)
    return machine.open(relay=relay)


@asynccontextmanager
async def opened(shell: Shell, relay: FakeRelay, path: str, flags: int) -> AsyncIterator[Handle]:
    """A file open as through the relay."""
    await shell.volume.files.prepare(shell.inode(path), flags)
    handle = shell.open(path, flags)
    nodeid = handle.file.nodeid
    passed = nodeid in relay.attached
    if passed:
        relay.opened(nodeid)
    try:
        yield handle
    finally:
        if passed:
            relay.closed(nodeid)
        shell.close(handle)


async def fill(shell: Shell, relay: FakeRelay, count: int) -> list[str]:
    """Sealed files, each with a content of its own."""
    paths = [f"/{number}" for number in range(count)]
    for path in paths:
        shell.mknod(path, 0o100644)
        async with opened(shell, relay, path, os.O_WRONLY) as handle:
            await shell.pwrite(handle, path.encode(), 0)
    await shell.sync()
    return paths


def image_count(shell: Shell) -> int:
    files = shell.volume.files
    assert isinstance(files, PassthroughFiles)
    return files.images.count


async def test_images_that_sealing_leaves_are_bounded_and_none_is_lost_to_who_uses_it(
    relayed: Shell, relay: FakeRelay
) -> None:
    await fill(relayed, relay, 5 * IMAGES)
    assert IMAGES / 2 < image_count(relayed) <= IMAGES
    assert len(relay.registered) == image_count(relayed)


async def test_images_that_reading_makes_are_bounded_and_none_is_lost_to_who_uses_it(
    relayed: Shell, relay: FakeRelay
) -> None:
    paths = await fill(relayed, relay, 5 * IMAGES)
    for path in paths + paths + paths:
        async with opened(relayed, relay, path, os.O_RDONLY):
            assert image_count(relayed) <= IMAGES
    assert image_count(relayed) > IMAGES / 2


async def test_files_beyond_the_images_there_may_be_are_served_without_one(
    relayed: Shell, relay: FakeRelay
) -> None:
    """All are open at once: no image can be given up."""
    paths = await fill(relayed, relay, 3 * IMAGES)
    async with AsyncExitStack() as all_open:
        for path in paths + paths:
            handle = await all_open.enter_async_context(opened(relayed, relay, path, os.O_RDONLY))
            if handle.file.image is None:
                assert await relayed.pread(handle, 100, 0) == path.encode()
        assert image_count(relayed) == IMAGES


class Stop:
    """Threads wait in what it guards until `go`; it counts them."""

    def __init__(self) -> None:
        self.most = self.waiting = 0
        self.calls = 0
        self._lock = threading.Lock()
        self._going = threading.Event()

    def go(self) -> None:
        self._going.set()

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            with self._lock:
                self.calls += 1
                self.waiting += 1
                self.most = max(self.most, self.waiting)
            try:
                assert self._going.wait(LIMIT_S), "nobody let it go"
                return function(*args, **options)
            finally:
                with self._lock:
                    self.waiting -= 1

        return guarded

    async def until(self, waiting: int) -> None:
        """Return when so many threads wait."""
        with trio.fail_after(LIMIT_S):
            while self.waiting < waiting:
                await trio.sleep(0.01)


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.go()


@pytest.fixture
def stopped_seals(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Seals wait for the disk."""
    monkeypatch.setattr(Sealer, "_store_snapshots", stop.guard(Sealer._store_snapshots))
    return stop


async def write_many(shell: Shell, paths: list[str], data: bytes, written: list[str]) -> None:
    """As so many programs at once."""

    async def write(path: str) -> None:
        await shell.write(path, data)
        written.append(path)

    async with trio.open_nursery() as programs:
        for path in paths:
            programs.start_soon(write, path)


async def test_while_the_disk_stands_still_no_more_files_are_staged_than_may_be(
    machine: Machine, stopped_seals: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small they are: who writes one more waits, and who reads does not."""
    monkeypatch.setattr(staging, "_FILES_MAX", FILES)
    shell = machine.open()
    paths = [f"/{number}" for number in range(5 * FILES)]
    written: list[str] = []
    async with running(shell.volume), trio.open_nursery() as nursery:
        nursery.start_soon(write_many, shell, paths, b"small", written)
        await stopped_seals.until(1)
        with trio.fail_after(LIMIT_S):
            while len(written) < FILES:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert shell.volume.staging.files == len(written) == FILES
        assert await shell.read(written[0]) == b"small"
        shell.unlink(written[0])
        stopped_seals.go()
    assert len(written) == len(paths)
    assert shell.volume.staging.files <= FILES


async def test_while_a_seal_lasts_the_log_is_folded_in_and_housekeeping_goes_on(
    machine: Machine, stopped_seals: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECKPOINT_BYTES", 256 * KIB)
    shell = machine.open(profile(rest_s=0.0))
    async with running(shell.volume):
        await shell.write("/large", b"being sealed")
        await stopped_seals.until(1)
        folded = shell.volume.index.checkpoints
        number = 0
        with trio.fail_after(LIMIT_S):
            while shell.volume.index.checkpoints < folded + 2:
                shell.mkdir(f"/{number}")
                number += 1
                await trio.sleep(0)
        assert stopped_seals.waiting == 1
        stopped_seals.go()


async def test_the_count_of_staged_files_comes_back_to_nothing(machine: Machine) -> None:
    """Sealed, removed, cloned, moved to disk, or found after a kill."""
    shell = machine.open(profile(budget_bytes=256 * KIB))
    for number in range(8):
        await shell.write(f"/{number}", bytes([number]) * 64 * KIB)
    await shell.clone("/0", "/clone")
    await shell.write("/clone", b"own")
    shell.unlink("/1")
    machine.kill()
    shell = machine.open()
    assert shell.volume.staging.files == len(list(shell.volume.table.staged_files())) == 8
    await shell.sync()
    assert shell.volume.staging.files == 0


async def test_while_the_disk_stands_still_tmpfs_takes_its_budget_and_no_more(
    machine: Machine, stopped_seals: Stop
) -> None:
    budget = 512 * KIB
    shell = machine.open(profile(budget_bytes=budget))
    written: list[str] = []
    paths = [f"/{number}" for number in range(40)]
    async with running(shell.volume), trio.open_nursery() as nursery:
        nursery.start_soon(write_many, shell, paths, os.urandom(64 * KIB), written)
        await stopped_seals.until(1)
        with trio.fail_after(LIMIT_S):
            while len(written) < 8:
                await trio.sleep(0.01)
        assert shell.volume.staging.used_bytes <= budget
        assert shell.names()  # others go on
        stopped_seals.go()
    assert shell.volume.staging.used_bytes <= budget
    assert len(written) == len(paths)


async def test_through_the_relay_a_file_that_finds_no_room_is_made_and_written_through_the_daemon(
    machine: Machine, relay: FakeRelay
) -> None:
    """The kernel would write to tmpfs without asking; to wait would keep its directory locked."""
    shell = machine.open(profile(budget_bytes=64 * KIB), relay=relay)
    files, table = shell.volume.files, shell.volume.table
    shell.mknod("/full", 0o100644)
    async with opened(shell, relay, "/full", os.O_WRONLY) as handle:
        staged = handle.file.staged
        assert staged is not None
        os.pwrite(staged.descriptor(), bytes(64 * KIB + 1), 0)  # as the kernel does
    shell.mknod("/new", 0o100644)
    new = table.enliven(shell.inode("/new"))
    files.prepare_new(new)
    assert new.nodeid not in relay.attached
    await shell.write("/new", b"new")
    assert await shell.read("/new") == b"new"
    assert new.staged is not None
    assert new.staged.on_disk
    shell.volume.namespace.unlink(ROOT_INODE, b"full")
    shell.mknod("/newer", 0o100644)
    newer = table.enliven(shell.inode("/newer"))
    files.prepare_new(newer)
    assert newer.nodeid in relay.attached


async def test_seals_that_wait_for_the_disk_leave_threads_to_who_reads(
    machine: Machine, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More programs ask for fsync of large files than there are threads."""
    monkeypatch.setattr(seal, "WINDOW_BYTES", 16 * KIB)
    shell = machine.open()
    await shell.write("/cold", b"cold" * KIB)
    await shell.sync()
    await machine.unmount()
    shell = machine.open()
    monkeypatch.setattr(Sealer, "_store_snapshots", stop.guard(Sealer._store_snapshots))
    async with running(shell.volume), trio.open_nursery() as programs:
        for number in range(60):
            await shell.write(f"/{number}", os.urandom(32 * KIB))
            programs.start_soon(shell.fsync, f"/{number}")
        await stop.until(seal._SEALS_AT_ONCE)
        with trio.fail_after(LIMIT_S / 2):
            assert await shell.read("/cold") == b"cold" * KIB
        stop.go()
    assert stop.calls == 60
    assert stop.most == seal._SEALS_AT_ONCE


async def test_files_sealed_together_are_bounded_however_small_they_are(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "_BATCH_FILES", 10)
    shell = machine.open()
    counts = []
    store = Sealer._store_snapshots

    def counted(sealer: Sealer, snapshots: list[Any], ids: dict[bytes, int]) -> Any:
        counts.append(len(snapshots))
        return store(sealer, snapshots, ids)

    monkeypatch.setattr(Sealer, "_store_snapshots", counted)
    for number in range(25):
        await shell.write(f"/{number}", b"%d" % number)
    await shell.sync()
    assert counts == [10, 10, 5]


async def test_writing_to_disk_waits_for_the_disk_and_nobody_else_does(
    machine: Machine, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is flushed as it grows, so the kernel never holds up the event loop."""
    behind = 256 * KIB
    monkeypatch.setattr(staging, "_WRITE_BEHIND_BYTES", behind)
    monkeypatch.setattr(staging, "_sync_those_left", stop.guard(staging._sync_those_left))
    shell = machine.open(profile(budget_bytes=1))
    await shell.write("/large", b"begin")
    assert shell.file("/large").staged.on_disk
    written = []

    async def write() -> None:
        for start in range(0, MIB, 64 * KIB):
            await shell.write("/large", bytes(64 * KIB), start)
            written.append(start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await stop.until(1)
        await trio.sleep(0.1)
        assert len(written) * 64 * KIB <= behind
        assert await shell.read("/large", 0, 5) == bytes(5)
        stop.go()
    assert stop.calls >= MIB // behind - 1
    assert await shell.read("/large") == bytes(MIB)


async def test_a_file_whose_read_fills_what_is_recorded_at_once_stays_the_one_that_is_opened(
    relayed: Shell, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who writes it next would write into what others read."""
    monkeypatch.setattr(livefile, "_READS_AT", 1)
    await relayed.write("/one", bytes(MIB))
    await relayed.sync()
    await relayed.clone("/one", "/other")
    async with (
        opened(relayed, relay, "/one", os.O_RDONLY),
        opened(relayed, relay, "/other", os.O_RDONLY) as reader,
    ):
        assert reader.file.image is not None
        with pytest.raises(livefile.StaleNode):
            await relayed.volume.files.prepare(relayed.inode("/other"), os.O_RDWR)
        assert relayed.file("/other") is not reader.file


class ClosedLater(FakeRelay):
    """When it is closed it refuses as the real one does."""

    is_closed = False

    def opens(self, nodeid: int) -> int:
        self._require_open()
        return super().opens(nodeid)

    def attr_changed(self, nodeid: int) -> None:
        self._require_open()

    def _require_open(self) -> None:
        if self.is_closed:
            raise ValueError("the relay is closed")


async def test_a_volume_is_closed_although_its_relay_is(machine: Machine) -> None:
    relay = ClosedLater()
    shell = machine.open(relay=relay)
    await shell.write("/a", b"bytes")
    await shell.volume.sync(lambda done, total: None)
    shell.change("/a", atime_ns=1)
    await shell.read("/a")
    seen = shell.times("/a")
    relay.is_closed = True
    machine.close()
    assert machine.open().times("/a") == seen
