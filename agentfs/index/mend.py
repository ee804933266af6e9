"""Rows that contradict each other, made to agree without inventing anything.

What a row names and is not there becomes something that is there and lost: a chunk in no block, a
content of such chunks. Files whose names are gone get one in /lost+found. Counts are made anew.
"""

from __future__ import annotations

import stat
import struct
import time
from collections import Counter
from collections.abc import Iterator

from agentfs.index import Index
from agentfs.index.audit import unreachable_directories
from agentfs.index.contents import NO_BLOCK, UNKNOWN_CONTENT_DIGEST, chunk_ids, recipe_parts
from agentfs.index.runs import list_chunks
from agentfs.model import ROOT_INODE

LOST_AND_FOUND = b"lost+found"

_DIRECTORY = "(mode & 61440) = 16384"  # S_IFMT, S_IFDIR
_BAD_NAME = (
    "length(name) NOT BETWEEN 1 AND 255 OR instr(name, x'2f') OR instr(name, x'00')"
    " OR name IN (x'2e', x'2e2e')"
)


def mend(index: Index) -> list[str]:
    """Make all rows agree; what was done beyond counting, a sentence each. In a transaction."""
    done = [
        *_mend_root(index),
        *_mend_names(index),
        *_mend_contents(index),
        *_mend_places(index),
        *_find_lost(index),
    ]
    recount(index)
    return done


def recount(index: Index) -> None:
    """Count every reference anew."""
    execute, many = index.execute, index.executemany
    execute("UPDATE content SET refs = 0 WHERE refs <> 0")
    execute(
        "UPDATE content SET refs = named.count FROM"
        " (SELECT content, count(*) AS count FROM inode WHERE content IS NOT NULL"
        "  GROUP BY content) AS named WHERE named.content = content.id"
    )
    chunks: Counter[int] = Counter()
    for (recipe,) in execute("SELECT recipe FROM content"):
        chunks.update(chunk_ids(recipe))
    execute("UPDATE chunk SET refs = 0 WHERE refs <> 0")
    many("UPDATE chunk SET refs = ? WHERE id = ?", ((n, chunk) for chunk, n in chunks.items()))
    execute("UPDATE block SET live = 0 WHERE live <> 0")
    execute(
        "UPDATE block SET live = held.bytes FROM"
        " (SELECT block, sum(length) AS bytes FROM chunk GROUP BY block) AS held"
        " WHERE held.block = block.id"
    )
    names = Counter(row[0] for row in execute("SELECT inode FROM dentry"))
    below = Counter(
        row[0]
        for row in execute(
            "SELECT dentry.parent FROM dentry JOIN inode ON inode.id = dentry.inode"
            f" WHERE {_DIRECTORY}"
        )
    )
    links = []
    for inode, mode, nlink in execute("SELECT id, mode, nlink FROM inode"):
        is_named = names[inode] or inode == ROOT_INODE
        right = (2 + below[inode] if is_named else 0) if stat.S_ISDIR(mode) else names[inode]
        if right != nlink:
            links.append((right, inode))
    many("UPDATE inode SET nlink = ? WHERE id = ?", links)


def _mend_root(index: Index) -> Iterator[str]:
    root = index.inodes.get(ROOT_INODE)
    if root is not None and root.is_directory:
        return
    index.execute("DELETE FROM inode WHERE id = ?", (ROOT_INODE,))
    _insert_directory(index, ROOT_INODE, ROOT_INODE)
    yield "the root directory was lost; it has default permissions now"


def _insert_directory(index: Index, inode: int, parent: int) -> None:
    index.execute(
        "INSERT INTO inode VALUES (?1, ?2, 0, 0, 2, 0, ?3, ?3, ?3, NULL, NULL, NULL, NULL, ?4)",
        (inode, stat.S_IFDIR | 0o755, time.time_ns(), parent),
    )


def _mend_names(index: Index) -> Iterator[str]:
    execute = index.execute
    execute("DELETE FROM xattr WHERE inode NOT IN (SELECT id FROM inode)")
    for parent, name in execute(
        "DELETE FROM dentry WHERE inode NOT IN (SELECT id FROM inode) RETURNING parent, name"
    ).fetchall():
        yield f"the file {name!r} in directory {parent} is lost: only its name was left"
    execute(
        "DELETE FROM dentry WHERE parent NOT IN"
        f" (SELECT id FROM inode WHERE {_DIRECTORY}) OR {_BAD_NAME}"
    )
    execute(  # a directory has one name
        f"DELETE FROM dentry WHERE inode IN (SELECT id FROM inode WHERE {_DIRECTORY})"
        " AND (parent, name) NOT IN (SELECT parent, min(name) FROM dentry AS first"
        "  WHERE first.inode = dentry.inode AND first.parent ="
        "   (SELECT min(parent) FROM dentry AS lowest WHERE lowest.inode = dentry.inode))"
    )
    _set_parents(index)


def _set_parents(index: Index) -> None:
    index.execute(
        "UPDATE inode SET parent = dentry.parent FROM dentry WHERE dentry.inode = inode.id"
        " AND inode.parent IS NOT dentry.parent"
    )


def _mend_contents(index: Index) -> Iterator[str]:
    execute = index.execute
    for content, size in execute(
        "SELECT content, max(size) FROM inode WHERE content IS NOT NULL"
        " AND content NOT IN (SELECT id FROM content) GROUP BY content"
    ).fetchall():
        execute(
            "INSERT INTO content VALUES (?, ?, ?, x'', 0, NULL, NULL)",
            (content, UNKNOWN_CONTENT_DIGEST, size),
        )
        index.contents.condemn(content)
        yield f"content {content} is lost: {size} bytes"
    lengths = dict(execute("SELECT id, length FROM chunk"))
    for content, size, recipe in execute("SELECT id, size, recipe FROM content").fetchall():
        try:
            parts = list(recipe_parts(recipe))
        except struct.error:
            parts = []
        for chunk, length in parts:
            if chunk is not None and chunk not in lengths:
                index.contents.add_lost_chunk(chunk, length)
                lengths[chunk] = length
        agrees = all(chunk is None or lengths[chunk] == length for chunk, length in parts)
        if not agrees or sum(length for _, length in parts) != size:
            index.contents.condemn(content)
            yield f"content {content} is lost: its recipe does not add up"
    execute(
        "UPDATE inode SET size = content.size FROM content"
        " WHERE content.id = inode.content AND inode.size <> content.size"
    )


def _mend_places(index: Index) -> Iterator[str]:
    lost = index.execute(
        "UPDATE chunk SET block = ?1, start = 0 WHERE block <> ?1 AND NOT EXISTS (SELECT 1 FROM"
        " block WHERE block.id = chunk.block AND start >= 0 AND start + length <= block.raw)",
        (NO_BLOCK,),
    ).rowcount
    if lost:
        yield f"{lost} chunks are lost: where they were is not known"
    index.execute(
        "DELETE FROM damaged WHERE block <> ? AND block NOT IN (SELECT id FROM block)", (NO_BLOCK,)
    )
    list_chunks(index.execute)
    index.contents.note_lost_chunks()


def _find_lost(index: Index) -> Iterator[str]:
    execute = index.execute
    nameless = [
        row[0]
        for row in execute(
            "SELECT id FROM inode WHERE nlink > 0 AND id <> ?"
            " AND id NOT IN (SELECT inode FROM dentry)",
            (ROOT_INODE,),
        )
    ]
    for inode in nameless:
        yield from _adopt(index, inode)
    while unreached := unreachable_directories(index):  # a cycle: it is cut at one of them
        inode = min(unreached)
        execute("DELETE FROM dentry WHERE inode = ?", (inode,))
        yield from _adopt(index, inode)


def _adopt(index: Index, inode: int) -> Iterator[str]:
    directory = _lost_and_found(index)
    name = b"%d" % inode
    index.dentries.point(directory, name, inode)
    _set_parents(index)
    yield f"inode {inode} has no name any more; it is /{LOST_AND_FOUND.decode()}/{inode} now"


def _lost_and_found(index: Index) -> int:
    there = index.dentries.lookup(ROOT_INODE, LOST_AND_FOUND)
    if there is not None and there.is_directory:
        return there.id
    inode = index.inodes.allocate()
    _insert_directory(index, inode, ROOT_INODE)
    index.dentries.point(ROOT_INODE, LOST_AND_FOUND, inode)
    return inode
