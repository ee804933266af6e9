"""fsck finds what is damaged and names the files; repair saves all that can be saved."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agentfs.errors import StoreDamaged
from agentfs.filesystem import copies
from agentfs.filesystem.fsck import Report, check
from agentfs.filesystem.repair import Repaired, repair
from agentfs.index import Index
from fakes.damage import blocks, damage_block, flip, is_lost, place_of, segment_path
from fakes.recount import miscounts
from fakes.volumes import KIB, MIB, Machine, Shell, profile

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
"""A store of 0.1.0, and a copy of its namespace as 0.1.0 made them later."""

FLIPS = 300
"""In segments and index, each in a store of its own."""


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def still(what: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def checked(machine: Machine) -> Report:
    return check(machine.store, still)


def repaired(machine: Machine) -> Repaired:
    return repair(machine.store, still)


def damage_chunk_rows(machine: Machine) -> None:
    """Flip a bit on the topmost page of the chunks' table."""
    index = Index(machine.store, read_only=True)
    (root,) = index.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'chunk'").fetchone()
    index.close()
    flip(machine.store / "index.db", (root - 1) * 1024 + 500)


SMALL_BLOCKS = profile(block_bytes=32 * KIB)


async def fill(shell: Shell) -> dict[str, bytes]:
    """A store with something of everything; the files with their bytes."""
    files: dict[str, bytes] = {}
    for directory in ("/a", "/a/deep", "/b"):
        shell.mkdir(directory)
        for number in range(12):
            name = f"{directory}/file-{number}.json"
            files[name] = noise(number % 9, 3_000 * number + 50) + directory.encode() * number
    files["/large"] = noise(77, 300_000)
    files["/twin"] = files["/large"]
    files["/longer"] = files["/large"] + noise(78, 50_000)
    files["/empty"] = b""
    for path, data in files.items():
        if data:
            await shell.write(path, data)
        else:
            shell.close(shell.open(path, os.O_CREAT | os.O_RDWR))
    await shell.write("/sparse", b"head")
    await shell.write("/sparse", b"tail", 100_000)
    files["/sparse"] = b"head" + bytes(99_996) + b"tail"
    shell.link("/large", "/b/link")
    files["/b/link"] = files["/large"]
    shell.symlink(b"a/deep", "/to-deep")
    shell.set_xattr("/large", b"user.agent", b"planner")
    await shell.sync()
    shell.unlink("/a/file-3.json")
    del files["/a/file-3.json"]
    return files


async def a_store(machine: Machine) -> dict[str, bytes]:
    files = await fill(machine.open(SMALL_BLOCKS))
    await machine.unmount()
    return files


def paths_named(report: Report) -> set[str]:
    return {os.fsdecode(file.path) for file in report.files}


async def readable(shell: Shell, path: str, data: bytes) -> bool:
    """Whether all of a file can be read; what can be read is right."""
    whole = True
    for offset in range(0, max(len(data), 1), 16 * KIB):
        try:
            got = await shell.read(path, offset, 16 * KIB)
        except sqlite3.DatabaseError:  # EIO for a program
            whole = False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            whole = False
        else:
            assert got == data[offset : offset + 16 * KIB], (path, offset)
    return whole


async def lost_files(machine: Machine, files: dict[str, bytes]) -> set[str] | None:
    """Which files cannot be read whole; None: the store cannot be mounted."""
    try:
        shell = machine.open(SMALL_BLOCKS)
    except StoreDamaged:
        return None
    try:
        return {path for path, data in files.items() if not await readable(shell, path, data)}
    finally:
        machine.close()


async def test_a_store_without_damage_is_clean_and_unchanged(machine: Machine) -> None:
    await a_store(machine)
    before = {path: path.read_bytes() for path in machine.store.rglob("*") if path.is_file()}
    report = checked(machine)
    assert report.is_clean
    assert report.blocks_checked > 10
    assert report.contents_checked > 20
    after = {path: path.read_bytes() for path in machine.store.rglob("*") if path.is_file()}
    assert after == before


async def test_a_store_in_use_is_checked_as_it_is(machine: Machine) -> None:
    shell = machine.open(SMALL_BLOCKS)
    files = await fill(shell)
    await shell.write("/staged", b"not sealed yet")
    assert (await shell.volume.check(still))["clean"]
    damage_block(machine.store, place_of(shell, "/large"))
    report = await shell.volume.check(still)
    assert {file["path"] for file in report["files"]} == {"/large", "/twin", "/longer", "/b/link"}
    await shell.write("/again", files["/large"])
    await shell.sync()
    assert (await shell.volume.check(still))["clean"]
    assert await shell.read("/twin") == files["/large"]
    assert not (machine.store / "snapshot").exists()


async def test_any_flipped_bit_is_found_and_every_file_is_right_or_EIO(  # noqa: N802
    machine: Machine, tmp_path: Path
) -> None:
    files = await a_store(machine)
    original = tmp_path / "original"
    machine.store.rename(original)
    places = blocks(original)
    assert len(places) > 15
    chance = random.Random(4)
    for number in range(FLIPS):
        shutil.copytree(original, machine.store)
        in_index = number % 2 == 0
        if in_index:
            target = machine.store / "index.db"
            offset = chance.randrange(target.stat().st_size)
        else:
            segment, block, stored = chance.choice(places)
            target, offset = segment_path(machine.store, segment), block + chance.randrange(stored)
        flip(target, offset, chance.randrange(8))
        where = (target.name, offset)

        report = checked(machine)
        assert not report.is_clean, where
        lost = await lost_files(machine, files)
        if not in_index:
            assert lost == paths_named(report), where

        result = repaired(machine)
        lost = await lost_files(machine, files)
        assert lost == paths_named(result.report), where
        if in_index:
            assert lost == set(), where
            assert checked(machine).is_clean, where
        shutil.rmtree(machine.store)


@pytest.mark.parametrize("keep", [0, 31, 32, 40, 5_000, 60_000])
async def test_a_segment_whose_end_is_missing_loses_what_was_there(
    machine: Machine, keep: int
) -> None:
    files = await a_store(machine)
    segment = segment_path(machine.store, 1)
    os.truncate(segment, keep)
    report = checked(machine)
    assert report.files
    assert await lost_files(machine, files) == paths_named(report)
    result = repaired(machine)
    assert await lost_files(machine, files) == paths_named(result.report)


@pytest.mark.parametrize("seed", range(12))
async def test_many_damaged_pages_are_restored_from_the_copy(machine: Machine, seed: int) -> None:
    files = await a_store(machine)
    database = machine.store / "index.db"
    chance = random.Random(seed)
    pages = database.stat().st_size // 1024
    for page in chance.sample(range(pages), pages // 3):
        flip(database, page * 1024 + chance.randrange(1024))
    result = repaired(machine)
    assert not result.report.files
    assert (machine.store / "index.db.damaged").exists()
    shell = machine.open()
    for path, data in files.items():
        assert await shell.read(path) == data, path
    assert shell.inode("/to-deep").target == b"a/deep"
    assert shell.get_xattr("/large", b"user.agent") == b"planner"
    assert shell.is_same("/large", "/b/link")
    assert not shell.exists("/a/file-3.json")
    assert miscounts(shell.volume.index) == []
    machine.close()
    assert checked(machine).is_clean


async def test_an_index_that_is_gone_altogether_is_made_of_the_copy(machine: Machine) -> None:
    files = await a_store(machine)
    (machine.store / "index.db").write_bytes(b"nothing of it is left" * 1000)
    repaired(machine)
    assert await lost_files(machine, files) == set()
    shell = machine.open()
    before = shell.segment_bytes()
    await shell.write("/copy", files["/large"])
    await shell.sync()
    assert shell.segment_bytes() == before, "digests are known again"


async def test_a_copy_of_the_first_format_is_read(machine: Machine) -> None:
    shutil.copytree(GOLDEN / "store", machine.store, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "namespace", machine.store / "namespace")
    (machine.store / "index.db").unlink()
    repaired(machine)
    assert checked(machine).is_clean
    text = b"".join(b"%d the agent read a file and wrote another\n" % n for n in range(1500))
    files = {"/d/text": text, "/d/head": text[:30000], "/copy": text, "/small": b"small"}
    assert await lost_files(machine, files) == set()


async def test_without_index_and_copy_nothing_is_changed(machine: Machine) -> None:
    await a_store(machine)
    shutil.rmtree(machine.store / "namespace")
    (machine.store / "index.db").write_bytes(b"nothing of it is left" * 1000)
    with pytest.raises(StoreDamaged, match="no copy of the namespace holds"):
        repaired(machine)
    assert (machine.store / "index.db").read_bytes() == b"nothing of it is left" * 1000


async def test_a_damaged_copy_is_reported_and_an_older_one_is_used(machine: Machine) -> None:
    files = await a_store(machine)
    shell = machine.open()
    await shell.write("/newer", b"made after the first copy")
    await machine.unmount()
    newest = sorted((machine.store / "namespace").iterdir())[-1]
    flip(newest, newest.stat().st_size // 2)
    assert checked(machine).copies == [2]
    (machine.store / "index.db").write_bytes(b"")
    repaired(machine)
    assert await lost_files(machine, files) == set()
    assert not machine.open().exists("/newer")


async def test_what_was_done_after_the_copy_survives_where_it_can_be_read(machine: Machine) -> None:
    files = await a_store(machine)
    shell = machine.open(SMALL_BLOCKS)
    shell.unlink("/b/file-5.json")
    shell.rename("/a/file-1.json", "/a/renamed.json")
    await shell.write("/newer", noise(99, 40_000))
    await shell.sync()
    machine.close()  # without another copy
    del files["/b/file-5.json"]
    files["/a/renamed.json"] = files.pop("/a/file-1.json")
    files["/newer"] = noise(99, 40_000)
    damage_chunk_rows(machine)
    result = repaired(machine)
    assert paths_named(result.report) == {"/newer"}, "its chunks are in no copy"
    assert await lost_files(machine, files) == {"/newer"}
    shell = machine.open()
    assert not shell.exists("/b/file-5.json")
    await shell.write("/again", noise(99, 40_000))
    await shell.sync()
    assert await shell.read("/newer") == noise(99, 40_000), "written again, it is whole again"
    assert miscounts(shell.volume.index) == []


async def test_what_a_file_falls_back_to_does_not_move_on_with_it_after_a_repair(
    machine: Machine,
) -> None:
    await a_store(machine)
    shell = machine.open(SMALL_BLOCKS)
    await shell.replace("/large", b"not sealed yet")
    assert shell.inode("/large").content is not None, "what it replaced"
    machine.kill()
    damage_chunk_rows(machine)
    repaired(machine)
    shell = machine.open(SMALL_BLOCKS)
    assert await shell.read("/large") == b"not sealed yet"
    shell.rename("/large", "/moved")
    assert shell.inode("/moved").content is None
    assert miscounts(shell.volume.index) == []


async def test_repair_marks_and_writing_heals(machine: Machine) -> None:
    await a_store(machine)
    shell = machine.open()
    place = place_of(shell, "/large")
    machine.close()
    damage_block(machine.store, place)
    result = repaired(machine)
    assert "/twin" in paths_named(result.report)
    assert not result.report.is_clean
    shell = machine.open()
    await shell.write("/again", noise(77, 300_000))
    await shell.sync()
    assert await shell.read("/twin") == noise(77, 300_000)
    await machine.unmount()
    assert checked(machine).is_clean


async def test_a_block_that_can_be_read_again_is_used_again(machine: Machine) -> None:
    await a_store(machine)
    shell = machine.open()
    place = place_of(shell, "/large")
    machine.close()
    damage_block(machine.store, place)
    assert repaired(machine).report.files
    damage_block(machine.store, place)
    assert repaired(machine).report.is_clean
    shell = machine.open()
    assert shell.volume.index.contents.totals()["damaged_blocks"] == 0


async def test_a_damaged_segment_header_is_written_anew(machine: Machine) -> None:
    files = await a_store(machine)
    flip(segment_path(machine.store, 1), 3)
    report = checked(machine)
    assert report.headers == [1]
    assert not report.files
    assert repaired(machine).report.is_clean
    assert checked(machine).is_clean
    assert await lost_files(machine, files) == set()


def forget_a_name(index: Index) -> None:
    index.execute("DELETE FROM dentry WHERE name = 'large' OR name = x'6c61726765'")
    index.execute("DELETE FROM dentry WHERE name = x'6c696e6b'")


def forget_an_inode(index: Index) -> None:
    index.execute("DELETE FROM inode WHERE id = (SELECT inode FROM dentry WHERE name = x'61')")


def make_a_cycle(index: Index) -> None:
    inner = "(SELECT inode FROM dentry WHERE name = x'64656570')"
    index.execute(f"UPDATE dentry SET parent = {inner} WHERE name = x'61'")


def miscount(index: Index) -> None:
    index.execute("UPDATE content SET refs = refs + 1 WHERE id % 2")
    index.execute("UPDATE chunk SET refs = 0 WHERE id % 3")
    index.execute("UPDATE block SET live = 1")
    index.execute("UPDATE inode SET nlink = 7 WHERE id % 5 = 0")


def forget_a_chunk(index: Index) -> None:
    index.execute("DELETE FROM chunk WHERE id = (SELECT max(id) FROM chunk)")


def forget_a_content(index: Index) -> None:
    index.execute("DELETE FROM content WHERE id = (SELECT max(id) FROM content)")


def forget_a_block(index: Index) -> None:
    index.execute("DELETE FROM block WHERE id = 3")


def misplace_a_chunk(index: Index) -> None:
    index.execute("UPDATE chunk SET start = start + 1 WHERE id = 5")


def forget_a_list(index: Index) -> None:
    index.execute("UPDATE block SET chunks = x'' WHERE id = 2")


def rename_a_content(index: Index) -> None:
    index.execute("UPDATE content SET digest = randomblob(32) WHERE id = 2")


@pytest.mark.parametrize(
    "harm",
    [
        forget_a_name,
        forget_an_inode,
        make_a_cycle,
        miscount,
        forget_a_chunk,
        forget_a_content,
        forget_a_block,
        misplace_a_chunk,
        forget_a_list,
        rename_a_content,
    ],
)
async def test_rows_that_contradict_each_other_are_found_and_mended(
    machine: Machine, harm: Callable[[Index], None]
) -> None:
    files = await a_store(machine)
    index = Index(machine.store)
    harm(index)
    index.close()
    report = checked(machine)
    assert not report.is_clean
    result = repaired(machine)
    assert not result.report.findings
    after = checked(machine)
    assert not after.findings
    shell = machine.open()
    assert miscounts(shell.volume.index) == []
    for path, data in files.items():
        if shell.exists(path):
            await readable(shell, path, data)


async def test_a_file_without_a_name_is_in_lost_and_found(machine: Machine) -> None:
    await a_store(machine)
    index = Index(machine.store)
    forget_a_name(index)
    index.close()
    assert repaired(machine).report.is_clean
    shell = machine.open()
    (name,) = shell.names("/lost+found")
    assert await shell.read(f"/lost+found/{name.decode()}") == noise(77, 300_000)


async def test_copies_are_small_few_and_say_what_the_index_says(machine: Machine) -> None:
    shell = machine.open()
    for number in range(2000):
        await shell.write(f"/{number:05}.json", noise(number, 2_000))
    await machine.unmount()
    for name in ("/one", "/two", "/three"):
        await machine.open().write(name, b"x")
        await machine.unmount()
    there = sorted((machine.store / "namespace").iterdir())
    assert len(there) == copies.KEPT
    index_bytes = (machine.store / "index.db").stat().st_size
    assert copies.size_bytes(machine.store) < 0.35 * index_bytes
    machine.open()
    await machine.unmount()
    assert sorted((machine.store / "namespace").iterdir()) == there, "nothing has changed"


async def test_a_copy_that_was_not_finished_is_none(machine: Machine) -> None:
    files = await a_store(machine)
    shell = machine.open()
    await shell.write("/newer", b"x" * 5_000)
    await machine.unmount()
    newest = sorted((machine.store / "namespace").iterdir())[-1]
    os.truncate(newest, newest.stat().st_size - 60)
    (machine.store / "index.db").write_bytes(b"")
    repaired(machine)
    assert await lost_files(machine, files) == set()


async def test_a_large_file_is_lost_in_ranges(machine: Machine) -> None:
    shell = machine.open()
    await shell.write("/file", noise(5, 20 * MIB))
    await shell.sync()
    place = place_of(shell, "/file", len(shell.recipe("/file")) // 2)
    machine.close()
    damage_block(machine.store, place)
    (file,) = checked(machine).files
    ((offset, length),) = file.ranges
    assert 8 * MIB < offset < 12 * MIB
    assert length <= MIB
    shell = machine.open()
    assert await is_lost(shell, "/file", offset)
    assert await shell.read("/file", 0, offset) == noise(5, 20 * MIB)[:offset]
