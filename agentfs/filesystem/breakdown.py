"""Where the bytes are: every file counted under its agent and its kind."""

from __future__ import annotations

import os
from collections.abc import Callable

from agentfs.filesystem.description import Describer
from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.namespace import Namespace
from agentfs.filesystem.turns import Turns
from agentfs.index import Index
from agentfs.model import ROOT_INODE, Holding, Inode

_BATCH = 128
_PACKED_SHARE = 0.5
"""A content is cold from here on."""

Progress = Callable[[int, int], None]


class Breakdown:
    """One walk through all names: some 20 us a file, and 3 us a chunk of each content."""

    def __init__(
        self, index: Index, table: InodeTable, namespace: Namespace, describer: Describer
    ) -> None:
        self._contents = index.contents
        self._table = table
        self._namespace = namespace
        self._describer = describer
        self._holdings: dict[tuple[bytes | None, str], Holding] = {}
        self._linked: set[int] = set()
        """Files with several names that are counted."""
        self._costs: dict[int, tuple[float, bool]] = {}
        """By content: what a file of it takes on disk, and whether it is cold."""

    async def count(self, progress: Progress) -> list[Holding]:
        """Lets others have turns: what changes meanwhile may be in it or not."""
        turns, files = Turns(), 0
        ways = [[self._table.get(ROOT_INODE)]]
        while ways:
            way = ways.pop()
            agent = self._describer.agent(way)
            after = b""
            while rows := self._namespace.rows_after(way[-1].id, after, _BATCH):
                for row in rows:
                    inode = self._namespace.inode_of(row)
                    if inode.is_directory:
                        ways.append([*way, inode])
                    elif inode.is_regular and self._is_first(inode):
                        kind = self._describer.kind(inode, way, row[-1]).label
                        self._add(self._holding(agent, kind), inode)
                        files += 1
                    after = row[-1]
                progress(files, 0)
                await turns.give()
        return list(self._holdings.values())

    def _is_first(self, inode: Inode) -> bool:
        if inode.nlink < 2:
            return True
        is_first = inode.id not in self._linked
        self._linked.add(inode.id)
        return is_first

    def _holding(self, agent: bytes | None, kind: str) -> Holding:
        holding = self._holdings.get((agent, kind))
        if holding is None:
            name = None if agent is None else os.fsdecode(agent)
            holding = self._holdings[agent, kind] = Holding(name, kind)
        return holding

    def _add(self, holding: Holding, inode: Inode) -> None:
        holding.files += 1
        holding.logical_bytes += inode.size
        live = self._table.live(inode.id)
        is_staged = live is not None and live.staged is not None
        if inode.content is None:
            holding.hot_bytes += inode.size if is_staged else 0
            return
        stored, is_cold = self._cost(inode.content)
        holding.stored_bytes += stored
        if is_staged or self._describer.is_hot(inode.content):
            holding.hot_bytes += inode.size
        elif is_cold:
            holding.cold_bytes += inode.size
        else:
            holding.warm_bytes += inode.size

    def _cost(self, content: int) -> tuple[float, bool]:
        cost = self._costs.get(content)
        if cost is None:
            stored, packed = self._contents.cost(content)
            cost = self._costs[content] = stored, packed > _PACKED_SHARE
        return cost
