"""Inodes that are kept in memory are what their rows say."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentfs.index import Index
from agentfs.index.inodes import Inodes
from agentfs.model import ROOT_INODE, Inode

FILE, DIRECTORY = 2, 3
CONTENT = 1


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path)
    for number, mode in ((FILE, stat.S_IFREG), (DIRECTORY, stat.S_IFDIR)):
        inode = Inode(number, mode | 0o600, 0, 0, 1, 0, 11, 12, 13, parent=ROOT_INODE)
        index.inodes.insert(inode)
    yield index
    index.close()


def rows(index: Index) -> list[Inode]:
    """As another program sees them."""
    columns = "id, mode, uid, gid, nlink, size, atime, mtime, ctime, content, holes, rdev, target"
    found = index.execute(f"SELECT {columns}, parent FROM inode ORDER BY id").fetchall()
    return [Inode(*row) for row in found]


def kept(index: Index) -> list[Inode]:
    found = (index.inodes.get(number) for number in (ROOT_INODE, FILE, DIRECTORY))
    return [inode for inode in found if inode is not None]


def changed(inode: Inode) -> Inode:
    inode.mode, inode.uid, inode.gid = stat.S_IFREG | 0o755, 7, 8
    inode.atime_ns, inode.mtime_ns, inode.ctime_ns = 21, 22, 23
    return inode


CHANGES: dict[str, Callable[[Inodes, Inode], object]] = {
    "update_attributes": lambda inodes, file: inodes.update_attributes(changed(file)),
    "set_sealed": lambda inodes, file: inodes.set_sealed(changed(file), CONTENT, 5, 1),
    "set_atime": lambda inodes, file: inodes.set_atime(FILE, 31),
    "set_content": lambda inodes, file: inodes.set_content(FILE, CONTENT, 5, None),
    "set_times": lambda inodes, file: inodes.set_times(FILE, 41, 42),
    "set_links": lambda inodes, file: inodes.set_links(FILE, 2, 43),
    "add_links": lambda inodes, file: inodes.add_links({FILE: 1, DIRECTORY: 2}),
    "drop_links": lambda inodes, file: inodes.drop_links([FILE, DIRECTORY]),
    "set_parent": lambda inodes, file: inodes.set_parent(FILE, DIRECTORY),
    "touch_directory": lambda inodes, file: inodes.touch_directory(DIRECTORY, 51, 1),
    "delete": lambda inodes, file: inodes.delete(FILE),
}


def test_each_way_to_change_a_row_is_tried_here() -> None:
    reads = {"allocate", "skip_to", "get", "keep", "insert", "insert_all", "used_since"}
    reads |= {"last", "let_go", "unlinked"}
    assert {name for name in vars(Inodes) if not name.startswith("_")} == reads | set(CHANGES)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_follows_each_change(
    index: Index, change: Callable[[Inodes, Inode], object]
) -> None:
    before = kept(index)
    assert before == rows(index)
    file = index.inodes.get(FILE)
    assert file is not None
    change(index.inodes, file)
    assert kept(index) == rows(index) != before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_rolled_back_leaves_nothing_in_memory(
    index: Index, change: Callable[[Inodes, Inode], object]
) -> None:
    before = rows(index)
    file = index.inodes.get(FILE)
    assert file is not None
    with pytest.raises(InterruptedError), index.transaction:
        change(index.inodes, file)
        kept(index)
        raise InterruptedError
    assert kept(index) == rows(index) == before


def test_an_inode_that_was_not_inserted_after_all_is_not_there(index: Index) -> None:
    with pytest.raises(InterruptedError), index.transaction:
        index.inodes.insert(Inode(9, stat.S_IFREG, 0, 0, 1, 0, 1, 1, 1))
        raise InterruptedError
    assert index.inodes.get(9) is None


def test_each_reader_has_an_inode_of_its_own(index: Index) -> None:
    """Whoever has a file open changes its inode long before its row."""
    first = index.inodes.get(FILE)
    assert first is not None
    first.size = 99
    assert kept(index) == rows(index)


def test_a_name_leads_to_the_row_as_it_is_now(index: Index) -> None:
    index.dentries.insert(ROOT_INODE, b"name", FILE)
    assert index.dentries.lookup(ROOT_INODE, b"name") == index.inodes.get(FILE)
    index.inodes.set_links(FILE, 3, 61)
    found = index.dentries.lookup(ROOT_INODE, b"name")
    assert found is not None
    assert found.nlink == 3
    assert index.inodes.get(FILE) == found


def test_more_inodes_than_are_kept(index: Index) -> None:
    for number in range(10, 10_000):
        index.inodes.insert(Inode(number, stat.S_IFREG, 0, 0, 1, number, 1, 1, 1))
    for number in range(10, 10_000):
        inode = index.inodes.get(number)
        assert inode is not None
        assert inode.size == number
