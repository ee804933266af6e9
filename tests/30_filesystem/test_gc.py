"""gc: what nothing refers to is given back, and nothing else."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import pytest
import trio

from fakes.disk import Disk
from fakes.recount import miscounts
from fakes.volumes import KIB, MIB, Machine, Shell, profile, running

SEGMENT_HEADER_BYTES_MAX = 4 * KIB

APPENDS = 1000


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def rows(shell: Shell, table: str) -> int:
    (count,) = shell.volume.index.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def is_sound(shell: Shell) -> bool:
    return not miscounts(shell.volume.index)


async def test_after_everything_is_deleted_everything_is_given_back(shell: Shell) -> None:
    shell.mkdir("/d")
    for number in range(50):
        await shell.write(f"/d/{number}", noise(number, 30_000))
    await shell.sync()
    full = shell.segment_bytes()
    assert full > 50 * 30_000
    for number in range(50):
        shell.unlink(f"/d/{number}")
    freed = await shell.collect()
    assert freed["contents"] == 50
    assert [rows(shell, table) for table in ("content", "chunk", "block")] == [0, 0, 0]
    assert shell.segment_bytes() <= SEGMENT_HEADER_BYTES_MAX
    assert freed["stored_bytes"] == full - shell.segment_bytes()


async def test_what_is_still_needed_is_kept_byte_for_byte(shell: Shell) -> None:
    for number in range(60):
        await shell.write(f"/{number}", noise(number, 20_000))
    await shell.sync()
    for number in range(60):
        if number % 6:
            shell.unlink(f"/{number}")
    before = shell.segment_bytes()
    await shell.collect()
    assert shell.segment_bytes() < before / 4
    for number in range(0, 60, 6):
        assert await shell.read(f"/{number}") == noise(number, 20_000)
    assert is_sound(shell)


async def test_a_chunk_shared_with_a_deleted_file_is_kept(shell: Shell) -> None:
    shared = noise(1, 200_000)
    await shell.write("/a", shared + noise(2, 100_000))
    await shell.write("/b", shared + noise(3, 100_000))
    await shell.sync()
    shell.unlink("/a")
    await shell.collect()
    assert await shell.read("/b") == shared + noise(3, 100_000)
    assert is_sound(shell)


async def test_gc_without_garbage_changes_nothing(shell: Shell) -> None:
    for number in range(20):
        await shell.write(f"/{number}", noise(number, 30_000))
    await shell.sync()
    await shell.collect()
    segments = sorted((shell.volume.path / "segments").iterdir())
    bytes_before = [segment.read_bytes() for segment in segments]
    assert (await shell.collect())["segments"] == 0
    assert sorted((shell.volume.path / "segments").iterdir()) == segments
    assert [segment.read_bytes() for segment in segments] == bytes_before


async def test_an_open_unlinked_file_keeps_its_content(shell: Shell) -> None:
    await shell.write("/a", noise(1, 50_000))
    await shell.sync()
    handle = shell.open("/a")
    shell.unlink("/a")
    await shell.collect()
    assert await shell.volume.files.read(handle, 0, 50_000) == noise(1, 50_000)
    shell.close(handle)
    await shell.collect()
    assert rows(shell, "content") == 0


async def test_a_file_unlinked_between_its_lookup_and_its_open_keeps_its_content(
    shell: Shell,
) -> None:
    await shell.write("/a", noise(1, 50_000))
    await shell.sync()
    inode = shell.inode("/a")
    shell.volume.table.looked_up(inode.id)
    shell.unlink("/a")
    await shell.collect()
    handle = shell.volume.files.open(shell.volume.table.get(inode.id), 0, is_privileged=True)
    assert await shell.volume.files.read(handle, 0, 50_000) == noise(1, 50_000)
    shell.close(handle)
    shell.volume.table.forget(inode.id, 1)
    await shell.collect()
    assert rows(shell, "content") == 0


async def test_content_written_again_before_gc_costs_nothing(shell: Shell) -> None:
    await shell.write("/a", noise(1, 100_000))
    await shell.sync()
    shell.unlink("/a")
    before = shell.segment_bytes()
    await shell.write("/b", noise(1, 100_000))
    await shell.sync()
    assert shell.segment_bytes() == before
    await shell.collect()
    assert await shell.read("/b") == noise(1, 100_000)


async def test_readers_read_on_while_their_segments_are_rewritten(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    for number in range(80):
        await shell.write(f"/{number}", noise(number, 40_000))
    await shell.sync()
    for number in range(80):
        if number % 4:
            shell.unlink(f"/{number}")
    reads = 0

    async def read_all_the_time(rng: random.Random) -> None:
        nonlocal reads
        while True:
            number = rng.randrange(0, 80, 4)
            offset = rng.randrange(40_000)
            shell.volume._store.drop_cache()
            expected = noise(number, 40_000)[offset : offset + 9000]
            assert await shell.read(f"/{number}", offset, 9000) == expected
            reads += 1
            await trio.sleep(0)

    async def until_more_are_read() -> None:
        enough = reads + 10
        while reads < enough:
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for seed in range(4):
            nursery.start_soon(read_all_the_time, random.Random(seed))
        await until_more_are_read()
        freed = await shell.collect()
        await until_more_are_read()
        nursery.cancel_scope.cancel()
    assert freed["segments"]
    assert is_sound(shell)


async def test_a_seal_that_begins_while_gc_runs_loses_nothing(
    machine: Machine, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks lie in a segment already and have no rows yet: they look like garbage."""
    shell = machine.open()
    for number in range(10):
        await shell.write(f"/{number}", noise(number, 50_000))
    await shell.sync()
    for number in range(9):
        shell.unlink(f"/{number}")
    await shell.write("/new", noise(99, 50_000))
    stored, go_on = trio.Event(), trio.Event()

    def stop_once() -> None:
        disk.before_sync = lambda: None
        trio.from_thread.run_sync(stored.set)
        trio.from_thread.run(go_on.wait)

    durability, original = shell.volume.durability, shell.volume.durability.sync

    async with trio.open_nursery() as nursery:

        async def let_a_seal_in() -> None:
            if not stored.is_set():
                disk.before_sync = stop_once
                nursery.start_soon(shell.seal, "/new")
                await stored.wait()
            await original()

        monkeypatch.setattr(durability, "sync", let_a_seal_in)
        with trio.move_on_after(20):
            await shell.collect()
        go_on.set()
    assert stored.is_set()
    assert is_sound(shell)
    shell.volume._store.drop_cache()
    assert await shell.read("/new") == noise(99, 50_000)
    assert await shell.read("/9") == noise(9, 50_000)


@pytest.mark.parametrize("seed", range(4))
async def test_seals_deletes_and_gc_at_the_same_time_lose_nothing(
    machine: Machine, seed: int
) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    expected: dict[str, bytes] = {}

    async def write_and_delete(task: int) -> None:
        rng = random.Random(seed * 100 + task)
        for step in range(60):
            path = f"/{task}.{rng.randrange(8)}"
            if path in expected and rng.random() < 0.4:
                shell.unlink(path)
                del expected[path]
            else:
                # few seeds: tasks write the same bytes, delete them and write them again
                expected[path] = noise(rng.randrange(6), 20_000) + b"%d" % (step % 3)
                if shell.exists(path):
                    await shell.truncate(path, 0)
                await shell.write(path, expected[path])
                if rng.random() < 0.7 and shell.is_staged(path):
                    await shell.seal(path)
            await trio.sleep(0)

    async with trio.open_nursery() as collecting:

        async def collect_all_the_time() -> None:
            while True:
                await shell.collect()
                await trio.sleep(0)

        collecting.start_soon(collect_all_the_time)
        async with trio.open_nursery() as writing:
            for task in range(3):
                writing.start_soon(write_and_delete, task)
        collecting.cancel_scope.cancel()
    await shell.sync()
    await shell.collect()
    assert is_sound(shell)
    shell.volume._store.drop_cache()
    for path, data in expected.items():
        assert await shell.read(path) == data


async def test_blocks_of_a_seal_that_was_never_recorded_are_given_back(machine: Machine) -> None:
    """As a crash between appending and recording leaves them, in the midst of good ones."""
    shell = machine.open(profile(block_bytes=64 * KIB))
    await shell.write("/a", noise(1, 50_000))
    await shell.sync()
    before = shell.segment_bytes()
    shell.volume._store.put([noise(2, 3 * MIB)], 1)
    await shell.write("/b", noise(3, 50_000))
    await shell.sync()
    assert shell.segment_bytes() > before + 3 * MIB
    await shell.collect()
    assert shell.segment_bytes() < before + MIB
    assert await shell.read("/a") == noise(1, 50_000)
    assert await shell.read("/b") == noise(3, 50_000)


async def test_a_segment_nobody_knows_is_removed(shell: Shell) -> None:
    shell.volume._store.put([noise(2, MIB)], 1)
    assert shell.segment_bytes() > MIB
    await shell.collect()
    assert shell.segment_bytes() <= SEGMENT_HEADER_BYTES_MAX


async def test_gc_survives_a_reopen(machine: Machine) -> None:
    shell = machine.open()
    for number in range(10):
        await shell.write(f"/{number}", noise(number, 30_000))
    await shell.sync()
    for number in range(9):
        shell.unlink(f"/{number}")
    await shell.collect()
    machine.kill()
    shell = machine.open()
    assert await shell.read("/9") == noise(9, 30_000)
    await shell.write("/x", noise(1000, 30_000))
    await machine.unmount()
    shell = machine.open()
    assert await shell.read("/x") == noise(1000, 30_000)
    assert is_sound(shell)


# What logs and histories cost


@functools.cache
def log_line(number: int) -> bytes:
    rng = random.Random(number)
    said = " ".join(rng.choices(["read", "wrote", "ran", "failed", "thought", "file", "test"], k=9))
    return json.dumps({"step": number, "id": rng.randbytes(8).hex(), "text": said}).encode() + b"\n"


async def cost_of(machine: Machine, data: bytes) -> int:
    """Bytes of segments of a store that never held anything but *data*."""
    shell = machine.open()
    await shell.write("/only", data)
    await shell.sync()
    cost = shell.segment_bytes()
    shell.unlink("/only")
    await shell.collect()
    machine.close()
    return cost


def history(length: int) -> bytes:
    return b"[\n " + b" ,".join(map(log_line, range(length))) + b"]\n"


async def append_and_rest(shell: Shell, *, seal_every: int | None) -> bytes:
    data = b""
    for number in range(APPENDS):
        await shell.append("/log", log_line(number))
        data += log_line(number)
        if seal_every and number % seal_every == 0:
            await shell.seal("/log")
    await shell.sync()
    return data


async def test_a_log_appended_1000_times_in_a_burst_is_stored_once(machine: Machine) -> None:
    alone = await cost_of(machine, b"".join(map(log_line, range(APPENDS))))
    shell = machine.open(profile(rest_s=5.0))
    async with running(shell.volume):
        data = await append_and_rest(shell, seal_every=None)
    assert await shell.read("/log") == data
    assert shell.segment_bytes() <= alone * 1.2 + SEGMENT_HEADER_BYTES_MAX


async def test_a_log_appended_1000_times_with_rests_costs_what_it_holds_after_gc(
    machine: Machine,
) -> None:
    alone = await cost_of(machine, b"".join(map(log_line, range(APPENDS))))
    shell = machine.open()
    data = await append_and_rest(shell, seal_every=20)
    before = shell.segment_bytes()
    # Each of the 50 seals may store anew the chunks that the end of the file was in.
    assert before <= alone + 51 * 32 * KIB
    await shell.collect()
    assert shell.segment_bytes() <= alone * 1.25 + SEGMENT_HEADER_BYTES_MAX
    assert shell.segment_bytes() <= before
    assert await shell.read("/log") == data
    assert is_sound(shell)


async def test_a_history_rewritten_1000_times_costs_what_it_holds_after_gc(
    machine: Machine,
) -> None:
    final = history(APPENDS)
    alone = await cost_of(machine, final)
    shell = machine.open()
    for length in range(1, APPENDS + 1):
        await shell.replace("/history.json", history(length))
        if length % 50 == 0:
            await shell.seal("/history.json")
    await shell.sync()
    assert shell.volume.index.contents.totals()["files"] == 1
    before = shell.segment_bytes()
    assert before <= alone + 21 * 64 * KIB
    await shell.collect()
    assert shell.segment_bytes() <= alone * 1.25 + SEGMENT_HEADER_BYTES_MAX
    assert rows(shell, "content") == 1
    assert await shell.read("/history.json") == final
    assert is_sound(shell)


async def test_a_history_rewritten_1000_times_in_a_burst_is_stored_once(machine: Machine) -> None:
    final = history(APPENDS)
    alone = await cost_of(machine, final)
    shell = machine.open()
    for length in range(1, APPENDS + 1):
        await shell.replace("/history.json", history(length))
    await shell.sync()
    assert shell.segment_bytes() <= alone * 1.2 + SEGMENT_HEADER_BYTES_MAX
    assert rows(shell, "inode") == 2, "the replaced files are gone"
    assert await shell.read("/history.json") == final


async def test_sealing_conversations_that_grew_by_a_line_writes_what_changes_and_not_pages(
    shell: Shell,
) -> None:
    names = [f"/{number}.jsonl" for number in range(30)]
    for number, name in enumerate(names):
        await shell.write(name, noise(number, 150_000))
    await shell.seal(*names)
    shell.volume.index.checkpoint()
    for turn in range(10):
        for name in names:
            await shell.append(name, log_line(turn))
        await shell.seal(*names)
    log = shell.volume.index.path.with_name("index.db-wal")
    assert log.stat().st_size <= 10 * len(names) * 1800
    assert is_sound(shell)


async def garbage_seen(shell: Shell) -> float:
    """What background work takes to be worth collecting."""
    _, garbage, _ = await shell.volume._collector._backlog()
    return garbage


async def test_a_conversation_that_only_grows_leaves_no_garbage_worth_a_collection(
    shell: Shell,
) -> None:
    long = noise(1, 300_000)
    for number in range(60):
        await shell.append("/log", long if number == 0 else log_line(number))
        await shell.seal("/log")
        assert await garbage_seen(shell) < 3 * MIB
    (named,) = shell.volume.index.execute("SELECT sum(size) FROM content").fetchone()
    assert named > 15 * MIB, "by the sizes of what was replaced it would be"


async def test_contents_that_are_gone_altogether_are_garbage_worth_a_collection(
    shell: Shell,
) -> None:
    for number in range(12):
        await shell.write(f"/{number}", noise(number, MIB))
    await shell.sync()
    assert await garbage_seen(shell) < MIB
    for number in range(12):
        shell.unlink(f"/{number}")
    assert 12 * MIB <= await garbage_seen(shell) < 12.2 * MIB
    await shell.collect()
    assert await garbage_seen(shell) < MIB


def figures(shell: Shell) -> dict[str, Any]:
    return shell.volume.stats()


async def test_stats_name_the_garbage_that_gc_then_removes(shell: Shell) -> None:
    for number in range(20):
        await shell.write(f"/{number}", noise(number, 50_000))
    await shell.sync()
    assert figures(shell)["logical_bytes"] == 1_000_000
    for number in range(15):
        shell.unlink(f"/{number}")
    await shell.collect()
    after = figures(shell)
    assert (after["files"], after["logical_bytes"], after["unique_bytes"]) == (5, 250_000, 250_000)
    assert after["garbage_bytes"] == 0
    assert after["segment_bytes"] == shell.segment_bytes()


async def test_a_segment_that_is_just_half_garbage_is_rewritten(machine: Machine) -> None:
    shell = machine.open(profile(block_bytes=64 * KIB))
    for number in range(10):
        await shell.write(f"/{number}", noise(number, 200_000))
    await shell.sync()
    for number in range(0, 10, 2):
        shell.unlink(f"/{number}")
    before = shell.segment_bytes()
    await shell.collect()
    assert shell.segment_bytes() < before * 0.6
