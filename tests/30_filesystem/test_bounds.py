"""What grows with files, handles and waiting programs has a bound, and room again when they go."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from agentfs.filesystem import images
from agentfs.filesystem.files import Handle
from agentfs.filesystem.passthrough import PassthroughFiles
from fakes.relay import FakeRelay
from fakes.volumes import Machine, Shell

IMAGES = 16


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
