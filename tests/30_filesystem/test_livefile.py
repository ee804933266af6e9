"""Which files are live: one object an inode, for as long as anything needs it."""

from __future__ import annotations

import itertools
import stat

import pytest

from agentfs.model import ROOT_INODE
from fakes.volumes import ROOT, Shell


async def test_a_file_that_is_being_opened_stays_the_one_live_file(shell: Shell) -> None:
    """An earlier close may be told of while it is decided what the opening program writes."""
    table = shell.volume.table
    inode = shell.volume.namespace.create(ROOT_INODE, b"file", stat.S_IFREG | 0o644, ROOT)
    file = table.enliven(inode)
    async with file.opening:
        table.released(file)
        assert table.enliven(inode) is file
    table.released(file)
    assert table.live(inode.id) is None


@pytest.mark.parametrize("is_unlinked", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_a_file_that_was_split_nothing_stays_when_the_kernel_has_forgotten_it(
    shell: Shell, order: tuple[int, ...], is_unlinked: bool
) -> None:
    """Whichever of its nodeids the kernel forgets first."""
    table = shell.volume.table
    inode = shell.volume.namespace.create(ROOT_INODE, b"file", stat.S_IFREG | 0o644, ROOT)
    first = table.enliven(inode)
    second = table.split(first)
    third = table.split(second)
    nodeids = [first.nodeid, second.nodeid, third.nodeid]
    ended = []
    table.watch(moved_back=ended.append)
    table.all_looked_up(nodeids)
    if is_unlinked:
        shell.unlink("/file")
    for which in order:
        table.forget(nodeids[which], 1)
    assert not list(table.files())
    assert not table.has_moved
    assert sorted(ended) == nodeids[1:]
    assert table.nodeid(inode.id) == inode.id
