"""The rows of an index come back from a copy of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.chunks.recipe import encode
from agentfs.index import Index, dump
from agentfs.model import ROOT_INODE, Inode, Kind, NewBlock

SECOND_NS = 1_000_000_000
GIB = 1 << 30


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path)
    with index.transaction:
        chunks = [(bytes([number]) * 16, 1000 + number) for number in range(40)]
        ids = index.contents.add_block(NewBlock(1, 32, 9000, chunks), are_new=True)
        lengths = dict(zip(ids, (length for _, length in chunks), strict=True))
        for number in range(20):
            parts: list[tuple[int | None, int]] = [(ids[number], lengths[ids[number]])]
            if number % 3 == 0:
                parts += [(None, 5 * GIB + 7), (ids[2 * number], lengths[ids[2 * number]])]
            if number == 9:
                parts = []
            size = sum(length for _, length in parts)
            content = index.contents.add(
                bytes([number + 1]) * 32, size, encode(parts), Kind(number % len(Kind))
            )
            inode = index.inodes.allocate()
            now = 1_795_000_000_000_000_000 + number * 777_777_777
            times = (now + number * SECOND_NS // 3, now, now + number)
            index.inodes.insert(Inode(inode, 0o100644, 1, 2, 1, 0, *times, parent=ROOT_INODE))
            index.inodes.set_content(inode, content, size, None)
            index.dentries.insert(ROOT_INODE, b"file-%d" % number, inode)
        index.inodes.insert(
            Inode(index.inodes.allocate(), 0o120777, 1, 2, 1, 6, 0, 0, 0, target=b"target")
        )
    yield index
    index.close()


def read(batches: Iterator[bytes]) -> dict[str, list[dump.Row]]:
    reader = dump.Reader()
    found: dict[str, list[dump.Row]] = {}
    for batch in batches:
        table, rows = reader.read(batch)
        found.setdefault(table, []).extend(rows)
    return found


def test_rows_are_what_they_were_but_for_what_is_counted_and_computed(index: Index) -> None:
    found = read(dump.batches(index))
    for table, query in {
        "inode": "SELECT id, mode, uid, gid, nlink, size, mtime + (atime - mtime) / 1000000000"
        " * 1000000000, mtime, ctime, content, holes, rdev, target, parent FROM inode",
        "dentry": "SELECT * FROM dentry",
        "content": "SELECT id, CAST(zeroblob(16) || substr(digest, -16, 4) || zeroblob(12)"
        " AS BLOB), size, recipe, 0, kind, domain FROM content",
        "chunk": "SELECT id, zeroblob(16), block, start, length, 0, domain FROM chunk",
    }.items():
        assert found[table] == index.execute(query).fetchall(), table


def test_lengths_and_sizes_that_follow_from_those_of_chunks_are_not_written_again(
    index: Index,
) -> None:
    (contents,) = (batch for batch in dump.batches(index) if batch[0] == 8)
    recipes = array("I", b"".join(row[0] for row in index.execute("SELECT recipe FROM content")))
    assert len(contents) < len(recipes) * 4 + 20 * 8


def test_of_a_restored_digest_what_is_known_has_to_agree() -> None:
    digest, other = bytes(range(1, 33)), bytes(range(2, 34))
    for known in (
        digest,
        digest[:8] + bytes(24),
        bytes(16) + digest[16:20] + bytes(12),
        bytes(16) + digest[16:],
        digest[:16] + digest[16:20] + bytes(12),
    ):
        assert dump.agrees(known, digest)
        assert not dump.agrees(known, other)
    assert dump.agrees(bytes(32), digest), "nothing is known of it"
    assert not dump.agrees(digest[:16] + other[16:], digest)
