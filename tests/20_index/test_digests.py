"""A content that is one chunk shares half of its digest with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.chunks.recipe import encode
from agentfs.index import Index
from agentfs.index.mend import mend
from agentfs.model import NewBlock

ONE, OTHER = bytes(range(32)), bytes(range(100, 132))
SAME_END = bytes(16) + ONE[16:]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path)
    yield index
    index.close()


def add(index: Index, *digests: bytes) -> list[int]:
    """A content of each digest; if the digest's first half is that of a chunk, of this one."""
    contents = []
    for digest in digests:
        with index.transaction:
            block = NewBlock(1, 32 + 100 * len(contents), 90, [(digest[:16], 500)])
            ids = index.contents.add_block(block, are_new=False)
            contents.append(index.contents.add(digest, 500, encode([(ids[0], 500)])))
    return contents


def kept(index: Index, content: int) -> bytes:
    digest: bytes = index.execute("SELECT digest FROM content WHERE id = ?", (content,)).fetchone()[
        0
    ]
    return digest


def test_half_is_kept_and_all_is_found(index: Index) -> None:
    one, other = add(index, ONE, OTHER)
    assert kept(index, one) == ONE[16:]
    assert index.contents.find(ONE) == one
    assert index.contents.find_whole({ONE, OTHER, SAME_END}) == {ONE, OTHER}
    assert index.contents.get(other)[0] == OTHER
    assert index.contents.digests_after(0, 9) == [(one, ONE), (other, OTHER)]


def test_a_content_that_ends_alike_is_another_one(index: Index) -> None:
    (one,) = add(index, ONE)
    assert index.contents.find(SAME_END) is None
    assert index.contents.find_whole({SAME_END}) == set()
    (same_end,) = add(index, SAME_END)
    assert index.contents.find(SAME_END) == same_end
    assert index.contents.find(ONE) == one


def test_all_is_kept_of_others(index: Index) -> None:
    with index.transaction:
        chunks = [(ONE[:16], 500), (OTHER[:16], 600)]
        ids = index.contents.add_block(NewBlock(1, 32, 90, chunks), are_new=True)
        two = index.contents.add(ONE, 1100, encode([(ids[0], 500), (ids[1], 600)]))
        sparse = index.contents.add(OTHER, 1500, encode([(None, 500), (ids[0], 500)]))
        empty = index.contents.add(SAME_END, 0, b"")
    assert [kept(index, content) for content in (two, sparse, empty)] == [ONE, OTHER, SAME_END]
    assert index.contents.find(ONE) == two


def first_chunk(index: Index, content: int) -> int:
    return int.from_bytes(index.contents.get(content)[2][:4], "little")


def test_one_that_gets_other_chunks_keeps_its_digest(index: Index) -> None:
    one, other, third = add(index, ONE, OTHER, SAME_END)
    with index.transaction:
        index.contents.rewrite(one, ONE, encode([(first_chunk(index, other), 500)]))
        index.contents.condemn(third)
    assert index.contents.find(ONE) == one
    assert index.contents.find(SAME_END) == third
    assert index.contents.get(one)[0] == ONE


def test_one_whose_chunk_is_lost_is_found_and_whole_when_it_is_written_again(index: Index) -> None:
    one, other = add(index, ONE, OTHER)
    with index.transaction:
        index.execute("DELETE FROM chunk WHERE id = ?", (first_chunk(index, one),))
        mend(index)
    assert index.contents.is_damaged(one)
    assert index.contents.find(ONE) == one
    assert index.contents.find_whole({ONE, OTHER}) == {OTHER}
    with index.transaction:
        index.contents.rewrite(one, ONE, encode([(first_chunk(index, other), 500)]))
    assert index.contents.get(one)[0] == ONE
    assert index.contents.find_whole({ONE}) == {ONE}


def test_contents_of_before_are_found(index: Index) -> None:
    (one,) = add(index, ONE)
    with index.transaction:
        index.contents.set_digests({}, {one: ONE})
    assert kept(index, one) == ONE
    assert index.contents.find(ONE) == one
    assert index.contents.find_whole({ONE}) == {ONE}
