"""Packed pages: the same rows in less space, whatever is written, killed or damaged since."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from agentfs.errors import StoreDamaged
from agentfs.index import Index, damaged_pages
from agentfs.index.salvage import rebuild
from fakes.rows import fill, flip, rows, seen

FLIPS = 300


def pack(index: Index) -> None:
    for _ in index.pack():
        pass


def allocated(store: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in store.glob("index.db*"))


def a_packed_store(store: Path, count: int = 400) -> list[object]:
    """What its rows are."""
    store.mkdir(exist_ok=True)
    index = Index(store)
    fill(index, count)
    pack(index)
    expected = rows(index)
    index.close()
    return expected


def test_what_was_packed_is_read_and_takes_less(tmp_path: Path) -> None:
    index = Index(tmp_path)
    fill(index, 4000)
    index.checkpoint()
    before, expected = allocated(tmp_path), rows(index)
    pack(index)
    index.execute("PRAGMA shrink_memory")
    names = [row for row in rows(index) if "packed" not in row]  # type: ignore[operator]
    assert names == expected
    assert allocated(tmp_path) < before / 2
    assert abs(index.bytes_on_disk() - allocated(tmp_path)) < 4096
    expected = rows(index)
    index.close()
    assert seen(tmp_path) == expected
    looked_at = Index(tmp_path, read_only=True)
    assert rows(looked_at) == expected
    looked_at.close()
    assert damaged_pages(tmp_path / "index.db") == []


def test_it_can_be_written_and_packed_over_and_over(tmp_path: Path) -> None:
    a_packed_store(tmp_path)
    index = Index(tmp_path)
    for round_ in range(5):
        with index.transaction:
            for number in range(round_, 400, 7):
                index.xattrs.set(number, b"user.comment", b"round %d" % round_)
            for number in range(round_ * 3, 400, 50):
                index.dentries.delete(1, b"a name of some length %d" % number)
            index.dentries.insert(1, b"new %d" % round_, 5)
        expected = rows(index)
        index.close()
        assert seen(tmp_path) == expected
        index = Index(tmp_path)
        if round_ % 2:
            pack(index)
    assert index.inconsistencies() == []
    index.vacuum()
    pack(index)
    expected = rows(index)
    index.close()
    assert seen(tmp_path) == expected


def test_an_open_index_is_packed_again(tmp_path: Path) -> None:
    a_packed_store(tmp_path)
    index = Index(tmp_path)
    for round_ in range(3):
        with index.transaction:
            for number in range(400):
                index.xattrs.set(number, b"user.comment", b"round %d" % round_ * 10)
        index.checkpoint()
        before = allocated(tmp_path)
        pack(index)
        assert allocated(tmp_path) < before
    index.execute("PRAGMA shrink_memory")
    assert {row[2] for row in index.execute("SELECT * FROM xattr")} == {b"round 2" * 10}
    index.close()


def test_what_is_written_while_it_is_packed_is_not_lost(tmp_path: Path) -> None:
    index = Index(tmp_path)
    fill(index)
    for step, _ in enumerate(index.pack()):
        index.xattrs.set(step, b"user.comment", b"changed")
        index.xattrs.set(399 - step, b"user.comment", b"changed as well")
        index.checkpoint()
    index.execute("PRAGMA shrink_memory")
    expected = rows(index)
    assert sum(b"changed" in row for row in expected) > 3  # type: ignore[operator,misc]
    index.close()
    assert seen(tmp_path) == expected
    assert damaged_pages(tmp_path / "index.db") == []


@pytest.mark.parametrize("step", range(0, 12))
def test_a_kill_at_any_step_of_packing_loses_nothing(tmp_path: Path, step: int) -> None:
    store, killed = tmp_path / "store", tmp_path / "killed"
    a_packed_store(store)
    index = Index(store)
    index.xattrs.set(3, b"user.comment", b"committed before")
    steps = index.pack()
    for _ in range(step):
        next(steps, None)
    index.xattrs.set(4, b"user.comment", b"committed meanwhile")
    expected = rows(index)
    shutil.copytree(store, killed)
    assert seen(killed) == expected
    index.close()
    assert seen(store) == expected
    assert sorted(path.name for path in store.iterdir()) == ["index.db", "index.db-packed"]


def test_a_crash_between_the_packed_file_and_the_holes_loses_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    a_packed_store(old)
    index = Index(old)
    index.xattrs.set(3, b"user.comment", b"changed")
    steps = index.pack()
    next(steps)  # the setting names both files, and is durable
    shutil.copytree(old, new)
    for _ in steps:
        pass
    expected = [row for row in rows(index) if "packed" not in row]  # type: ignore[operator]
    index.close()
    shutil.copy(old / "index.db-packed", new / "index.db-packed")
    found = seen(new)
    assert found is not None
    assert [row for row in found if "packed" not in row] == expected  # type: ignore[operator]


def test_any_flipped_bit_of_the_packed_file_is_found(tmp_path: Path) -> None:
    original, store = tmp_path / "original", tmp_path / "store"
    expected = a_packed_store(original)
    size = (original / "index.db-packed").stat().st_size
    chance = random.Random(1)
    found = 0
    for number, offset in enumerate([*range(64), *(chance.randrange(size) for _ in range(FLIPS))]):
        shutil.copytree(original, store)
        flip(store / "index.db-packed", offset, number % 8)
        rows_seen = seen(store)
        assert rows_seen in (None, expected), offset
        found += rows_seen is None
        shutil.rmtree(store)
    assert found > FLIPS * 3 / 4, "most of it is read"


@pytest.mark.parametrize("left", [0, 10, 70, 500, 5000])
def test_a_packed_file_that_is_cut_off_is_found(tmp_path: Path, left: int) -> None:
    a_packed_store(tmp_path)
    with open(tmp_path / "index.db-packed", "r+b") as file:
        file.truncate(left)
    assert seen(tmp_path) is None
    assert damaged_pages(tmp_path / "index.db")


def test_a_page_that_was_written_since_and_reads_as_zeros_is_damage_and_not_an_old_page(
    tmp_path: Path,
) -> None:
    a_packed_store(tmp_path)
    before = (tmp_path / "index.db").read_bytes()
    index = Index(tmp_path)
    with index.transaction:
        for number in range(400):
            index.xattrs.set(number, b"user.comment", b"changed")
    index.close()
    data = bytearray((tmp_path / "index.db").read_bytes())
    changed = [
        at
        for at in range(4096, len(before), 1024)
        if any(data[at : at + 1024]) and not any(before[at : at + 1024])
    ]
    assert changed
    data[changed[0] : changed[0] + 1024] = bytes(1024)
    (tmp_path / "index.db").write_bytes(data)
    assert damaged_pages(tmp_path / "index.db") == [changed[0] // 1024 + 1]


def test_a_packed_file_of_another_index_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    a_packed_store(one)
    shutil.copytree(one, other)
    index = Index(other)
    pack(index)
    index.close()
    shutil.copy(other / "index.db-packed", one / "index.db-packed")
    with pytest.raises(StoreDamaged, match=r"index\.db-packed is missing, damaged or of another"):
        Index(one)
    with pytest.raises(StoreDamaged):
        Index(one, read_only=True)


def test_an_index_whose_packed_file_is_damaged_is_rebuilt_of_what_can_be_read(
    tmp_path: Path,
) -> None:
    expected = a_packed_store(tmp_path, 4000)
    packed = tmp_path / "index.db-packed"
    flip(packed, packed.stat().st_size // 2, 3)
    assert len(damaged_pages(tmp_path / "index.db")) == 16
    read = rebuild(tmp_path, []).read
    assert sum(read.values()) > len(expected) * 9 / 10
    assert (tmp_path / "index.db.damaged-packed").exists()
    assert not packed.exists()
    index = Index(tmp_path)
    assert index.inconsistencies() == []
    index.close()
