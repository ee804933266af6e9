"""Damaged bytes are lost to those who need them and to nobody else, and come back when written."""

from __future__ import annotations

import random

import pytest

from fakes.damage import damage_block, flip, is_lost, place_of, segment_path
from fakes.recount import miscounts
from fakes.volumes import MIB, Machine, Shell, profile


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def marked(shell: Shell) -> int:
    return shell.volume.index.contents.totals()["damaged_blocks"]


async def a_damaged_store(machine: Machine) -> Shell:
    """`/large` of four blocks, the third of them damaged; `/twin`, the same; `/other`."""
    shell = machine.open(profile(block_bytes=MIB))
    await shell.write("/large", noise(1, 4 * MIB))
    await shell.write("/twin", noise(1, 4 * MIB))
    await shell.write("/other", noise(2, 100_000))
    await shell.sync()
    third = place_of(shell, "/large", len(shell.recipe("/large")) * 5 // 8)
    machine.close()
    damage_block(machine.store, third)
    return machine.open(profile(block_bytes=MIB))


async def test_only_the_ranges_of_a_damaged_block_are_lost(machine: Machine) -> None:
    shell = await a_damaged_store(machine)
    whole = noise(1, 4 * MIB)
    lost = set()
    for offset in range(0, 4 * MIB, 4096):
        if await is_lost(shell, "/large", offset, 4096):
            lost.add(offset)
        else:
            assert await shell.read("/large", offset, 4096) == whole[offset : offset + 4096]
    assert min(lost) > 1.9 * MIB
    assert max(lost) < 3.1 * MIB
    assert len(lost) <= MIB // 4096 + 2
    assert await shell.read("/other") == noise(2, 100_000)
    assert marked(shell) == 1


async def test_writing_lost_bytes_again_heals_every_file_that_shares_them(machine: Machine) -> None:
    shell = await a_damaged_store(machine)
    whole = noise(1, 4 * MIB)
    assert await is_lost(shell, "/twin", 0, 4 * MIB)
    before = shell.segment_bytes()
    await shell.write("/again", whole)
    await shell.sync()
    for path in ("/large", "/twin", "/again"):
        assert await shell.read(path) == whole
    stored = shell.segment_bytes() - before
    assert 0.9 * MIB < stored < 1.1 * MIB, "what is whole is not stored again"
    assert miscounts(shell.volume.index) == []
    machine.close()
    shell = machine.open()
    assert await shell.read("/large") == whole
    await shell.collect()
    assert await shell.read("/large") == whole
    assert marked(shell) == 0
    assert miscounts(shell.volume.index) == []


async def test_a_file_that_shares_only_some_of_the_lost_bytes_heals_those(machine: Machine) -> None:
    shell = await a_damaged_store(machine)
    whole = noise(1, 4 * MIB)
    assert await is_lost(shell, "/large", 0, 4 * MIB)
    await shell.write("/part", whole[2 * MIB + 100_000 : 2 * MIB + 600_000] + b"its own end")
    await shell.sync()
    assert (
        await shell.read("/part") == whole[2 * MIB + 100_000 : 2 * MIB + 600_000] + b"its own end"
    )
    start = 2 * MIB + 200_000
    assert await shell.read("/large", start, 100_000) == whole[start : start + 100_000]
    assert await is_lost(shell, "/large", 0, 4 * MIB)


async def test_damage_is_remembered_over_mounts(machine: Machine) -> None:
    shell = await a_damaged_store(machine)
    assert await is_lost(shell, "/large", 0, 4 * MIB)
    machine.close()
    shell = machine.open()
    await shell.write("/again", noise(1, 4 * MIB))
    await shell.sync()
    assert await shell.read("/large") == noise(1, 4 * MIB)


async def test_a_damaged_segment_header_loses_nothing(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/file", noise(3, 100_000))
    await shell.sync()
    segment = place_of(shell, "/file").segment
    machine.close()
    for offset in (0, 9, 17, 30):
        flip(segment_path(machine.store, segment), offset)
    shell = machine.open()
    assert await shell.read("/file") == noise(3, 100_000)


async def test_a_missing_segment_loses_what_is_in_it(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/gone", noise(3, 100_000))
    await shell.sync()
    gone = place_of(shell, "/gone").segment
    shell.volume._store.roll()
    await shell.write("/here", noise(4, 100_000))
    await shell.sync()
    machine.close()
    segment_path(machine.store, gone).unlink()
    shell = machine.open()
    assert await is_lost(shell, "/gone")
    assert await shell.read("/here") == noise(4, 100_000)
    await shell.write("/again", noise(3, 100_000))
    await shell.sync()
    assert await shell.read("/gone") == noise(3, 100_000)


async def test_gc_keeps_what_it_cannot_read_and_collects_the_rest(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=MIB))
    for name in ("/a", "/b", "/c"):
        await shell.write(name, noise(ord(name[1]), 4 * MIB if name == "/b" else MIB))
        await shell.sync()
    places = {name: place_of(shell, name) for name in ("/a", "/b", "/c")}
    shell.unlink("/b")
    machine.close()
    damage_block(machine.store, places["/a"])
    shell = machine.open(profile(block_bytes=MIB))
    await shell.collect()
    assert marked(shell) > 0
    assert await shell.read("/c") == noise(ord("c"), MIB)
    assert segment_path(machine.store, places["/a"].segment).exists()
    assert await is_lost(shell, "/a")
    await shell.collect()
    flip(segment_path(machine.store, places["/a"].segment), places["/a"].offset + 40)
    assert await shell.read("/a") == noise(ord("a"), MIB), "the disk can read it again"


@pytest.mark.parametrize("size", [30_000, 20 * MIB])
async def test_partial_writes_to_what_is_lost_fail_and_replacing_it_works(
    machine: Machine, size: int
) -> None:
    shell = machine.open()
    await shell.write("/file", noise(5, size))
    await shell.sync()
    place = place_of(shell, "/file")
    machine.close()
    damage_block(machine.store, place)
    shell = machine.open()
    with pytest.raises(OSError, match="segment"):
        await shell.write("/file", b"a change", 100)
    assert await is_lost(shell, "/file")
    await shell.truncate("/file", 0)
    await shell.write("/file", noise(5, size))
    await shell.sync()
    assert await shell.read("/file") == noise(5, size)
