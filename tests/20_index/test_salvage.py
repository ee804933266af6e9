"""An index that was never migrated is rebuilt as one of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentfs.index import Index, connection, dump, salvage, schema
from agentfs.index.runs import pack_runs
from agentfs.model import ROOT_INODE
from fakes.recount import miscounts

BLOCKS = 5
"""The table's number in a copy: docs/FORMAT.md."""


def make_an_index_of_before_packing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        known = schema.migrations._migrations
        before.setattr(schema.migrations, "_migrations", [m for m in known if m.name != "packing"])
        index = connection.IndexConnection(directory)
        index.execute("INSERT INTO block VALUES (1, 1, 32, 900, 1000, 1000)")
        for chunk in (2, 3):
            values = (chunk, bytes([chunk]) * 32, (chunk - 2) * 500)
            index.execute("INSERT INTO chunk VALUES (?, ?, 1, ?, 500, 1, NULL)", values)
        recipe = b"".join(n.to_bytes(4, "little") for n in (2, 500, 3, 500))
        content = (1, b"c" * 32, 1000, recipe, 1, None, None)
        index.execute("INSERT INTO content VALUES (?, ?, ?, ?, ?, ?, ?)", content)
        index.execute(
            "INSERT INTO inode VALUES (2, 33188, 0, 0, 1, 1000, 0, 0, 0, 1, NULL, NULL, NULL, NULL)"
        )
        index.execute("INSERT INTO dentry VALUES (?, ?, 2)", (ROOT_INODE, b"file"))
        index.close()


def test_an_index_of_before_packing_is_rebuilt_with_lists_and_short_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_an_index_of_before_packing(tmp_path, monkeypatch)
    read = salvage.rebuild(tmp_path, []).read
    assert (read["block"], read["chunk"]) == (1, 2)
    index = Index(tmp_path)
    assert index.contents.find_chunk(bytes([3]) * 16) == 3
    (block,) = index.contents.blocks_in(1)
    assert [chunk.id for chunk in index.contents.chunks_of(block)] == [2, 3]
    assert miscounts(index) == []
    index.close()


def test_a_copy_without_the_column_of_compaction_is_read(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.execute("INSERT INTO block VALUES (1, 1, 32, 900, 1000, 0, ?, 1)", (pack_runs([]),))
    (batch,) = (b for b in dump.batches(index) if b[0] == BLOCKS)
    index.close()
    assert dump.Reader().read(batch) == ("block", [(1, 1, 32, 900, 1000, 0, b"", 1)])
    without = batch[: -len(b"\2\0\0\0b\1")]  # its size, the width, and a 1
    assert dump.Reader().read(without) == ("block", [(1, 1, 32, 900, 1000, 0, b"", None)])
