"""Which files are live: one object an inode, for as long as anything needs it."""

from __future__ import annotations

import stat

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
