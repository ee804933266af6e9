"""Whole contents, copied out: every byte, and as fast as there are cores."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from agentfs.filesystem import contents
from agentfs.filesystem.contents import BytesLost
from fakes.damage import damage_block, place_of
from fakes.volumes import KIB, MIB, Machine, Shell, profile, running


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_WINDOWS_AT_ONCE", 2)
    monkeypatch.setattr(contents, "_WINDOW_BYTES", MIB)


class WatchedStore:
    """A store of which the first two who read at once wait for each other."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._both = threading.Barrier(2, timeout=10.0)
        self._is_first = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, pieces: Sequence[Any], **how: bool) -> Any:
        if self._is_first and not how.get("cached_only"):
            self._both.wait()
            self._is_first = False
        return self._store.get(pieces, **how)


async def copied(shell: Shell, path: str) -> bytes:
    """A content as an image or a staged copy gets it."""
    content = shell.inode(path).content
    assert content is not None
    fd = os.memfd_create("copy")
    try:
        await shell.volume._reader.copy_to(content, fd)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


async def test_blocks_of_a_large_file_are_decompressed_side_by_side(shell: Shell) -> None:
    data = random.Random(1).randbytes(5 * MIB + 17)
    await shell.write("/large", data)
    await shell.write("/large", b"end", 7 * MIB)
    await shell.seal("/large")
    shell.volume._store.drop_cache()
    reader = shell.volume._reader
    reader._store = WatchedStore(reader._store)  # type: ignore[assignment]
    found = await copied(shell, "/large")
    assert found == data + bytes(7 * MIB - len(data)) + b"end"


async def test_of_a_large_block_that_is_read_in_order_the_next_part_is_brought(
    shell: Shell,
) -> None:
    data = b"".join(b"%d %d\n" % (number, number**3) for number in range(230_000))
    await shell.write("/large", data)
    await shell.seal("/large")
    await shell.compact()
    volume = shell.volume
    volume._store.drop_cache()
    places = [place_of(shell, "/large", number) for number in range(len(shell.recipe("/large")))]
    assert len({(place.segment, place.offset) for place in places[:100]}) == 1
    assert places[0].start == 0

    def is_there(offset: int) -> bool:
        place = next(one for one in places if one.start >= offset)
        piece = (place.segment, place.offset, place.start, 1)
        return volume._store.get([piece], cached_only=True) is not None

    async with running(volume):
        assert await shell.read("/large", 0, 100) == data[:100]
        assert not is_there(MIB)
        assert await shell.read("/large", MIB, 100) == data[MIB : MIB + 100]
        with trio.fail_after(20):
            while not is_there(2 * MIB):
                await trio.sleep(0.01)
        assert not is_there(4 * MIB)
        assert await shell.read("/large") == data, "also where a block ends"


async def test_damage_in_one_of_them_is_one_error(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    await shell.write("/large", random.Random(1).randbytes(5 * MIB))
    await shell.seal("/large")
    shell.volume._store.drop_cache()
    damage_block(machine.store, place_of(shell, "/large", 900))
    with pytest.raises(BytesLost, match="damaged"):
        await copied(shell, "/large")


async def test_of_a_large_content_that_is_copied_no_block_stays_in_the_cache(shell: Shell) -> None:
    sizes = {"/large": contents._CROWDING_BYTES, "/small": contents._CROWDING_BYTES // 2}
    for path, size in sizes.items():
        await shell.write(path, random.Random(path).randbytes(size))
        await shell.seal(path)
    store = shell.volume._store
    store.drop_cache()
    await copied(shell, "/small")
    cached_bytes = store.stats()["cache_bytes"]
    assert cached_bytes > 0, "others may have chunks in its blocks"
    assert await shell.read("/large", 0, 1), "a block is there already"
    await copied(shell, "/large")
    assert store.stats()["cache_bytes"] == cached_bytes
