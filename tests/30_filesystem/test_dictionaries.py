"""Dictionaries: trained on what a store holds, used where they save, and never missed."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest
import trio

from agentfs.errors import StoreNewer
from agentfs.filesystem import dictionaries as module
from agentfs.filesystem.fsck import check
from agentfs.filesystem.repair import repair
from agentfs.index import Index, schema
from agentfs.model import Kind
from agentfs.policy import dictionaries as policy
from fakes.damage import flip
from fakes.disk import Disk, watch
from fakes.volumes import KIB, Machine, Shell, profile

FILES = 300


def note(number: int) -> bytes:
    """As agents leave them: a form that all share, and words of its own."""
    pick = random.Random(number)
    words = [f"{pick.getrandbits(32):08x}" for _ in range(40)]
    form = {
        "tool": pick.choice(["read_file", "run_tests", "search_code", "apply_patch"]),
        "arguments": {"path": f"src/{words[0]}/module.py", "line_start": number, "line_end": 900},
        "status": "completed without errors" if number % 3 else "failed with an exception",
        "output": " ".join(words[1:30]),
        "next_step": f"look at {words[30]} and decide whether the change is complete",
    }
    return json.dumps(form, indent=2).encode()


def other(number: int) -> bytes:
    """Something else altogether."""
    pick = random.Random(-number)
    head = b"You are a careful assistant. "
    rules = [b"Never touch %d; always explain section %d first.\n" % (n, n * n) for n in range(9)]
    return head + b"".join(pick.choices(rules, k=20)) + b"%x" % pick.getrandbits(1000)


@pytest.fixture(autouse=True)
def small_stores_may_have_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs would take more than a two hundredth of 100 KB."""
    monkeypatch.setattr(policy, "_ROOM_SHARE", 1.0)
    monkeypatch.setattr(policy, "_SAMPLES_MIN_BYTES", 32 * KIB)


async def fill(shell: Shell, first: int = 0, count: int = FILES) -> dict[str, bytes]:
    files = {f"/{number:04}.json": note(number) for number in range(first, first + count)}
    for path, data in files.items():
        await shell.write(path, data)
    await shell.sync()
    return files


async def assert_intact(shell: Shell, files: dict[str, bytes]) -> None:
    shell.volume._store.drop_cache()
    for path, data in files.items():
        assert await shell.read(path) == data, path


def numbers(shell: Shell) -> list[int]:
    """Of the dictionaries there are."""
    return [number for number, *_ in shell.volume._store.dictionaries()]


def used(shell: Shell) -> set[int]:
    """Those that blocks refer to, 0 for none."""
    store = shell.volume._store
    return {block[-1] for number, _ in store.segments() for block in store.blocks(number)}


async def sealed_alone(shell: Shell, path: str, data: bytes) -> int:
    """What a file takes that is sealed by itself."""
    before = shell.segment_bytes()
    await shell.write(path, data)
    await shell.seal(path)
    return shell.segment_bytes() - before


async def test_a_small_file_sealed_alone_takes_less_with_a_dictionary(shell: Shell) -> None:
    files = await fill(shell)
    plain = await sealed_alone(shell, "/before", note(5000))
    assert used(shell) == {0}
    await shell.compact()
    assert len(numbers(shell)) >= 1
    assert await sealed_alone(shell, "/after", note(5001)) < 0.8 * plain
    assert used(shell) > {0}
    await assert_intact(shell, files | {"/before": note(5000), "/after": note(5001)})


async def test_few_files_are_no_reason_to_train(shell: Shell) -> None:
    await fill(shell, count=200)
    await shell.compact()
    assert numbers(shell) == []


async def test_a_dictionary_that_saves_nothing_is_not_adopted(shell: Shell) -> None:
    for number in range(FILES):
        await shell.write(f"/{number}", random.Random(number).randbytes(2000))
    await shell.sync()
    await shell.compact()
    assert numbers(shell) == []
    assert shell.volume.index.trained_contents > 0


async def test_dictionaries_take_a_two_hundredth_of_the_store_at_most(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "_ROOM_SHARE", 0.005)
    await fill(shell)
    await shell.compact()
    assert numbers(shell) == []


async def test_a_kind_has_one_of_its_own_where_that_is_better(shell: Shell) -> None:
    await fill(shell, count=600)
    for number in range(300):
        await shell.write(f"/prompt-{number}", other(number))
    await shell.sync()
    await shell.compact()
    kinds = [kind for _, kind, *_ in shell.volume._store.dictionaries()]
    assert kinds[0] == module.ANY
    assert set(kinds) <= {module.ANY, *Kind}


async def test_large_blocks_use_none(shell: Shell) -> None:
    await fill(shell)
    await shell.compact()
    await shell.write("/large", b"".join(note(number) for number in range(9000, 9200)))
    await shell.seal("/large")
    assert used(shell) == {0}


async def test_users_who_are_kept_apart_share_no_dictionary(machine: Machine) -> None:
    shell = machine.open(profile(dedup="user"))
    await fill(shell)
    await shell.compact()
    assert numbers(shell) == []


async def test_training_is_not_repeated_until_the_store_has_doubled(shell: Shell) -> None:
    await fill(shell)
    await shell.compact()
    trained = shell.volume.index.trained_contents
    await fill(shell, 1000, 100)
    await shell.compact()
    assert shell.volume.index.trained_contents == trained
    await fill(shell, 2000, 300)
    await shell.compact()
    assert shell.volume.index.trained_contents > trained


async def test_a_replaced_dictionary_goes_with_the_last_block_that_needs_it(shell: Shell) -> None:
    files = await fill(shell)
    await shell.compact()
    assert numbers(shell) == [1]
    files["/alone"] = note(5000)
    await sealed_alone(shell, "/alone", files["/alone"])
    store, dictionaries = shell.volume._store, shell.volume._collector._dictionaries
    store.add_dictionary(module.ANY, store.dictionary(1))
    dictionaries.look()
    await dictionaries.collect()
    assert numbers(shell) == [1, 2]  # /alone needs the first
    files["/later"] = note(5001)
    await sealed_alone(shell, "/later", files["/later"])
    assert used(shell) == {0, 1, 2}
    await shell.compact()
    assert used(shell) <= {0}
    assert numbers(shell) == [2]
    await assert_intact(shell, files)


async def test_whoever_gives_up_training_waits_for_nothing(shell: Shell) -> None:
    await fill(shell)
    dictionaries = shell.volume._collector._dictionaries
    dictionaries._is_busy = lambda: True
    with trio.move_on_after(0.3) as waited:
        await dictionaries.train(1.0)
    assert waited.cancelled_caught
    assert shell.volume.index.trained_contents == 0
    assert numbers(shell) == []
    dictionaries._is_busy = lambda: False
    await dictionaries.train(1.0)
    assert numbers(shell) != []


async def test_a_step_under_way_is_left_behind(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(samples: list[bytes], size: int) -> bytes:
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
        begun.set()
        go_on.wait(20)
        return b""

    monkeypatch.setattr(module, "train_dictionary", slow)
    await fill(shell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.volume._collector._dictionaries.train, 1.0)
        await trio.to_thread.run_sync(begun.wait)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 1
    go_on.set()
    assert shell.volume.index.trained_contents == 0


async def with_blocks_that_need_one(machine: Machine) -> dict[str, bytes]:
    """A closed store in which a file lies in a block of its own, with a dictionary."""
    shell = machine.open()
    await fill(shell)
    await shell.compact()
    await sealed_alone(shell, "/alone", note(5000))
    assert used(shell) == {0, 1}
    machine.close()
    return {"/alone": note(5000), "/0000.json": note(0)}


def copy_of(machine: Machine, suffix: str) -> Path:
    return machine.store / "segments" / f"0000000000000001.{suffix}"


def still(what: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


@pytest.mark.parametrize("suffix", ["dict", "twin"])
async def test_a_damaged_copy_is_found_by_fsck_and_written_anew(
    machine: Machine, suffix: str
) -> None:
    files = await with_blocks_that_need_one(machine)
    whole = copy_of(machine, suffix).read_bytes()
    flip(copy_of(machine, suffix), 300)
    report = check(machine.store, still)
    assert report.dictionaries == [1]
    assert not report.is_clean
    assert report.files == []
    result = repair(machine.store, still)
    assert "a copy of dictionary 1 was written anew" in result.done
    assert result.report.is_clean
    assert copy_of(machine, suffix).read_bytes() == whole
    await assert_intact(machine.open(), files)


async def test_a_damaged_copy_is_mended_by_a_mount(machine: Machine) -> None:
    files = await with_blocks_that_need_one(machine)
    copy_of(machine, "dict").unlink()
    await assert_intact(machine.open(), files)
    machine.close()
    assert check(machine.store, still).is_clean


async def test_one_that_is_lost_keeps_nothing_from_going_on(machine: Machine) -> None:
    files = await with_blocks_that_need_one(machine)
    shell = machine.open()
    for suffix in ("dict", "twin"):
        flip(copy_of(machine, suffix), 300)
    files |= await fill(shell, 1000, 400)
    assert await sealed_alone(shell, "/more", note(6000)) > 0  # without, or as it was in memory
    await shell.compact()  # trains, and cannot compare with the one in use
    await assert_intact(shell, {path: files[path] for path in files if path != "/alone"})


async def test_without_its_dictionary_a_file_is_lost_named_and_writable(machine: Machine) -> None:
    files = await with_blocks_that_need_one(machine)
    for suffix in ("dict", "twin"):
        flip(copy_of(machine, suffix), 300)
    report = check(machine.store, still)
    assert set(report.blocks.values()) == {"its dictionary is lost"}
    assert [file.path for file in report.files] == [b"/alone"]
    repair(machine.store, still)
    shell = machine.open()
    with pytest.raises(OSError, match="dictionary is lost"):
        await shell.read("/alone")
    assert await shell.read("/0000.json") == files["/0000.json"]
    await shell.write("/again", note(5000))  # the same bytes, once more
    await shell.seal("/again")
    await assert_intact(shell, files | {"/again": note(5000)})


async def test_after_a_power_cut_each_block_has_its_dictionary(
    machine: Machine, disk: Disk
) -> None:
    shell = machine.open()
    watch(shell.volume.index, disk)
    await fill(shell)
    await shell.compact()
    await sealed_alone(shell, "/alone", note(5000))
    await shell.volume.durability.sync()
    assert used(shell) == {0, 1}
    machine.close()
    disk.cut_power(machine.tmpfs)
    await assert_intact(machine.open(), {"/alone": note(5000), "/0000.json": note(0)})


async def test_stats_count_them(shell: Shell) -> None:
    await fill(shell)
    assert shell.volume.stats()["dictionary_bytes"] == 0
    await shell.compact()
    stats = shell.volume.stats()
    copies = (shell.volume.path / "segments").glob("000*.[dt]*")
    assert stats["dictionaries"] == len(numbers(shell))
    assert stats["dictionary_bytes"] == sum(copy.stat().st_size for copy in copies) > 0
    parts = ("segment_bytes", "dictionary_bytes", "index_bytes", "namespace_copy_bytes")
    assert stats["stored_bytes"] == sum(stats[part] for part in parts)


def test_a_version_that_knows_no_dictionaries_keeps_off(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open()
    machine.close()
    older = schema.Migrations("agentfs")
    for migration in (schema.first, schema.damage, schema.loans, schema.packing, schema.kinds):
        older()(migration)
    monkeypatch.setattr(schema, "migrations", older)
    with pytest.raises(StoreNewer, match="newer agentfs"):
        Index(machine.store)
