"""Counts every reference of an index anew, the slow way, to check the counts it keeps."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

from agentfs.chunks.recipe import Recipe
from agentfs.index import Index


def miscounts(index: Index) -> list[str]:
    """What is wrong with an index, a sentence each; empty: nothing."""
    return [
        *_wrong_counts(index),
        *_dangling(index),
        *_wrong_recipes(index),
    ]


def _wrong_counts(index: Index) -> Iterator[str]:
    contents = Counter(
        row[0] for row in index.execute("SELECT content FROM inode WHERE content IS NOT NULL")
    )
    for content, refs in index.execute("SELECT id, refs FROM content"):
        if refs != contents.pop(content, 0):
            yield f"content {content} counts {refs} references"
    yield from (f"content {content} is named but not there" for content in contents)

    chunks: Counter[int] = Counter()
    for (recipe,) in index.execute("SELECT recipe FROM content"):
        chunks.update(Recipe(b"", 0, recipe).chunks)
    for chunk, refs in index.execute("SELECT id, refs FROM chunk"):
        if refs != chunks.pop(chunk, 0):
            yield f"chunk {chunk} counts {refs} references"
    yield from (f"chunk {chunk} is named but not there" for chunk in chunks)

    live: Counter[int] = Counter()
    for block, length in index.execute("SELECT block, length FROM chunk"):
        live[block] += length
    for block, counted in index.execute("SELECT id, live FROM block"):
        if counted != live.pop(block, 0):
            yield f"block {block} counts {counted} live bytes"
    yield from (f"block {block} is named but not there" for block in live)

    for inode, nlink, names in index.execute(
        "SELECT id, nlink, (SELECT count(*) FROM dentry WHERE dentry.inode = inode.id) FROM inode"
        " WHERE (mode & 61440) <> 16384"  # a directory's links count its subdirectories
    ):
        if nlink != names:
            yield f"inode {inode} counts {nlink} links, has {names} names"
    for inode, nlink, below in index.execute(
        "SELECT id, nlink, (SELECT count(*) FROM inode AS sub JOIN dentry ON dentry.inode = sub.id"
        " WHERE dentry.parent = inode.id AND (sub.mode & 61440) = 16384) FROM inode"
        " WHERE (mode & 61440) = 16384 AND nlink > 0"
    ):
        if nlink != below + 2:
            yield f"directory {inode} counts {nlink} links, has {below} subdirectories"


def _dangling(index: Index) -> Iterator[str]:
    for parent, name in index.execute(
        "SELECT parent, name FROM dentry WHERE inode NOT IN (SELECT id FROM inode)"
        " OR parent NOT IN (SELECT id FROM inode)"
    ):
        yield f"name {name!r} in {parent} leads nowhere, or lies nowhere"
    for (inode,) in index.execute(
        "SELECT DISTINCT inode FROM xattr WHERE inode NOT IN (SELECT id FROM inode)"
    ):
        yield f"extended attributes of {inode}, which is not there"
    for inode, parent in index.execute(
        "SELECT inode.id, inode.parent FROM inode JOIN dentry ON dentry.inode = inode.id"
        " WHERE (mode & 61440) = 16384 AND inode.parent <> dentry.parent"
    ):
        yield f"directory {inode} says it is in {parent}"


def _wrong_recipes(index: Index) -> Iterator[str]:
    lengths = dict(index.execute("SELECT id, length FROM chunk"))
    for content, size, encoded in index.execute("SELECT id, size, recipe FROM content"):
        total = 0
        for chunk, length in decoded(encoded):
            total += length
            if chunk is not None and lengths.get(chunk) != length:
                yield f"content {content} takes {length} bytes of chunk {chunk}"
        if total != size:
            yield f"content {content} has {size} bytes, its recipe {total}"
    for inode, size, stated in index.execute(
        "SELECT inode.id, inode.size, content.size FROM inode"
        " JOIN content ON content.id = inode.content WHERE inode.size <> content.size"
    ):
        yield f"inode {inode} has {size} bytes, its content {stated}"


def decoded(encoded: bytes) -> Iterator[tuple[int | None, int]]:
    """(chunk or None for a hole, length in bytes), as agentfs/chunks/recipe.py describes it."""
    for number, length in struct.iter_unpack("<II", encoded):
        if number == 0:
            yield None, length
        elif number == 1:
            yield None, length << 30
        else:
            yield number, length
