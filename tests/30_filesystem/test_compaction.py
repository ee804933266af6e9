"""Compaction: the same bytes in less room, beside everything else, and killed at any step."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from agentfs.filesystem import copies, reclaim
from agentfs.filesystem.fsck import check
from agentfs.filesystem.repair import repair
from agentfs.model import NewBlock, SegmentUse
from agentfs.policy import compaction
from fakes.damage import damage_block, is_lost, place_of, segment_path
from fakes.disk import Disk, watch
from fakes.recount import miscounts
from fakes.volumes import KIB, MIB, Machine, Shell, profile, quiet, running

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "store"
"""Written by 0.1.0 before it had compaction: digests of 32 bytes, no lists of chunks."""

WORDS = ("read", "wrote", "ran", "failed", "thought", "file", "test", "tool", "result", "agent")


@functools.cache
def transcript(number: int, size: int = 30_000) -> bytes:
    """Lines as agents write them; two transcripts have half of their lines in common."""
    own, common = random.Random(number), random.Random(number // 2)
    lines = []
    while sum(map(len, lines)) < size:
        said = " ".join((own if len(lines) % 2 else common).choices(WORDS, k=40))
        lines.append(json.dumps({"step": len(lines), "text": said}).encode() + b"\n")
    return b"".join(lines)[:size]


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def fill(shell: Shell, count: int = 60) -> dict[str, bytes]:
    """Files sealed one by one, so that like lies far from like."""
    files = {f"/{number:03}": transcript(number) for number in range(count)}
    for path in random.Random(1).sample(list(files), count):
        await shell.write(path, files[path])
        await shell.seal(path)
    return files


async def assert_intact(shell: Shell, files: dict[str, bytes]) -> None:
    shell.volume._store.drop_cache()
    for path, data in files.items():
        assert await shell.read(path) == data, path
    assert not miscounts(shell.volume.index)


# What it is for


async def test_a_compacted_store_is_much_smaller_and_holds_the_same(shell: Shell) -> None:
    files = await fill(shell)
    before = shell.segment_bytes()
    result = await shell.compact()
    assert shell.segment_bytes() < before / 2
    assert result["stored_bytes"] == before - shell.segment_bytes()
    await assert_intact(shell, files)


async def test_a_store_that_is_compact_is_left_alone(shell: Shell) -> None:
    await fill(shell)
    assert shell.volume.stats()["young_bytes"] > MIB
    await shell.compact()
    assert shell.volume.stats()["young_bytes"] == 0
    again = await shell.compact()
    assert (again["segments"], again["rewritten_bytes"]) == (0, 0)


async def test_neighbours_in_a_directory_lie_side_by_side(shell: Shell) -> None:
    files = await fill(shell, 20)
    await shell.compact()
    (segment,) = (number for number, size in shell.volume._store.segments() if size > KIB)
    contents = shell.volume.index.contents
    order = [
        chunk.id for block in contents.blocks_in(segment) for chunk in contents.chunks_of(block)
    ]
    expected = [
        chunk for path in sorted(files) for chunk, _ in shell.recipe(path) if chunk is not None
    ]
    assert order == list(dict.fromkeys(expected))


async def test_small_files_lie_at_the_beginning_of_a_block(shell: Shell) -> None:
    sizes = {"/a": 300 * KIB, "/b": 20 * KIB, "/c": 200 * KIB, "/d": 64 * KIB, "/e": 65 * KIB}
    files = {path: transcript(number, size) for number, (path, size) in enumerate(sizes.items())}
    for path, data in files.items():
        await shell.write(path, data)
        await shell.seal(path)
    await shell.compact()
    places = {path: place_of(shell, path) for path in files}
    assert len({(place.segment, place.offset) for place in places.values()}) == 1
    assert sorted(places, key=lambda path: places[path].start) == ["/b", "/d", "/a", "/c", "/e"]
    await assert_intact(shell, files)


def test_blocks_of_large_files_are_smaller() -> None:
    small, large = 16 * KIB, 16 * KIB + 1
    assert compaction.most_block_bytes(8 * MIB, small) == 8 * MIB
    assert compaction.most_block_bytes(8 * MIB, large) == 4 * MIB
    assert compaction.most_block_bytes(MIB, large) == MIB


async def test_what_a_large_file_has_in_several_places_lies_together(shell: Shell) -> None:
    again = [noise(seed, 100 * KIB) for seed in range(4)]
    parts = [noise(10 + number, 700 * KIB) + again[number % 4] for number in range(13)]
    files = {"/large": b"".join(parts)}
    await shell.write("/large", files["/large"])
    await shell.seal("/large")
    chunks = Counter(chunk for chunk, _ in shell.recipe("/large"))
    repeated = {chunk for chunk, count in chunks.items() if count > 1}
    assert len(repeated) > 20
    await shell.compact()
    contents = shell.volume.index.contents
    blocks = [
        [chunk.id for chunk in contents.chunks_of(block)]
        for number, _ in shell.volume._store.segments()
        for block in contents.blocks_in(number)
    ]
    assert len(blocks) > 1
    assert repeated in [set(block[: len(repeated)]) for block in blocks]
    await assert_intact(shell, files)


async def test_compaction_removes_what_nothing_refers_to(shell: Shell) -> None:
    files = await fill(shell, 20)
    for path in list(files)[:10]:
        shell.unlink(path)
        del files[path]
    result = await shell.compact()
    assert result["contents"] == 10
    assert shell.volume.stats()["garbage_bytes"] == 0
    await assert_intact(shell, files)


async def test_gc_after_compaction_keeps_blocks_packed(shell: Shell) -> None:
    files = await fill(shell, 40)
    await shell.compact()
    for path in list(files)[:30]:
        shell.unlink(path)
        del files[path]
    await shell.collect()
    assert shell.volume.stats()["young_bytes"] == 0
    await assert_intact(shell, files)


async def test_a_damaged_block_stays_and_the_rest_is_compacted(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    files = await fill(shell, 10)
    await shell.volume.sync(quiet)
    broken = shell.volume.index.contents.locate([2])[0]
    with open(machine.store / "segments" / f"{broken.segment:016x}.seg", "r+b") as segment:
        segment.seek(broken.offset + 100)
        segment.write(b"damage")
    shell.volume._store.drop_cache()
    await shell.compact()
    assert shell.volume.index.contents.locate([2]) == [broken]
    assert not miscounts(shell.volume.index)
    assert (machine.store / "segments" / f"{broken.segment:016x}.seg").exists()
    assert len(files) == 10


async def test_damage_that_compaction_meets_is_marked_and_heals(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    files = await fill(shell, 10)
    await shell.sync()
    broken = place_of(shell, "/003")
    damage_block(machine.store, broken)
    shell.volume._store.drop_cache()
    for _ in range(2):
        await shell.compact()
        assert shell.volume.index.contents.damaged_segments() == {broken.segment}
        assert segment_path(machine.store, broken.segment).exists()
    assert await is_lost(shell, "/003", 0, 30_000)
    await shell.write("/again", files["/003"])
    await shell.sync()
    await shell.compact()
    assert not segment_path(machine.store, broken.segment).exists()
    await assert_intact(shell, files)


async def test_a_chunk_that_heals_while_it_moves_is_counted_once(shell: Shell) -> None:
    await shell.write("/file", noise(1, 3 * KIB))
    await shell.sync()
    contents, index = shell.volume.index.contents, shell.volume.index
    place = place_of(shell, "/file")
    (block,) = contents.blocks_in(place.segment)
    chunks = contents.chunks_of(block)
    named = [(chunk.digest, chunk.place.length) for chunk in chunks]
    with index.transaction:
        moving = contents.begin_move(NewBlock(90, 32, 99, named), chunks, packed=True)
        contents.mark_damaged(place.segment, place.offset)
        contents.add_block(NewBlock(91, 32, 99, named), are_new=True)
    with index.transaction:
        contents.move_chunks(chunks, moving, 0)
    assert [contents.live_bytes(segment) for segment in (place.segment, 90)] == [0, 0]
    assert place_of(shell, "/file").segment == 91
    assert not miscounts(index)


async def test_a_lost_index_comes_back_as_compacted_as_it_was(machine: Machine) -> None:
    shell = machine.open()
    files = await fill(shell, 20)
    await shell.compact()
    machine.kill()  # so the copy is the one that compaction made
    (machine.store / "index.db").write_bytes(b"")
    (machine.store / "index.db-wal").unlink(missing_ok=True)
    assert repair(machine.store, lambda what, done, total: None).report.is_clean
    shell = machine.open()
    assert shell.volume.stats()["young_bytes"] == 0
    await assert_intact(shell, files)
    for path in list(files)[:10]:
        shell.unlink(path)
        del files[path]
    await shell.collect()
    await assert_intact(shell, files)


async def test_garbage_is_given_back_while_the_store_changes_all_the_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_LOOK_S", 0.05)
    monkeypatch.setattr(compaction, "WORTH_BYTES", 100 * KIB)
    shell = machine.open()
    for number in range(8):
        await shell.write(f"/{number}", random.Random(number).randbytes(100 * KIB))
    await shell.sync()
    full = shell.segment_bytes()
    for number in range(4):
        shell.unlink(f"/{number}")
    changes = 0
    async with running(shell.volume):
        with trio.fail_after(30):
            while shell.segment_bytes() > full * 0.6:
                changes += 1
                shell.mkdir(f"/d{changes}")
                await trio.sleep(0.02)
    assert shell.volume.stats()["young_bytes"] >= 4 * 100 * KIB, "gc, which does not pack"
    assert not miscounts(shell.volume.index)
    for number in range(4, 8):
        assert await shell.read(f"/{number}") == random.Random(number).randbytes(100 * KIB)


async def test_a_check_ends_compaction_that_nobody_asked_for_and_it_goes_on_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_LOOK_S", 0.05)
    monkeypatch.setattr(compaction, "REST_S", 0.2)
    monkeypatch.setattr(compaction, "WORTH_BYTES", MIB)
    shell = machine.open()
    files = await fill(shell)
    busy = True
    monkeypatch.setattr(shell.volume._collector, "_is_busy", lambda: busy)
    async with running(shell.volume):
        with trio.fail_after(60):
            while shell.volume.stats()["compaction"] != "waiting":
                await trio.sleep(0.05)
            report = await shell.volume.check(lambda what, done, total: None)
            assert report["clean"]
            busy = False
            while shell.volume.stats()["young_bytes"]:
                await trio.sleep(0.05)
    await assert_intact(shell, files)


async def test_compaction_that_nobody_asked_for_leaves_a_copy_of_the_namespace(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_LOOK_S", 0.05)
    monkeypatch.setattr(compaction, "REST_S", 0.2)
    monkeypatch.setattr(compaction, "WORTH_BYTES", MIB)
    shell = machine.open()
    await fill(shell)
    assert not copies.size_bytes(machine.store)
    async with running(shell.volume):
        with trio.fail_after(30):
            while not copies.size_bytes(machine.store):
                await trio.sleep(0.05)
    assert not shell.volume.stats()["young_bytes"]
    await machine.unmount()
    assert check(machine.store, lambda what, done, total: None).is_clean


# Beside others


async def test_readers_read_on_while_the_store_is_compacted(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    files = await fill(shell)
    reads = 0

    async def read_all_the_time(rng: random.Random) -> None:
        nonlocal reads
        while True:
            path = rng.choice(list(files))
            offset = rng.randrange(20_000)
            shell.volume._store.drop_cache()
            assert await shell.read(path, offset, 9000) == files[path][offset : offset + 9000]
            reads += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for seed in range(3):
            nursery.start_soon(read_all_the_time, random.Random(seed))
        assert (await shell.compact())["segments"]
        nursery.cancel_scope.cancel()
    assert reads > 10
    await assert_intact(shell, files)


@pytest.mark.parametrize("seed", range(3))
async def test_seals_deletes_and_compaction_at_the_same_time_lose_nothing(
    machine: Machine, seed: int
) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    expected: dict[str, bytes] = {}

    async def write_and_delete(task: int) -> None:
        rng = random.Random(seed * 100 + task)
        for step in range(40):
            path = f"/{task}.{rng.randrange(8)}"
            if path in expected and rng.random() < 0.4:
                shell.unlink(path)
                del expected[path]
            else:
                expected[path] = transcript(rng.randrange(6)) + b"%d" % (step % 3)
                if shell.exists(path):
                    await shell.truncate(path, 0)
                await shell.write(path, expected[path])
                if rng.random() < 0.7 and shell.is_staged(path):
                    await shell.seal(path)
            await trio.sleep(0)

    async with trio.open_nursery() as compacting:

        async def compact_all_the_time() -> None:
            while True:
                await shell.compact()
                await trio.sleep(0)

        compacting.start_soon(compact_all_the_time)
        async with trio.open_nursery() as writing:
            for task in range(3):
                writing.start_soon(write_and_delete, task)
        compacting.cancel_scope.cancel()
    await shell.sync()
    await shell.compact()
    await assert_intact(shell, expected)


async def test_compaction_waits_while_others_need_the_machine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = machine.open()
    files = await fill(shell)
    collector = shell.volume._collector
    busy = True
    monkeypatch.setattr(collector, "_is_busy", lambda: busy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.compact)
        await trio.sleep(0.5)
        assert shell.volume.stats()["compaction"] == "waiting"
        assert collector.state.done_bytes == 0
        busy = False
    assert shell.volume.stats()["compaction"] == "idle"
    assert shell.volume.stats()["young_bytes"] == 0
    await assert_intact(shell, files)


async def test_compaction_that_is_cancelled_ends_at_once_and_loses_nothing(
    machine: Machine,
) -> None:
    shell = machine.open()
    files = {f"/{number}": transcript(number, 2 * MIB) for number in range(4)}
    for path, data in files.items():
        await shell.write(path, data)
    await shell.sync()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.compact)
            with trio.fail_after(30):
                while shell.volume.stats()["compaction"] != "running":
                    await trio.sleep(0.01)
            scope.cancel()
    stats = shell.volume.stats()
    assert stats["compaction_done_bytes"] < stats["compaction_total_bytes"]
    await assert_intact(shell, files)
    await shell.collect()
    await assert_intact(shell, files)


async def test_a_store_at_rest_is_compacted_unasked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_LOOK_S", 0.05)
    monkeypatch.setattr(reclaim, "REST_S", 0.2)
    monkeypatch.setattr(compaction, "REST_S", 0.2)
    monkeypatch.setattr(compaction, "WORTH_BYTES", MIB)
    shell = machine.open()
    files = await fill(shell)
    async with running(shell.volume):
        with trio.fail_after(30):
            while shell.volume.stats()["young_bytes"]:
                await trio.sleep(0.05)
    await assert_intact(shell, files)


async def test_a_store_that_never_rests_packs_what_is_cold(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_LOOK_S", 0.05)
    monkeypatch.setattr(reclaim, "COLD_LOOK_S", 0.1)
    monkeypatch.setattr(reclaim, "WORTH_BYTES", MIB)
    settings = profile()
    small = replace(settings.store, segment_bytes=MIB)
    shell = machine.open(replace(settings, store=small))
    for path in ("/old", "/new"):
        shell.mkdir(path)
        for number in range(4):
            await shell.write(f"{path}/{number}", os.urandom(MIB))
        await shell.sync()
    for number in range(4):
        shell.change(f"/old/{number}", mtime_ns=1, atime_ns=1)
    tiers: set[str] = set()
    async with running(shell.volume):
        with trio.fail_after(30):
            while tiers != {"cold"}:
                shell.change("/new", mode=0o755)  # it changes all the time
                await trio.sleep(0.02)
                tiers = {shell.describe(f"/old/{number}", "tier") for number in range(4)}
    assert {shell.describe(f"/new/{number}", "tier") for number in range(4)} == {"warm"}


# Killed


class Killed(Exception):
    """No code runs from here on."""


STEPS: list[tuple[str, Callable[[Shell], tuple[Any, str]]]] = [
    ("block appended", lambda shell: (shell.volume._store, "sync")),
    ("block recorded", lambda shell: (shell.volume.index.contents, "move_chunks")),
    ("chunks moved", lambda shell: (shell.volume.index.contents, "live_bytes")),
    ("segment forgotten", lambda shell: (shell.volume.durability, "sync")),
    ("index flushed", lambda shell: (shell.volume._store, "remove")),
]


@pytest.mark.parametrize("power", ["stays", "goes"])
@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("step", STEPS, ids=[name for name, _ in STEPS])
async def test_a_kill_at_any_step_loses_nothing(
    disk: Disk,
    machine: Machine,
    step: tuple[str, Callable[[Shell], tuple[Any, str]]],
    calls: int,
    power: str,
) -> None:
    shell = machine.open()
    watch(shell.volume.index, disk)
    shell.volume.index.checkpoint()
    files = await fill(shell, 20)
    await shell.sync()
    owner, name = step[1](shell)
    original, left = getattr(owner, name), calls

    def dies(*arguments: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return original(*arguments)

    setattr(owner, name, dies)
    with contextlib.suppress(Killed):
        await shell.compact()
        assert calls, "it was not killed"
    setattr(owner, name, original)
    machine.kill()
    if power == "goes":
        disk.cut_power(machine.tmpfs)
    shell = machine.open()
    await assert_intact(shell, files)
    await shell.compact()
    await assert_intact(shell, files)
    assert shell.volume.stats()["garbage_bytes"] == 0


async def test_without_room_for_a_segment_compaction_says_so_and_changes_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await fill(shell, 10)
    before = shell.segment_bytes()

    def full(size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "no space left below the store")

    monkeypatch.setattr(shell.volume.staging, "require_disk", full)
    with pytest.raises(OSError, match="no space left"):
        await shell.compact()
    assert shell.segment_bytes() == before
    await assert_intact(shell, files)


# A store of before


async def test_a_store_of_the_first_schema_is_read_continued_and_compacted(
    machine: Machine,
) -> None:
    shutil.copytree(GOLDEN, machine.store, dirs_exist_ok=True)
    shell = machine.open()
    text = b"".join(b"%d the agent read a file and wrote another\n" % n for n in range(1500))
    files = {"/d/text": text, "/d/head": text[:30000], "/copy": text, "/small": b"small"}
    await assert_intact(shell, files)
    before = shell.segment_bytes()
    await shell.write("/again", text)
    await shell.write("/longer", text + b"and more")
    await shell.sync()
    assert shell.segment_bytes() - before < 600, "its chunks are found"
    files |= {"/again": text, "/longer": text + b"and more"}
    await shell.compact()
    await assert_intact(shell, files)


# Which, and when


def use(number: int, *, raw: int, live: int | None = None, young: int = 0) -> SegmentUse:
    return SegmentUse(number, 1, raw // 8, raw, raw if live is None else live, young)


def chosen(*uses: SegmentUse) -> list[int]:
    sizes = {one.number: one.stored for one in uses}
    victims = compaction.to_compact(uses, sizes, garbage_share=0.5, segment_bytes=64 * MIB)
    return [one.number for one in victims]


def test_segments_that_seals_have_written_are_chosen() -> None:
    assert chosen(use(1, raw=80 * MIB), use(2, raw=8 * MIB, young=8 * MIB)) == [2]


def test_packed_segments_no_larger_than_what_is_rewritten_are_taken_along() -> None:
    packed = [use(1, raw=8 * MIB), use(2, raw=16 * MIB), use(3, raw=40 * MIB)]
    assert chosen(*packed) == []
    assert chosen(*packed, use(4, raw=9 * MIB, young=9 * MIB)) == [1, 2, 4]


def test_packed_segments_of_full_size_are_left_alone() -> None:
    assert chosen(use(1, raw=400 * MIB), use(2, raw=500 * MIB, young=500 * MIB)) == [2]


def test_a_packed_segment_with_much_garbage_is_chosen() -> None:
    assert chosen(use(1, raw=8 * MIB, live=3 * MIB), use(2, raw=80 * MIB)) == [1]


def test_background_work_waits_for_rest_unless_much_has_piled_up() -> None:
    worth, rest_s = compaction.WORTH_BYTES, compaction.REST_S
    assert not compaction.is_due(worth, 0, 1.0)
    assert compaction.is_due(worth, 0, rest_s)
    assert not compaction.is_due(0, worth, 1.0)
    assert compaction.is_due(0, worth, rest_s)
    assert not compaction.is_due(MIB, MIB, 1e6)
    assert compaction.is_due(compaction.BACKLOG_BYTES, 0, 0.0)


def test_garbage_is_bounded_in_a_store_that_never_rests() -> None:
    assert compaction.is_too_much(200 * MIB, 1000 * MIB, 0.2)
    assert not compaction.is_too_much(199 * MIB, 1000 * MIB, 0.2)
    assert not compaction.is_too_much(MIB, 2 * MIB, 0.2), "not worth it"
