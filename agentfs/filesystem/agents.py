"""Agents: who they are, whether they are at work, and what their files take.

A directory is an agent's when it lies in /agents, or has the attribute
user.agentfs.agent; all below it is the agent's as well, down to another agent's.
Several directories of one name are one agent's. What is set of an agent is kept in
attributes of its directories, so it survives, moves and is copied with them.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agentfs.filesystem.description import (
    IMPORTANCE_ATTRIBUTE,
    OWN_ATTRIBUTES,
    Describer,
    check,
)
from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.namespace import Namespace
from agentfs.filesystem.turns import Turns
from agentfs.index import Index
from agentfs.index.agents import STATE_ATTRIBUTE, AgentFile
from agentfs.index.contents import FIRST_CHUNK_ID
from agentfs.model import AgentUse
from agentfs.policy.placement import ACTIVE, IDLE, PAUSED, USUAL_IMPORTANCE

_SLICE = 128
"""Recipes read at once."""

_DIRECTORIES = 4
"""Of agents, whose files are read at once: 100 files take 0.4 ms."""

_NOBODY = 0
_OTHERS = -1
"""In an array of owners: several agents have it, or a file that is no agent's."""


@dataclass(slots=True)
class _Tally:
    """What is known so far of one agent."""

    name: str
    directories: list[int]
    files: int = 0
    open_files: int = 0
    logical_bytes: int = 0
    shared_bytes: int = 0
    exclusive_bytes: int = 0
    hot_bytes: int = 0
    last_used_ns: int = 0
    contents: dict[int, int] = field(default_factory=dict)
    """How many of its files name each."""


class Agents:
    """The agents of one volume."""

    def __init__(
        self,
        index: Index,
        table: InodeTable,
        namespace: Namespace,
        describer: Describer,
        *,
        idle_s: float,
    ) -> None:
        """:param idle_s: without use, after which an agent is idle"""
        self._index = index
        self._table = table
        self._namespace = namespace
        self._describer = describer
        self._idle_s = idle_s
        self.resident_digests: Callable[[], Iterable[bytes]] = tuple
        """The contents that lie on tmpfs."""

    def state(self, directories: Sequence[int], last_used_ns: int, *, is_open: bool) -> str:
        """Paused if somebody said so; else by recent use."""
        if any(self._index.xattrs.get(one, STATE_ATTRIBUTE) for one in directories):
            return PAUSED
        is_recent = time.time_ns() - last_used_ns < self._idle_s * 1e9
        return ACTIVE if is_open or is_recent else IDLE

    def importance(self, directories: Sequence[int]) -> int:
        """The highest that is set of any of its directories."""
        values = [self._index.xattrs.get(one, IMPORTANCE_ATTRIBUTE) for one in directories]
        return max((int(value) for value in values if value), default=USUAL_IMPORTANCE)

    def directories(self, name: bytes) -> list[int]:
        """What is an agent's; empty: there is none of that name."""
        return self._index.agents.directories_of(name)

    def set(self, directories: Iterable[int], what: str, value: str | None) -> None:
        """Keep the state or the importance of an agent in all its directories; None: no more.

        :raises OSError: EINVAL, it cannot be that
        """
        attribute = OWN_ATTRIBUTES + what.encode()
        for directory in directories:
            if value is not None:
                check(self._table.get(directory), attribute, value.encode())
                self._namespace.set_xattr(directory, attribute, value.encode())
            elif self._index.xattrs.get(directory, attribute) is not None:
                self._namespace.remove_xattr(directory, attribute)
            self._table.changed(directory)

    def agent_of(self, path: bytes) -> bytes:
        """The name of the agent whose directory a path leads to, or is in; else of that directory.

        :raises OSError: ENOENT or ENOTDIR
        """
        way = self._namespace.walk(path)
        return self._describer.agent(way) or path.rstrip(b"/").rpartition(b"/")[2]

    def path(self, directory: int) -> bytes:
        """From the root on."""
        inode, paths = self._table.get(directory), self._describer.paths
        return b"/" + b"/".join(paths.names([*paths.above(inode), inode]))

    async def uses(self) -> list[AgentUse]:
        """All agents, by name. Lets others have turns: what changes meanwhile may be in it or not.

        Some 5 us a file, and 0.2 us for each chunk in a recipe of the store.
        """
        self._turns = Turns()
        tallies = self._named()
        owners: dict[int, int] = {}
        numbers = {one: place for place, tally in enumerate(tallies) for one in tally.directories}
        directories = list(numbers)
        for start in range(0, len(directories), _DIRECTORIES):
            for file in self._index.agents.files(directories[start : start + _DIRECTORIES]):
                place = numbers[file.directory]
                self._count_file(tallies[place], file)
                if file.content is not None and owners.setdefault(file.content, place) != place:
                    owners[file.content] = _OTHERS
            await self._turns.give()
        await self._count_chunks(tallies, owners)
        await self._count_resident(tallies)
        return [await self._use(tally) for tally in tallies]

    def _named(self) -> list[_Tally]:
        by_name: defaultdict[bytes, list[int]] = defaultdict(list)
        for directory, name in self._index.agents.directories():
            by_name[name].append(directory)
        return [
            _Tally(name.decode(errors="backslashreplace"), directories)
            for name, directories in sorted(by_name.items())
        ]

    def _count_file(self, tally: _Tally, file: AgentFile) -> None:
        live = self._table.live(file.inode)
        size, used_ns = file.size, max(file.atime_ns, file.mtime_ns)
        if file.parent is not None:
            used_ns = max(used_ns, self._table.used_ns.get(file.parent, 0))
        if live is not None:
            size, used_ns = live.inode.size, max(used_ns, live.inode.mtime_ns)
            if live.staged is not None:
                tally.hot_bytes += size
            if live.is_dirty:
                tally.exclusive_bytes += size
            tally.open_files += self._table.is_open(file.inode)
        tally.files += 1
        tally.logical_bytes += size
        tally.last_used_ns = max(tally.last_used_ns, used_ns)
        if file.content is not None:
            tally.contents[file.content] = tally.contents.get(file.content, 0) + 1

    async def _count_chunks(self, tallies: Sequence[_Tally], owners: dict[int, int]) -> None:
        """Whose each chunk is, and from that what each agent shares."""
        last = self._index.contents.generation
        chunk_owner = array("i", bytes(4 * (last + 1)))
        async for content, recipe in self._recipes():
            owner = owners.get(content, _OTHERS) + 1 or _OTHERS
            chunks = array("I", recipe)[0::2]
            if max(chunks, default=0) > last:
                continue  # recorded since
            for chunk in chunks:
                known = chunk_owner[chunk]
                if known != owner:
                    chunk_owner[chunk] = owner if known == _NOBODY else _OTHERS
        async for content, recipe in self._recipes():
            owner = owners.get(content, _OTHERS)
            numbers = array("I", recipe)
            if owner == _OTHERS or max(numbers[0::2], default=0) > last:
                continue
            tally, shared = tallies[owner], 0
            for chunk, length in zip(numbers[0::2], numbers[1::2], strict=True):
                if chunk < FIRST_CHUNK_ID:
                    continue
                if chunk_owner[chunk] == _OTHERS:
                    shared += length
                elif chunk_owner[chunk] != _NOBODY:
                    chunk_owner[chunk] = _NOBODY  # it is counted once
                    tally.exclusive_bytes += length
            tally.shared_bytes += shared * tally.contents[content]
        sizes: dict[int, int] = {}
        for tally in tallies:
            for content in tally.contents.keys() - sizes.keys():
                if owners[content] == _OTHERS:
                    sizes[content] = self._index.contents.size(content)
            tally.shared_bytes += sum(
                count * sizes.get(content, 0) for content, count in tally.contents.items()
            )
            await self._turns.give()

    async def _recipes(self) -> AsyncIterator[tuple[int, bytes]]:
        after = 0
        while rows := self._index.contents.recipes_after(after, _SLICE):
            for row in rows:
                yield row
                await self._turns.give()
            after = rows[-1][0]

    async def _count_resident(self, tallies: Sequence[_Tally]) -> None:
        hot: dict[int, int] = {}
        for digest in list(self.resident_digests()):
            content = self._index.contents.find(digest)
            if content is not None:
                hot[content] = self._index.contents.size(content)
            await self._turns.give()
        for tally in tallies:
            tally.hot_bytes += sum(hot[one] for one in tally.contents.keys() & hot.keys())

    async def _use(self, tally: _Tally) -> AgentUse:
        paths = []
        for directory in tally.directories:
            paths.append(os.fsdecode(self.path(directory)))
            await self._turns.give()
        return AgentUse(
            tally.name,
            tuple(paths),
            self.state(tally.directories, tally.last_used_ns, is_open=tally.open_files > 0),
            self.importance(tally.directories),
            tally.files,
            tally.open_files,
            tally.logical_bytes,
            tally.shared_bytes,
            tally.exclusive_bytes,
            tally.hot_bytes,
            tally.last_used_ns,
        )
