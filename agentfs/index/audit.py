"""Whether the rows of an index agree with each other: every reference is counted anew."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from agentfs.index.connection import IndexConnection
from agentfs.index.contents import chunk_ids, recipe_parts
from agentfs.index.runs import unpack_runs
from agentfs.model import ROOT_INODE

_DIRECTORY = "(mode & 61440) = 16384"  # S_IFMT, S_IFDIR


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    text: str
    """A sentence."""
    inode: int | None = None
    content: int | None = None
    """Whose bytes it concerns."""


def findings(index: IndexConnection) -> Iterator[Finding]:
    """What is wrong with the rows of an index; nothing: they agree."""
    yield from _wrong_counts(index)
    yield from _wrong_links(index)
    yield from _dangling(index)
    yield from _unreachable(index)
    yield from _wrong_recipes(index)
    yield from _wrong_places(index)
    yield from _wrong_lists(index)


def segment_findings(index: IndexConnection, sizes: Mapping[int, int]) -> Iterator[Finding]:
    """Blocks that reach beyond their segments, which have these sizes in bytes."""
    for segment, end in index.execute(
        "SELECT segment, max(offset + stored) FROM block WHERE live > 0 GROUP BY segment"
    ):
        if segment not in sizes:
            yield Finding(f"segment {segment} is missing")
        elif end > sizes[segment]:
            yield Finding(f"segment {segment} ends at {sizes[segment]}, its blocks at {end}")


def _wrong_counts(index: IndexConnection) -> Iterator[Finding]:
    contents = Counter(
        row[0] for row in index.execute("SELECT content FROM inode WHERE content IS NOT NULL")
    )
    for content, refs in index.execute("SELECT id, refs FROM content"):
        if refs != contents.pop(content, 0):
            yield Finding(f"content {content} counts {refs} references")
    for content in contents:
        yield Finding(f"content {content} is named but not there", content=content)

    chunks: Counter[int] = Counter()
    for (recipe,) in index.execute("SELECT recipe FROM content"):
        chunks.update(chunk_ids(recipe))
    for chunk, refs in index.execute("SELECT id, refs FROM chunk"):
        if refs != chunks.pop(chunk, 0):
            yield Finding(f"chunk {chunk} counts {refs} references")
    yield from (Finding(f"chunk {chunk} is named but not there") for chunk in chunks)

    live: Counter[int] = Counter()
    for block, length in index.execute("SELECT block, length FROM chunk WHERE block <> 0"):
        live[block] += length
    for block, counted in index.execute("SELECT id, live FROM block"):
        if counted != live.pop(block, 0):
            yield Finding(f"block {block} counts {counted} live bytes")
    yield from (Finding(f"block {block} is named but not there") for block in live)


def _wrong_links(index: IndexConnection) -> Iterator[Finding]:
    names = Counter(row[0] for row in index.execute("SELECT inode FROM dentry"))
    for inode, nlink in index.execute(
        f"SELECT id, nlink FROM inode WHERE NOT {_DIRECTORY}"  # whose links count subdirectories
    ):
        if nlink != names[inode]:
            yield Finding(f"inode {inode} counts {nlink} links, has {names[inode]} names", inode)
    below = Counter(
        row[0]
        for row in index.execute(
            f"SELECT dentry.parent FROM dentry JOIN inode ON inode.id = dentry.inode"
            f" WHERE {_DIRECTORY}"
        )
    )
    for inode, nlink in index.execute(
        f"SELECT id, nlink FROM inode WHERE {_DIRECTORY} AND nlink > 0"
    ):
        if nlink != below[inode] + 2:
            yield Finding(
                f"directory {inode} counts {nlink} links, has {below[inode]} subdirectories", inode
            )


def _dangling(index: IndexConnection) -> Iterator[Finding]:
    for parent, name, inode in index.execute(
        "SELECT parent, name, inode FROM dentry WHERE inode NOT IN (SELECT id FROM inode)"
        f" OR parent NOT IN (SELECT id FROM inode WHERE {_DIRECTORY})"
    ):
        yield Finding(f"name {name!r} in {parent} leads nowhere, or lies nowhere", inode)
    for (inode,) in index.execute(
        "SELECT DISTINCT inode FROM xattr WHERE inode NOT IN (SELECT id FROM inode)"
    ):
        yield Finding(f"extended attributes of {inode}, which is not there")
    for inode, parent in index.execute(
        "SELECT inode.id, inode.parent FROM inode JOIN dentry ON dentry.inode = inode.id"
        f" WHERE {_DIRECTORY} AND inode.parent IS NOT dentry.parent"
    ):
        yield Finding(f"directory {inode} says it is in {parent}", inode)
    for parent, name in index.execute(
        "SELECT parent, name FROM dentry WHERE length(name) NOT BETWEEN 1 AND 255"
        " OR instr(name, x'2f') OR instr(name, x'00') OR name IN (x'2e', x'2e2e')"
    ):
        yield Finding(f"name {name!r} in {parent} is none that a file can have", parent)


def unreachable_directories(index: IndexConnection) -> set[int]:
    """Directories that no path from the root leads to; cycles are among them."""
    everywhere = {
        row[0] for row in index.execute(f"SELECT id FROM inode WHERE {_DIRECTORY} AND nlink > 0")
    }
    below: dict[int, list[int]] = {}
    for parent, inode in index.execute(
        f"SELECT dentry.parent, id FROM inode JOIN dentry ON dentry.inode = id WHERE {_DIRECTORY}"
    ):
        below.setdefault(parent, []).append(inode)
    pending = [ROOT_INODE]
    while pending:
        directory = pending.pop()
        if directory in everywhere:
            everywhere.remove(directory)
            pending.extend(below.get(directory, ()))
    return everywhere


def _unreachable(index: IndexConnection) -> Iterator[Finding]:
    if index.execute("SELECT 1 FROM inode WHERE id = ?", (ROOT_INODE,)).fetchone() is None:
        yield Finding("there is no root directory")
    for inode in sorted(unreachable_directories(index)):
        yield Finding(f"directory {inode} cannot be reached from the root", inode)


def _wrong_recipes(index: IndexConnection) -> Iterator[Finding]:
    lengths = dict(index.execute("SELECT id, length FROM chunk"))
    for content, size, encoded in index.execute("SELECT id, size, recipe FROM content"):
        yield from (Finding(text, content=content) for text in _wrong(encoded, size, lengths))
    for inode, size, stated in index.execute(
        "SELECT inode.id, inode.size, content.size FROM inode"
        " JOIN content ON content.id = inode.content WHERE inode.size <> content.size"
    ):
        yield Finding(f"inode {inode} has {size} bytes, its content {stated}", inode)


def _wrong(recipe: bytes, size: int, lengths: Mapping[int, int]) -> Iterator[str]:
    try:
        parts = list(recipe_parts(recipe))
    except struct.error:
        yield "a recipe ends in the middle"
        return
    for chunk, length in parts:
        if chunk is not None and lengths.get(chunk) != length:
            yield f"a recipe takes {length} bytes of chunk {chunk}, which has {lengths.get(chunk)}"
    total = sum(length for _, length in parts)
    if total != size:
        yield f"a content has {size} bytes, its recipe {total}"


def _wrong_places(index: IndexConnection) -> Iterator[Finding]:
    for chunk, block in index.execute(
        "SELECT chunk.id, block.id FROM chunk JOIN block ON block.id = chunk.block"
        " WHERE chunk.start + chunk.length > block.raw OR chunk.start < 0"
    ):
        yield Finding(f"chunk {chunk} reaches beyond block {block}")


def _wrong_lists(index: IndexConnection) -> Iterator[Finding]:
    """Blocks that do not list a chunk of theirs: it would be lost with its segment."""
    held: dict[int, list[int]] = {}
    for block, chunk in index.execute("SELECT block, id FROM chunk ORDER BY id"):
        held.setdefault(block, []).append(chunk)
    for block, encoded in index.execute("SELECT id, chunks FROM block"):
        try:
            runs = list(unpack_runs(encoded))
        except (TypeError, ValueError):
            yield Finding(f"the list of chunks of block {block} cannot be read")
            continue
        starts = [first for first, _ in runs]
        for chunk in held.get(block, ()):
            run = bisect_right(starts, chunk) - 1
            if run < 0 or chunk > runs[run][1]:
                yield Finding(f"block {block} does not list its chunk {chunk}")


def paths_of(index: IndexConnection, inodes: Collection[int]) -> dict[int, list[bytes]]:
    """Every path, from the root on, of each inode; none: it is unlinked, or cannot be reached."""
    directories = {
        inode: (parent, name)
        for parent, name, inode in index.execute(
            "SELECT dentry.parent, name, inode FROM dentry JOIN inode ON inode.id = dentry.inode"
            f" WHERE {_DIRECTORY}"
        )
    }
    found: dict[int, list[bytes]] = {}
    for parent, name, inode in index.execute("SELECT parent, name, inode FROM dentry"):
        if inode in inodes:
            above = _path(directories, parent)
            if above is not None:
                found.setdefault(inode, []).append(above + b"/" + name)
    return found


def _path(directories: Mapping[int, tuple[int, bytes]], directory: int) -> bytes | None:
    names: list[bytes] = []
    while directory != ROOT_INODE:
        if directory not in directories or len(names) > len(directories):  # a cycle
            return None
        directory, name = directories[directory]
        names.append(name)
    return b"".join(b"/" + name for name in reversed(names))
