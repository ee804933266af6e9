"""A request that another worker has done, and had no time to answer, is answered as done.

Each request is given to the handlers twice; the second time the relay says that it was sent again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from agentfs.filesystem import staging
from agentfs.fuse.operations import Operations
from agentfs.model import ROOT_INODE
from fakes.volumes import Machine

ROOT = SimpleNamespace(uid=0, gid=0, umask=0o022, pid=1)
EXCHANGE = 2
RESENT = 1 << 63

Ask = Callable[[Operations], Awaitable[Any]]


class FakeRelay:
    """Says of every request what it is told to."""

    generation = 2

    def __init__(self) -> None:
        self.number = 2
        self.flags = 0

    def unique(self, opcode: int, nodeid: int) -> tuple[int, int]:
        return self.number, self.flags

    def places(self, handle: int) -> list[tuple[int, bytes]]:
        return []


@pytest.fixture
def mode() -> str:
    return "none: nothing is mounted"


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def operations(
    tmp_path: Path, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Operations]:
    machine = Machine(tmp_path)
    monkeypatch.setattr(staging, "TMPFS", machine.tmpfs)
    volume = machine.open().volume
    yield Operations(volume, relay)  # type: ignore[arg-type]
    machine.close()


async def make(operations: Operations, *names: bytes) -> list[int]:
    made = [
        await operations.mknod(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, ROOT) for name in names
    ]
    return [entry.st_ino for entry in made]


MAKING: dict[str, Ask] = {
    "mknod": lambda fs: fs.mknod(ROOT_INODE, b"new", stat.S_IFREG | 0o600, 0, ROOT),
    "mkdir": lambda fs: fs.mkdir(ROOT_INODE, b"new", stat.S_IFDIR | 0o700, ROOT),
    "symlink": lambda fs: fs.symlink(ROOT_INODE, b"new", b"target", ROOT),
}


@pytest.mark.parametrize("request_", MAKING)
async def test_what_was_made_is_answered_and_not_made_again(
    operations: Operations, relay: FakeRelay, request_: str
) -> None:
    first = await MAKING[request_](operations)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await MAKING[request_](operations)
    assert refused.value.errno == errno.EEXIST
    relay.number |= RESENT
    assert (await MAKING[request_](operations)).st_ino == first.st_ino


async def test_a_created_file_is_opened(operations: Operations, relay: FakeRelay) -> None:
    info, entry = await operations.create(ROOT_INODE, b"new", 0o644, os.O_RDWR, ROOT)
    await operations.release(info.fh)
    relay.number |= RESENT
    info, again = await operations.create(ROOT_INODE, b"new", 0o644, os.O_RDWR, ROOT)
    assert again.st_ino == entry.st_ino
    assert await operations.write(info.fh, 0, b"bytes") == 5
    assert await operations.read(info.fh, 0, 10) == b"bytes"
    await operations.release(info.fh)


async def test_a_link_is_one_link(operations: Operations, relay: FakeRelay) -> None:
    (file,) = await make(operations, b"file")
    await operations.link(file, ROOT_INODE, b"new", ROOT)
    relay.number |= RESENT
    assert (await operations.link(file, ROOT_INODE, b"new", ROOT)).st_nlink == 2


async def test_what_was_removed_is_removed(operations: Operations, relay: FakeRelay) -> None:
    await make(operations, b"file")
    await operations.mkdir(ROOT_INODE, b"folder", stat.S_IFDIR | 0o700, ROOT)
    removals: list[Ask] = [
        lambda fs: fs.unlink(ROOT_INODE, b"file", ROOT),
        lambda fs: fs.rmdir(ROOT_INODE, b"folder", ROOT),
    ]
    for remove in removals:
        await remove(operations)
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await remove(operations)
        assert refused.value.errno == errno.ENOENT
    relay.number |= RESENT
    for remove in removals:
        await remove(operations)


async def test_what_was_renamed_is_renamed(operations: Operations, relay: FakeRelay) -> None:
    await make(operations, b"old")
    await operations.rename(ROOT_INODE, b"old", ROOT_INODE, b"new", 0, ROOT)
    relay.number |= RESENT
    await operations.rename(ROOT_INODE, b"old", ROOT_INODE, b"new", 0, ROOT)


async def test_an_exchange_is_done_once_for_each_request(
    operations: Operations, relay: FakeRelay
) -> None:
    one, other = await make(operations, b"one", b"other")

    async def exchange() -> list[int]:
        await operations.rename(ROOT_INODE, b"one", ROOT_INODE, b"other", EXCHANGE, ROOT)
        names = (b"one", b"other")
        return [(await operations.lookup(ROOT_INODE, name, ROOT)).st_ino for name in names]

    assert await exchange() == [other, one]
    relay.number |= RESENT
    assert await exchange() == [other, one]
    relay.number += 2  # another request, which no worker has done
    assert await exchange() == [one, other]


async def test_an_attribute_that_was_removed_is_removed(
    operations: Operations, relay: FakeRelay
) -> None:
    (file,) = await make(operations, b"file")
    await operations.setxattr(file, b"user.a", b"1", ROOT)
    await operations.removexattr(file, b"user.a", ROOT)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.removexattr(file, b"user.a", ROOT)
    assert refused.value.errno == errno.ENODATA
    relay.number |= RESENT
    await operations.removexattr(file, b"user.a", ROOT)


async def test_an_attribute_that_must_be_new_is_created_once(
    operations: Operations, relay: FakeRelay
) -> None:
    """As pyfuse3 does it for XATTR_CREATE: it asks for the attribute, then sets it."""
    (file,) = await make(operations, b"file")
    relay.flags = os.XATTR_CREATE
    await operations.setxattr(file, b"user.a", b"1", ROOT)
    assert await operations.getxattr(file, b"user.a", ROOT) == b"1"
    relay.number |= RESENT
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.getxattr(file, b"user.a", ROOT)
    assert refused.value.errno == errno.ENODATA
    await operations.setxattr(file, b"user.a", b"1", ROOT)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.setxattr(file, b"user.a", b"somebody else's", ROOT)
    assert refused.value.errno == errno.EEXIST


async def test_a_handle_of_another_worker_means_the_same(operations: Operations) -> None:
    info, _ = await operations.create(ROOT_INODE, b"new", 0o644, os.O_RDWR, ROOT)
    await operations.write(info.fh, 0, b"bytes")
    heir = Operations(operations.volume)
    assert await heir.read(info.fh, 0, 10) == b"bytes"
    assert await heir.write(info.fh, 5, b"!") == 1
    await heir.release(info.fh)


async def test_a_handle_that_nobody_gave_out_is_an_error(operations: Operations) -> None:
    with pytest.raises(pyfuse3.FUSEError):
        await operations.read(12345 << 4, 0, 10)
