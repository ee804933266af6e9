"""What a file and a chunk cost in the index, counted over ten thousand of each."""

from __future__ import annotations

import hashlib
import random
import stat
from pathlib import Path

from agentfs.chunks.digest import CHUNK_DIGEST_BYTES
from agentfs.chunks.recipe import encode
from agentfs.index import Index
from agentfs.model import ROOT_INODE, Inode, Kind, NewBlock

COUNT = 10_000
FILE_BYTES_MAX = 250
CHUNK_BYTES_MAX = 75

NOW_NS = 1_795_000_000_000_000_000


def digest(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


def size_of(index: Index) -> int:
    index.checkpoint()
    return index.path.stat().st_size


def agents_name(number: int) -> bytes:
    """As agents name their files: 20 to 30 bytes."""
    kinds = ("call_%s.json", "rollout-%s.jsonl", "msg_01%s.md", "checkpoint-%s.bin")
    return (kinds[number % 4] % digest(number).hex()[:16]).encode()


def add_chunks(index: Index, count: int) -> list[int]:
    """Chunks of 4 KiB in blocks of 1 MiB."""
    rng, ids = random.Random(1), []
    with index.transaction:
        for start in range(0, count, 256):
            chunks = [
                (digest(number)[:CHUNK_DIGEST_BYTES], rng.randrange(1024, 16384))
                for number in range(start, min(start + 256, count))
            ]
            place = 64 + (start // 256) * 150_000
            block = NewBlock(1 + start // 80_000, place, 150_000, chunks)
            ids += index.contents.add_block(block, are_new=False)
    return ids


def add_files(index: Index, chunks: list[int]) -> None:
    """One small file of its own content for each chunk, as agents leave them: some per folder."""
    rng = random.Random(2)
    directory = ROOT_INODE
    for number, chunk in enumerate(chunks):
        with index.transaction:
            if number % 50 == 0:
                directory = index.inodes.allocate()
                index.inodes.insert(an_inode(directory, stat.S_IFDIR | 0o755, rng, ROOT_INODE))
                index.dentries.insert(ROOT_INODE, agents_name(COUNT + number), directory)
            size = rng.randrange(200, 6000)
            recipe, kind = encode([(chunk, size)]), Kind(number % len(Kind))
            content = index.contents.add(digest(COUNT + number), size, recipe, kind)
            inode = an_inode(index.inodes.allocate(), stat.S_IFREG | 0o644, rng, directory)
            index.inodes.insert(inode)
            index.inodes.set_content(inode.id, content, size, None)
            index.dentries.insert(directory, agents_name(number), inode.id)


def an_inode(number: int, mode: int, rng: random.Random, parent: int) -> Inode:
    times = [NOW_NS + rng.randrange(10**15) for _ in range(3)]
    links = 2 if stat.S_ISDIR(mode) else 1
    return Inode(number, mode, 1000, 1000, links, 0, *times, parent=parent)


def test_a_chunk_costs_at_most_75_bytes_indexes_included(tmp_path: Path) -> None:
    index = Index(tmp_path)
    empty = size_of(index)
    chunks = add_chunks(index, COUNT)
    with index.transaction:
        for chunk in chunks:
            index.execute("UPDATE chunk SET refs = 1 WHERE id = ?", (chunk,))
    cost = (size_of(index) - empty) / COUNT
    index.close()
    assert cost <= CHUNK_BYTES_MAX


def test_a_small_file_costs_at_most_250_bytes_inode_name_and_content(tmp_path: Path) -> None:
    index = Index(tmp_path)
    chunks = add_chunks(index, COUNT)
    before = size_of(index)
    add_files(index, chunks)
    cost = (size_of(index) - before) / COUNT
    index.close()
    assert cost <= FILE_BYTES_MAX


def test_a_copy_of_a_file_costs_less_than_a_new_one(tmp_path: Path) -> None:
    index = Index(tmp_path)
    chunks = add_chunks(index, 1000)
    add_files(index, chunks)
    contents = [row[0] for row in index.execute("SELECT id FROM content ORDER BY id")]
    before = size_of(index)
    rng = random.Random(3)
    with index.transaction:
        for number, content in enumerate(contents):
            inode = an_inode(index.inodes.allocate(), stat.S_IFREG | 0o644, rng, ROOT_INODE)
            index.inodes.insert(inode)
            index.contents.reference(content)
            index.inodes.set_content(inode.id, content, 1, None)
            index.dentries.insert(ROOT_INODE, agents_name(number), inode.id)
    cost = (size_of(index) - before) / len(contents)
    index.close()
    assert cost <= 140
